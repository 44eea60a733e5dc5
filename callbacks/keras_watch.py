"""What Keras does not tell its callbacks: with what it was called, and how a call ends.

Knows Keras's own frames, its list of callbacks and its step functions; records nothing itself.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

from keras.callbacks import CallbackList

_NEAR = 16
"""Frames between a hook and the method of the model, with room for decorators."""

_CALLS = ("fit", "evaluate", "predict")
_FUNCTIONS = ("train_function", "test_function", "predict_function")
_END_OF_DATA = ("StopIteration", "OutOfRangeError")
"""Exceptions with which data end; Keras catches them."""


class Watcher(Protocol):
    """What is told about one call of a model's method. Nothing it does may raise."""

    def training_begins(self, callbacks: Sequence[Any]) -> None:
        """Every callback has seen that a fit begins; weights have been restored."""

    def batch_ends(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        """A batch is done; `logs` may lie on a device that is not done yet."""

    def epoch_ends(self) -> None:
        """An epoch is over, and no callback has changed anything since its last step."""

    def epoch_ended(self, callbacks: Sequence[Any]) -> None:
        """Every callback has seen the end of the epoch."""

    def training_ended(self, callbacks: Sequence[Any]) -> None:
        """Every callback has seen the end of the fit."""

    def evaluation_ended(self) -> None:
        """Every callback has seen the end of an evaluation or prediction."""

    def fails(self, error: BaseException) -> None:
        """An exception leaves the call."""

    def vanishes(self) -> None:
        """The call is gone without a word."""


class Watchers(list[Watcher]):
    """Watchers of one call; as a context, tells them of the exception that leaves it."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None and type(error).__name__ not in _END_OF_DATA:
            for watcher in self:
                watcher.fails(error)


# ---------------------------------------------------------------------------- frames


def find_container() -> CallbackList | None:
    """The list of callbacks that calls the hook from which this is called."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_NEAR):
        if frame is None:
            break
        if frame.f_code.co_varnames[:1] == ("self",):
            found = frame.f_locals.get("self")
            if isinstance(found, CallbackList):
                return found
        frame = frame.f_back
    return None


def find_call() -> Mapping[str, Any]:
    """The variables of the `fit`, `evaluate` or `predict` of Keras that is going on here.

    They refer to the model and its data: drop them before the hook returns.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_NEAR):
        if frame is None:
            break
        if _is_call(frame):
            return frame.f_locals
        frame = frame.f_back
    return {}


def is_running(container: CallbackList) -> bool:
    """Whether this is called from within a call that `container` belongs to."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_call(frame) and frame.f_locals.get("callbacks") is container:
            return True
        frame = frame.f_back
    return False


def _is_call(frame: FrameType) -> bool:
    is_keras = str(frame.f_globals.get("__name__")).startswith("keras.")
    return is_keras and frame.f_code.co_name in _CALLS


# ---------------------------------------------------------------------------- watching


def watch(container: CallbackList, watcher: Watcher) -> None:
    """Tell `watcher` what goes on in the calls of a list of callbacks.

    Keras calls no hook after an exception, and no callback sees what those behind it do. So the
    list itself becomes one that tells; which callbacks it calls, and how, stays as it is.
    """
    if not isinstance(container, _Watched):
        kind: Any = type(container)
        container.__class__ = _watched(kind)
        container.watchers = Watchers()
        weakref.finalize(container, _gone, container.watchers).atexit = False
    container.watchers.append(watcher)


def forget(container: CallbackList, watcher: Watcher) -> None:
    """Stop telling `watcher`."""
    if isinstance(container, _Watched) and watcher in container.watchers:
        container.watchers.remove(watcher)


def _gone(watchers: Watchers) -> None:
    for watcher in tuple(watchers):
        watcher.vanishes()


@functools.cache
def _watched(kind: type[CallbackList]) -> type[CallbackList]:
    return type(kind.__name__, (_Watched, kind), {})


class _Watched(CallbackList):  # type: ignore[misc]
    """A list of callbacks with watchers of its calls."""

    watchers: Watchers

    def on_train_begin(self, logs: Any = None) -> None:
        with self.watchers:
            super().on_train_begin(logs)
        _guard_call(self.watchers, "train_function")
        for watcher in tuple(self.watchers):
            watcher.training_begins(self.callbacks)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        with self.watchers:
            super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        with self.watchers:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for watcher in self.watchers:
            watcher.batch_ends(batch, logs)
        with self.watchers:
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for watcher in self.watchers:
            watcher.epoch_ends()
        with self.watchers:
            super().on_epoch_end(epoch, logs)
        for watcher in tuple(self.watchers):
            watcher.epoch_ended(self.callbacks)

    def on_train_end(self, logs: Any = None) -> None:
        with self.watchers:
            super().on_train_end(logs)
        for watcher in tuple(self.watchers):
            watcher.training_ended(self.callbacks)

    def on_test_begin(self, logs: Any = None) -> None:
        with self.watchers:
            super().on_test_begin(logs)
        _guard_call(self.watchers, "test_function")

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        with self.watchers:
            super().on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        with self.watchers:
            super().on_test_batch_end(batch, logs)

    def on_test_end(self, logs: Any = None) -> None:
        with self.watchers:
            super().on_test_end(logs)
        for watcher in tuple(self.watchers):
            watcher.evaluation_ended()

    def on_predict_begin(self, logs: Any = None) -> None:
        with self.watchers:
            super().on_predict_begin(logs)
        _guard_call(self.watchers, "predict_function")

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        with self.watchers:
            super().on_predict_batch_begin(batch, logs)

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        with self.watchers:
            super().on_predict_batch_end(batch, logs)

    def on_predict_end(self, logs: Any = None) -> None:
        with self.watchers:
            super().on_predict_end(logs)
        for watcher in tuple(self.watchers):
            watcher.evaluation_ended()


# ---------------------------------------------------------------------------- steps and data


class Guard:
    """A step function whose exceptions are told.

    Attributes
    ----------
    tachograph_inner : callable
        The model's own function.
    call : callable
        What is called; the model's own, unless somebody puts another one there.
    """

    def __init__(self, function: Callable[..., Any], watchers: Watchers) -> None:
        self.call = self.tachograph_inner = function
        self._watchers = watchers

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Do what the model's own function does."""
        with self._watchers:
            return self.call(*arguments, **keywords)


def _guard_call(watchers: Watchers, name: str) -> None:
    """Let exceptions of the steps and the data of the present call be told."""
    with contextlib.suppress(Exception):  # the end of the list of callbacks tells as well, later
        call = find_call()
        if not watchers or not call:
            return
        model, iterator = call["self"], call.get("epoch_iterator")
        function = getattr(model, name, None)
        if function is not None:
            setattr(model, name, Guard(_own(function), watchers))
        if iterator is not None and not isinstance(iterator, _GuardedIterator):
            kind: Any = type(iterator)
            iterator.__class__ = _guarded_iterator(kind)
            iterator.watchers = watchers


def release(model: Any) -> None:
    """Give a model its own functions back."""
    for name in _FUNCTIONS:
        function = getattr(model, name, None)
        if _own(function) is not function:
            setattr(model, name, _own(function))


def _own(function: Any) -> Any:
    return getattr(function, "tachograph_inner", function)


class _GuardedIterator:
    watchers: Watchers

    def __next__(self) -> Any:
        with self.watchers:
            return super().__next__()  # type: ignore[misc]


@functools.cache
def _guarded_iterator(kind: type) -> type:
    return type(kind.__name__, (_GuardedIterator, kind), {})
