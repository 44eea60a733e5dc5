"""The command that runs: arguments, entry point, how it was started, working directory."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tachograph.provenance.modules import import_root, in_environment
from tachograph.provenance.shell import shell_kind
from tachograph.security.redaction import redact_argv

_OF_FOLDER = "__main__"  # the module that Python runs of a folder or an archive


def collect() -> dict[str, Any]:
    """Arguments (secrets redacted), the same as shell text, entry script or module, folder."""
    given = redact_argv(sys.orig_argv)
    started_by, name, _ = entry()
    return {
        "argv": redact_argv(sys.argv),
        "command": shlex.join(given),
        "original_argv": given,
        "started_by": started_by,
        "entry": name,
        "working_directory": (started := working_directory()),
        "moved_to": None if (stands := _stands_in()) == started else stands,
    }


def entry_folder() -> Path:
    """The folder of the user's entry script; the working directory where there is none.

    Of ``python -m package.module`` it is the folder that the package lies in.
    A script that belongs to the environment (`pytest`, `torchrun`, ``python -m package``) says
    nothing about where the user's code lies.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None:
        return Path.cwd()
    script = Path(file).absolute()
    if in_environment(str(script)) or not script.exists():
        return Path.cwd()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return script.parent if spec is None else Path(import_root(str(script), str(spec.name)))


class Entry(NamedTuple):
    """Where the program begins: how Python was started, with what, and the file of `__main__`.

    Python forgets the file when the script has ended, before what is registered for the exit runs.
    """

    started_by: str
    name: str | None
    file: str | None


def entry() -> Entry:
    """How Python was started (script, module, pytest, notebook, …) and what it was given."""
    main = sys.modules.get("__main__")
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    file = file if isinstance(file, str) else None
    return Entry(*_started(file, spec), file)


def _started(file: str | None, spec: Any) -> tuple[str, str | None]:
    if "_pytest" in sys.modules and "PYTEST_CURRENT_TEST" in os.environ:
        return "pytest", os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    kind = shell_kind()
    if kind == "notebook" or (kind and file is None):
        return kind, os.environ.get("JPY_SESSION_NAME")
    if spec is not None and spec.name != _OF_FOLDER:
        return "module", str(spec.name).removesuffix(".__main__")
    if file is not None and file != "<stdin>":
        return "script", str(Path(file).absolute())
    if "-c" in sys.orig_argv[1:]:
        return "command", None
    return ("interactive" if sys.flags.interactive or _has_terminal() else "stdin"), None


def _has_terminal() -> bool:
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def working_directory() -> str | None:
    """Where the process was started; where that is not to be known, where it stands.

    What a command line names is found from there, also where the program has changed its folder
    since. None where that folder is not known and was deleted.
    """
    return _started_in() or _stands_in()


def _started_in() -> str | None:
    """The folder that Python has made the path of the program absolute with, or has put first."""
    main = sys.modules.get("__main__")
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if not isinstance(file, str) or not os.path.isabs(file):
        return None
    if spec is not None and spec.name != _OF_FOLDER:
        root = import_root(file, str(spec.name))
        return root if sys.path[:1] == [root] and not getattr(sys.flags, "safe_path", 0) else None
    program = file if spec is None else os.path.dirname(file)
    for word in (word.rstrip(os.sep) for word in sys.orig_argv[1:]):
        if word == program:
            return None
        if program.endswith(end := os.sep + word):
            return program.removesuffix(end) or os.sep
    return None


def _stands_in() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None
