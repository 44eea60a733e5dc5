"""Makes an object a `Callback` of `lightning` and of `pytorch_lightning`, whichever is loaded.

The two packages have unrelated classes of one name. Knows nothing of recording.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:  # so that `Trainer(callbacks=[...])` type-checks in a user's code
    from lightning.pytorch import Callback as _Callback
else:
    _Callback = object

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_OF_LIGHTNING = ("log", "log_dict")  # set on each callback for each fit, bound to the module
_made: dict[tuple[type, tuple[type, ...]], type] = {}


class EitherCallback(_Callback):
    """Base of a callback for both packages; naming it or a subclass loads neither.

    The class of an object is made with the object: the user's, with `Callback` of the loaded
    packages as further bases. Copies and pickles name the user's class alone.
    """

    _transient: ClassVar[dict[str, Any]] = {}
    """Attributes that a copy starts with anew, and their values."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make the object, of a class that a Trainer takes for a callback."""
        if "_public" in vars(cls):
            return object.__new__(cls)
        bases = _callback_classes()
        made = _made.get((cls, bases))
        if made is None:
            body = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "_public": cls}
            made = _made[cls, bases] = type(cls.__name__, (cls, *bases), body)
        result: Self = object.__new__(made)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        public = getattr(type(self), "_public", type(self))
        return _rebuild, (public,), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        kept = {key: value for key, value in self.__dict__.items() if key not in _OF_LIGHTNING}
        return kept | self._transient

    def _forget_module(self) -> None:
        """Drop the references to the module that Lightning left here."""
        for name in _OF_LIGHTNING:
            self.__dict__.pop(name, None)


def _callback_classes() -> tuple[type, ...]:
    """`Callback` of each package that is loaded; of the installed one where none is."""
    loaded = [sys.modules[name] for name in _PACKAGES if hasattr(sys.modules.get(name), "Callback")]
    for name in _PACKAGES:
        if not loaded:
            with contextlib.suppress(ModuleNotFoundError):
                loaded = [importlib.import_module(name)]
    if not loaded:
        raise ModuleNotFoundError(
            "LightningCallback needs Lightning: pip install 'tachograph[lightning]'"
        )
    return tuple(module.Callback for module in loaded)


def _rebuild(public: type[EitherCallback]) -> EitherCallback:
    return public.__new__(public)
