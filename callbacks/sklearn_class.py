"""Classes whose methods are observed, and which are otherwise the class that they come from.

An instance changes to such a class and back. In between it says that it is of its own class,
has no new attribute, and pickles, copies and hashes as ever. Knows no record.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

Observer = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]
"""Called with instance, bound method, arguments and keywords, instead of the method."""

_class_slot = object.__dict__["__class__"]  # observed classes hide it
_bases: dict[type, type] = {}
_lock = threading.Lock()


def base_of(kind: type) -> type:
    """The class that an observed class comes from; any other class is its own."""
    return _bases.get(kind, kind)


def set_class(instance: Any, kind: type) -> None:
    """Change the class of an instance; TypeError where its layout forbids that."""
    _class_slot.__set__(instance, kind)


def observed_class(base: type, observers: Mapping[str, Observer], clone: Any) -> type:
    """Make the observed class of a class.

    Parameters
    ----------
    base : type
    observers : mapping of method name to Observer
        Methods that the class does not have are left out.
    clone : function
        Becomes `__sklearn_clone__` where the class has one.
    """
    body = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__slots__": (),  # the layout of the base, so that instances can change class
        "__class__": property(lambda self: base),
    }
    made: Any = type(base)(base.__name__, (base,), body)
    # What `__init_subclass__` has set for a new class would hide what the base has.
    for name in [name for name in vars(made) if not name.startswith(("__", "_abc_"))]:
        delattr(made, name)
    for name, observer in observers.items():
        original = inspect.getattr_static(base, name, None)
        if hasattr(type(original), "__get__"):
            setattr(made, name, _Method(original, observer))
    if hasattr(base, "__sklearn_clone__"):
        made.__sklearn_clone__ = clone
    made.__reduce_ex__ = reduce_plain
    with _lock:
        _bases[made] = base
    return made  # type: ignore[no-any-return]


class _Method:
    """A method of the base, observed where it is called on an instance."""

    def __init__(self, original: Any, observer: Observer) -> None:
        self._original = original
        self._observer = observer

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        method = self._original.__get__(instance, owner)
        if instance is None or not callable(method):
            return method
        observer = self._observer

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return observer(instance, method, args, kwargs)

        return call


def reduce_plain(self: Any, protocol: Any) -> Any:
    """Pickle as the base would, to the byte: for files, caches, hashes and copies."""
    made = type(self)
    base: Any = base_of(made)
    reduced = base.__reduce_ex__(self, protocol)
    if isinstance(reduced, str):
        return reduced
    make, args, *rest = reduced
    args = tuple(base if argument is made else argument for argument in args)
    return (base if make is made else make, args, *rest)
