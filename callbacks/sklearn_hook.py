"""A stand-in for one method of one object, for as long as a fit lasts.

Knows no estimator and records nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Observer = Callable[..., Any]
"""Called with the method and its arguments, instead of the method; returns what it returns."""


class Hook:
    """Stands before a method of an object until it is removed.

    The object pickles and copies meanwhile as one whose method nobody watches.

    Parameters
    ----------
    owner : object
    name : str
        Of the method.
    observer : callable
    """

    def __init__(self, owner: Any, name: str, observer: Observer) -> None:
        self._owner: Any = owner
        self._name = name
        self._method: Any = getattr(owner, name)
        self._observer: Observer | None = observer
        self._before = vars(owner).get(name, self)
        vars(owner)[name] = self

    def remove(self) -> None:
        """Give the object its method back. A second call does nothing."""
        owner, self._owner, self._observer = self._owner, None, None
        if owner is None or vars(owner).get(self._name) is not self:
            return
        if self._before is self:
            del vars(owner)[self._name]
        else:
            vars(owner)[self._name] = self._before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._observer is None:
            return self._method(*args, **kwargs)
        return self._observer(self._method, *args, **kwargs)

    def __reduce__(self) -> Any:
        return getattr, (self._owner, self._name)
