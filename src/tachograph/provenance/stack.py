"""The variables of the user's own code that can be seen from where a run starts.

Those of the functions that are being called, of their modules and of `__main__`. Looks and never
changes: also not what `locals()` has given to the user, nor how long a value lives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

from tachograph.provenance.modules import in_environment

MAX_FRAMES = 200
MAX_VARIABLES = 5_000
_CO_OPTIMIZED = 0x1  # of a function: its variables have fixed places
_RECORDER, _EXAMPLES = "tachograph.", "tachograph.examples."
_GIVES_LOCALS = {"locals", "vars", "eval", "exec"}
_HELD = 3  # references to a fresh snapshot: the frame's, ours, and the argument that counts


class Variable(NamedTuple):
    """A variable of the user's code.

    Attributes
    ----------
    name : str
    value : Any
    where : str
        The function that it belongs to, or the module.
    """

    name: str
    value: Any
    where: str


def user_variables() -> Iterator[Variable]:
    """Variables of the user's code, the innermost function's first, each value once."""
    seen: set[int] = set()
    for count, variable in enumerate(_all_variables()):
        if count == MAX_VARIABLES:
            return
        if id(variable.value) not in seen:
            seen.add(id(variable.value))
            yield variable


def variables_of(module: str) -> Iterator[Variable]:
    """Variables of the functions of a module that are being called, the innermost first."""
    for frame in _frames():
        if frame.f_globals.get("__name__") == module:
            yield from _local(frame)


def _is_users(file: str, module: str) -> bool:
    """Whether code is the user's: not Python's, not installed, not the recorder's."""
    recorder = module.startswith(_RECORDER) and not module.startswith(_EXAMPLES)
    return not (recorder or file.startswith("<frozen ") or in_environment(file))


def _all_variables() -> Iterator[Variable]:
    modules: dict[int, Any] = {}
    for frame in _frames():
        if _is_users(frame.f_code.co_filename, frame.f_globals.get("__name__", "")):
            modules[id(frame.f_globals)] = frame.f_globals
            yield from _local(frame)
    main = getattr(sys.modules.get("__main__"), "__dict__", {})
    if _is_users(main.get("__file__") or "", "__main__"):
        modules[id(main)] = main
    for variables in modules.values():
        where = str(variables.get("__name__"))
        for name, value in list(variables.items()):
            if not name.startswith("__"):
                yield Variable(name, value, where)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    for _ in range(MAX_FRAMES):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _local(frame: FrameType) -> Iterator[Variable]:
    code = frame.f_code
    if not code.co_flags & _CO_OPTIMIZED:
        return  # of a module: they are its globals
    if sys.version_info < (3, 13) and not _GIVES_LOCALS.isdisjoint(code.co_names):
        return  # reading would change the mapping that they have given or written to
    variables = frame.f_locals
    try:
        for name, value in list(variables.items()):
            yield Variable(name, value, code.co_name)
    finally:
        if sys.version_info < (3, 13) and sys.getrefcount(variables) <= _HELD:
            variables.clear()  # the frame keeps it, and with it the values, until it is left
