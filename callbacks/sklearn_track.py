"""Seeing inside any estimator: for the time of a ``with`` block it is of an observed class.

Owns which estimators are observed, by which block, and where their fits are recorded. Knows
joblib, because estimators go to its worker processes.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from joblib.externals.loky.backend.reduction import register

from tachograph.callbacks.base import Recording
from tachograph.callbacks.sklearn_class import (
    Observer,
    base_of,
    observed_class,
    reduce_plain,
    set_class,
)
from tachograph.callbacks.sklearn_facts import is_estimator, parameters
from tachograph.callbacks.sklearn_fit import Fit
from tachograph.callbacks.sklearn_folds import compare_fold, is_small
from tachograph.callbacks.sklearn_place import Place, guard
from tachograph.callbacks.sklearn_tensors import Settings
from tachograph.current import using
from tachograph.run import Run, status_of
from tachograph.start import InertRun
from tachograph.warning import warn_once

_MOST_SCORES = 3
_TOLD_FOLDS = 2

_current: contextvars.ContextVar[Fit | None] = contextvars.ContextVar("fit", default=None)
_tickets: dict[int, Ticket] = {}


def current_fit() -> Fit | None:
    """The innermost observed fit of this context."""
    return _current.get()


def _nothing() -> None:
    return None


@dataclass(slots=True)
class Ticket:
    """What is known of one observed estimator, by its identity.

    Attributes
    ----------
    session : Session or None
        The ``with`` block that observes it; None in a worker process.
    parent : Fit or None
        The fit in which it was cloned: where a thread that inherits no context finds its place.
    place : Place or None
        Where exactly it is recorded: as a fold.
    fold : int or None
        As which fold of a cross-validation without a search it was cloned.
    """

    reference: weakref.ref[Any]
    name: str
    session: Session | None = None
    parent: Fit | None = None
    place: Place | None = None
    fold: int | None = None
    previous: Ticket | None = None
    scored: Place | None = None
    trained_on: Callable[[], Any] = _nothing
    compared: int = 0
    ongoing: tuple[Fit, bool] | None = None


@dataclass(eq=False)
class Session:
    """One ``with track(...)`` block."""

    recording: Recording
    framework: str
    outermost: int
    folds: itertools.count[int] = field(default_factory=itertools.count)
    lock: threading.RLock = field(default_factory=threading.RLock)
    cross_validation: tuple[Place, bool] | None = None

    def open(self) -> tuple[Place, bool]:
        """A place for a fit that is inside no other, and whether its run ends with it."""
        with self.lock:
            run = self.recording.open(self.framework)
            return Place(run, settings=Settings.of(self.recording)), self.recording.owned

    def fold_place(self, estimator: Any, fold: int) -> Place:
        """The place of a fold of a cross-validation that is a function, not an estimator."""
        with self.lock:
            if self.cross_validation is None:
                self.cross_validation = place, _ = self.open()
                place.run.log_params(parameters(estimator, deep=True), source="framework")
            place = self.cross_validation[0]
        return place.at(place.run, {"fold": fold})

    def close(self, error: BaseException | None) -> None:
        """Give every estimator its own class back, and end what the block left open."""
        for key, ticket in list(_tickets.items()):
            if ticket.session is self:
                if ticket.ongoing is not None:
                    fit, is_owned = ticket.ongoing
                    if error is None:
                        fit.log_outcome(fit.subject())
                    if is_owned:
                        fit.run.finish(status_of(error), error, wait=False)
                _release(key, ticket)
        if self.cross_validation is not None and self.cross_validation[1]:
            self.cross_validation[0].run.finish(status_of(error), error, wait=False)


# ---------------------------------------------------------------------------- in and out


@contextlib.contextmanager
def observe(estimator: Any, recording: Recording, framework: str) -> Iterator[Any]:
    """Observe all fits of `estimator` and of what is inside it, until the block is left."""
    if recording.is_off:
        yield estimator
        return
    session = Session(recording, framework, id(estimator))
    try:
        for name, found in _walk(estimator, "", set()):
            _adopt(found, Ticket(weakref.ref(found), name, session))
    except Exception as error:
        recording.problem(error, "track")
    try:
        yield estimator
    except BaseException as error:
        _close(session, error)
        raise
    _close(session, None)


def _close(session: Session, error: BaseException | None) -> None:
    try:
        session.close(error)
    except Exception as problem:
        session.recording.problem(problem, "track")


def _walk(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """All estimators that can be reached through parameters, by their names there."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if is_estimator(value):
        inner = value.get_params(deep=False) if hasattr(value, "get_params") else {}
        yield name or type(value).__name__, value
        yield from _walk(inner, name, seen)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, str(key), seen)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            if isinstance(item, tuple) and len(item) > 1 and isinstance(item[0], str):
                yield from _walk(item[1], item[0], seen)
            else:
                yield from _walk(item, f"{name}-{position}", seen)


def _adopt(estimator: Any, ticket: Ticket) -> None:
    """Make an estimator observed; one whose class does not allow it stays as it is."""
    base = base_of(type(estimator))
    with contextlib.suppress(TypeError):
        set_class(estimator, _observed_class(base))
        key = id(estimator)
        ticket.reference = weakref.ref(estimator, functools.partial(_forget, key))
        ticket.previous = _tickets.get(key)
        _tickets[key] = ticket


def _forget(key: int, reference: weakref.ref[Any]) -> None:
    ticket = _tickets.get(key)
    if ticket is not None and ticket.reference is reference:
        del _tickets[key]


def _release(key: int, ticket: Ticket) -> None:
    estimator = ticket.reference()
    if estimator is None:
        return
    if ticket.previous is not None:
        _tickets[key] = ticket.previous
        return
    _tickets.pop(key, None)
    set_class(estimator, base_of(type(estimator)))


# ---------------------------------------------------------------------------- clones


def _clone(self: Any) -> Any:
    """scikit-learn's protocol of cloning: the clone of an observed estimator is observed."""
    twin = base_of(type(self)).__sklearn_clone__(self)  # type: ignore[attr-defined]
    source = _tickets.get(id(self))
    if source is None:
        return twin
    try:
        parent = _current.get() or source.parent
        if parent is not None and not parent.is_open:
            parent = None
        ticket = Ticket(source.reference, source.name, source.session, parent)
        if parent is not None and parent.search is not None:
            _place_candidate(parent, self, twin, ticket)
        elif parent is None and _is_whole(source, self):
            ticket.fold = next(source.session.folds)  # type: ignore[union-attr]
        _adopt(twin, ticket)
    except Exception as error:
        warn_once(f"a clone is not observed: {type(error).__name__}: {error}")
    return twin


def _is_whole(source: Ticket, estimator: Any) -> bool:
    """Whether it is what `track` was given, or a clone of that: not a part of it."""
    session = source.session
    return session is not None and (source.fold is not None or id(estimator) == session.outermost)


def _place_candidate(parent: Fit, source: Any, twin: Any, ticket: Ticket) -> None:
    """A search clones its template once, and that clone for each fold of each candidate."""
    search = parent.search
    if search is None:
        return
    if search.base is None and id(source) == search.template:
        search.base = id(twin)
    elif id(source) == search.base:
        ticket.place = search.next_fold()
        ticket.name = "best_estimator_"  # what it is where no fold is left


# ---------------------------------------------------------------------------- pickling


def _reduce_for_worker(estimator: Any) -> Any:
    """Pickle for a process of joblib, where it goes on being observed."""
    plain = reduce_plain(estimator, 4)
    ticket = _tickets.get(id(estimator))
    if ticket is None or ticket.session is None:  # on its way back from a worker
        return plain
    place, parent = ticket.place, ticket.parent
    try:
        if place is None and parent is None and ticket.fold is not None:
            place = ticket.session.fold_place(estimator, ticket.fold)
    except Exception as error:
        ticket.session.recording.problem(error, "track")
    within = parent.place if parent is not None else None
    if place is None and within is None:
        within = _latest_place()
    make, args, *rest = plain
    scores = ticket.fold is not None
    return (_arrive, (make, args, (ticket.name, place, within, scores)), *rest)


def _latest_place() -> Place | None:
    """Where a fit runs now: joblib pickles in a thread without context."""
    for fit in reversed(list(_running)):
        if fit.is_open:
            return fit.place
    return None


_running: list[Fit] = []


def _arrive(make: Callable[..., Any], args: Any, facts: tuple[Any, ...]) -> Any:
    """Rebuild an estimator in a worker process; what it records goes where `facts` say."""
    estimator = make(*args)
    name, place, within, scores = facts
    try:
        parent = Fit(within) if within is not None else None
        fold = -1 if scores else None
        ticket = Ticket(weakref.ref(estimator), name, None, parent, place, fold)
        _adopt(estimator, ticket)
    except Exception as error:
        warn_once(f"a worker process records nothing: {type(error).__name__}: {error}")
    return estimator


# ---------------------------------------------------------------------------- observing


def _observe_fit(instance: Any, method: Any, args: Any, kwargs: Any) -> Any:
    ticket = _tickets.get(id(instance))
    started = perf_counter()
    try:
        fit = _enter(instance, ticket, method.__name__, args, kwargs)
    except Exception as error:
        fit = None
        _report(ticket, error)
    _took(ticket, started)
    if fit is None:
        return method(*args, **kwargs)
    token = _current.set(fit)
    _running.append(fit)
    try:
        with using(fit.run):
            result = method(*args, **kwargs)
    except BaseException as error:
        _leave(fit, ticket, instance, None, error)
        raise
    else:
        _leave(fit, ticket, instance, result, None)
        return result
    finally:
        _running.remove(fit)
        _current.reset(token)


def _enter(instance: Any, ticket: Ticket | None, method: str, args: Any, kwargs: Any) -> Fit | None:
    """The record of a fit that begins; None where it is to be seen in another's."""
    current = _current.get()
    if current is not None and current.subject() is instance:
        return None  # fit_transform calls fit
    X = args[0] if args else kwargs.get("X")
    fit, is_root = _find_fit(instance, ticket, current, method)
    if fit is None:
        return None
    fit.begin(instance, X, deep=is_root)
    y = args[1] if len(args) > 1 else kwargs.get("y")
    if is_root:
        _record_data(fit.run, X, y)
    else:
        compare_fold(fit.place, X, "train")
        if ticket is not None and ticket.fold is not None:
            _record_fold(fit.place, X, y)
    if ticket is not None:
        with contextlib.suppress(TypeError):  # a list, say
            ticket.trained_on = weakref.ref(X)
    with guard(fit.run, "begin of a fit"):
        fit.watch(instance, listening=True)
    return fit


def _record_data(run: Run, X: Any, y: Any, prefix: str = "") -> None:
    run.log_data(X, f"{prefix}X", compare=not prefix)  # parts of folds are compared as such
    if y is not None:
        run.log_data(y, f"{prefix}y")


def _record_fold(place: Place, X: Any, y: Any) -> None:
    """Record the data of a cross-validation that is a function, which shows only folds.

    What two folds of k are trained on is together all that there is.
    """
    fold = (place.context or {}).get("fold", _TOLD_FOLDS)
    if fold < _TOLD_FOLDS and is_small(X):
        _record_data(place.run, X, y, f"fold-{fold}.")


def _find_fit(
    instance: Any, ticket: Ticket | None, current: Fit | None, method: str
) -> tuple[Fit | None, bool]:
    if ticket is None:
        return (current.child(type(instance).__name__) if current else None), False
    if ticket.place is not None:
        if ticket.fold is not None:
            ticket.scored = ticket.place
        return Fit(ticket.place), False
    parent = current or ticket.parent
    if parent is not None and parent.is_open:
        return parent.child(ticket.name), False
    if ticket.session is None:
        return None, False
    return _find_outermost(instance, ticket, ticket.session, method)


def _find_outermost(
    instance: Any, ticket: Ticket, session: Session, method: str
) -> tuple[Fit | None, bool]:
    if ticket.fold is not None:
        ticket.scored = session.fold_place(instance, ticket.fold)
        return Fit(ticket.scored), False
    if method == "partial_fit" and ticket.ongoing is not None:
        ticket.ongoing[0].again()
        return ticket.ongoing[0], False
    place, owned = session.open()
    if isinstance(place.run, InertRun):
        return None, False
    fit = Fit(place, owns_run=owned, recording=session.recording)
    ticket.scored = fit.place
    if method == "partial_fit":
        fit.owns_run = False  # it ends with the block
        fit.goes_on = True
        ticket.ongoing = fit, owned
    return fit, True


def _leave(
    fit: Fit, ticket: Ticket | None, instance: Any, result: Any, error: BaseException | None
) -> None:
    started = perf_counter()
    try:
        if error is None and result is not instance:
            fit.produced(result)
        fit.end(instance, error)
    except Exception as problem:
        _report(ticket, problem)
    finally:
        fit.stop_observing()
        _took(ticket, started)


def _took(ticket: Ticket | None, started: float) -> None:
    if ticket is not None and ticket.session is not None:
        ticket.session.recording.took(started)


def _observe_search(instance: Any, method: Any, args: Any, kwargs: Any) -> Any:
    fit = _current.get()
    if fit is not None and fit.search is not None and fit.subject() is instance and args:
        args = (fit.search.watch(args[0], instance), *args[1:])
    return method(*args, **kwargs)


def _observe_score(instance: Any, method: Any, args: Any, kwargs: Any) -> Any:
    result = method(*args, **kwargs)
    ticket = _tickets.get(id(instance))
    if ticket is not None:
        _compare_scored(ticket, args[0] if args else kwargs.get("X"))
    if ticket is not None and ticket.scored is not None and _current.get() is None:
        place = ticket.scored
        with guard(place.run, "score"):
            X = args[0] if args else kwargs.get("X")
            phase = "train" if X is not None and X is ticket.trained_on() else "test"
            step = (place.context or {}).get("fold", 0)
            context = {**(place.context or {}), "phase": phase}
            place.run.log({"score": float(result)}, step=step, context=context)
    return result


def _compare_scored(ticket: Ticket, X: Any) -> None:
    """Look for the rows of a score among those of the fit; of the first few scores."""
    place = ticket.scored or ticket.place
    if ticket.compared == _MOST_SCORES or place is None or X is None or X is ticket.trained_on():
        return
    ticket.compared += 1
    with guard(place.run, "score"):
        if "fold" in (place.context or {}):
            compare_fold(place, X, "test")
        else:
            place.run.compare_rows(X, "test", role="watched")


def _report(ticket: Ticket | None, error: Exception) -> None:
    if ticket is not None and ticket.session is not None:
        ticket.session.recording.problem(error, "track")
    else:
        warn_once(f"track: {type(error).__name__}: {error}")


_OBSERVERS: Mapping[str, Observer] = {
    "fit": _observe_fit,
    "fit_transform": _observe_fit,
    "fit_predict": _observe_fit,
    "partial_fit": _observe_fit,
    "score": _observe_score,
    "_run_search": _observe_search,
}


@functools.cache
def _observed_class(base: type) -> type:
    made = observed_class(base, _OBSERVERS, _clone)
    register(made, _reduce_for_worker)
    return made
