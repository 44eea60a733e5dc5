"""What is known of an Optuna study and of a trial, as plain facts. Knows no run."""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
import uuid
from collections.abc import Mapping
from types import FrameType
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

STATUSES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: None,
}
"""The status of a trial's run; one that waits has none yet."""

_LINEAGE = ("fixed_params", "failed_trial", "retry_history")
_OPTIMIZE = ("n_trials", "timeout", "n_jobs", "catch", "gc_after_trial")
_LOOP = "optuna.study._optimize"
_NEAR = 12  # frames between a hook and the loop that called it


# ---------------------------------------------------------------------------- the study


def is_shared(study: Study) -> bool:
    """Whether other processes may see the study: its storage is not this process's memory."""
    return not isinstance(study._storage, InMemoryStorage)


def new_study_id(study: Study) -> str:
    """A UUIDv7 for a study that has no id, the same in all processes that start on it together.

    It follows from the start of the first trial, which is one instant in all of them.
    """
    first = started(study)
    if first is None:
        first = datetime.datetime.now()
    text = f"{study.study_name}\0{first.isoformat()}"
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:10], "big")
    milliseconds = int(first.replace(tzinfo=datetime.UTC).timestamp() * 1000)
    value = (milliseconds & (1 << 48) - 1) << 80 | digest
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def started(study: Study) -> datetime.datetime | None:
    """When the first trial started; None where none has."""
    for trial in study.get_trials(deepcopy=False)[:1]:
        return trial.datetime_start
    return None


def study_params(study: Study) -> dict[str, Any]:
    """Everything that decides what a study does."""
    return {
        "study_name": study.study_name,
        "directions": [direction.name.lower() for direction in study.directions],
        "metric_names": metric_names(study),
        "sampler": settings(study.sampler),
        "pruner": settings(study.pruner),
        "storage": storage(study),
    }


def metric_names(study: Study) -> list[str]:
    """A name per objective: those that the user set, else `value`, or `value_0` and so on."""
    if named := study.metric_names:
        return list(named)
    count = len(study.directions)
    return ["value"] if count == 1 else [f"value_{i}" for i in range(count)]


def results(study: Study) -> dict[str, list[Any]]:
    """State, params and values of each trial, by its number."""
    return {
        str(trial.number): [trial.state.name, sorted(trial.params.items()), trial.values]
        for trial in study.get_trials(deepcopy=False)
    }


def settings(thing: Any) -> dict[str, Any]:
    """Class of a sampler or pruner, and those of its attributes that are plain values."""
    plain: dict[str, Any] = {
        name.lstrip("_"): value
        for name, value in vars(thing).items()
        if value is None or isinstance(value, bool | int | float | str)
    }
    for value in vars(thing).values():  # TPE keeps its settings in a named tuple
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            plain |= {name: kept for name, kept in value._asdict().items() if not callable(kept)}
    return {"class": _class_name(thing)} | plain


def random_state(sampler: Any) -> dict[str, Any] | None:
    """The state of a sampler's random numbers; None where it has none, or none yet.

    Looked at, never made: a state that is made on first use is left to the sampler.
    """
    state = getattr(getattr(sampler, "_rng", None), "_rng", None)
    if state is None:
        return None
    algorithm, words, position, *_ = state.get_state()
    return {
        "algorithm": algorithm,
        "position": int(position),
        "first_word": int(words[0]),  # the seed, before the first use
        "sha256": hashlib.sha256(words.tobytes()).hexdigest(),
    }


def storage(study: Study) -> dict[str, Any]:
    """Class of the storage, and where it is; passwords are taken out where it is recorded."""
    inner = getattr(study._storage, "_backend", study._storage)  # behind the cache of RDBStorage
    url = getattr(inner, "url", None) or getattr(inner, "_file_path", None)
    kept = study._storage if hasattr(inner, "_file_path") else inner  # of a journal, the storage
    return {"class": _class_name(kept)} | ({} if url is None else {"url": str(url)})


def _class_name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


# ---------------------------------------------------------------------------- the loop


def progress_bar(study: Study) -> Any:
    """The progress bar of the call of `optimize` that this hook runs in; None where it does not.

    Shown or not, each call has one, and closes it as its last act, whatever happened.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_NEAR):
        if frame is None:
            break
        if _is_loop(frame, "_optimize_sequential") and frame.f_locals.get("study") is study:
            return frame.f_locals.get("progress_bar")
        frame = frame.f_back
    return None


def optimize_arguments(bar: Any) -> dict[str, Any]:
    """What `optimize` was called with, found in whichever thread called it."""
    for frame in sys._current_frames().values():
        caller: FrameType | None = frame
        while caller is not None:
            if _is_loop(caller, "_optimize") and caller.f_locals.get("progress_bar") is bar:
                found = caller.f_locals
                return {name: _plain(found[name]) for name in _OPTIMIZE if name in found}
            caller = caller.f_back
    return {}


def ended_by(error: BaseException | None, bar: Any) -> tuple[BaseException | None, int | None]:
    """The exception if it ended that call of `optimize`, and the number of the trial it was in."""
    trace = None if error is None else error.__traceback__
    ours, number = False, None
    while trace is not None:
        frame = trace.tb_frame
        ours = ours or (_is_loop(frame, "_optimize") and frame.f_locals.get("progress_bar") is bar)
        if ours and number is None and _is_loop(frame, "_run_trial"):
            trial = frame.f_locals.get("trial")
            number = None if trial is None else trial.number
        trace = trace.tb_next
    return (error, number) if ours else (None, None)


def _is_loop(frame: FrameType, function: str) -> bool:
    return frame.f_code.co_name == function and frame.f_globals.get("__name__") == _LOOP


def _plain(value: Any) -> Any:
    return [kind.__qualname__ for kind in value] if isinstance(value, tuple) else value


# ---------------------------------------------------------------------------- a trial


def microseconds(moment: datetime.datetime | None) -> int | None:
    """An instant as the tables hold it; Optuna's are in local time."""
    return None if moment is None else int(moment.timestamp() * 1_000_000)


def constraints(trial: FrozenTrial) -> dict[str, float]:
    """Name to value; not above zero where it holds. Optuna 4 numbers them."""
    known = getattr(trial, "constraints", None)
    if known is None:
        known = dict(enumerate(trial.system_attrs.get("constraints") or ()))
    return {str(name): float(value) for name, value in known.items()}


def lineage(trial: FrozenTrial) -> dict[str, Any]:
    """Whether it was enqueued, with what, and which trial it tries again."""
    attributes = trial.system_attrs
    return {name: attributes[name] for name in _LINEAGE if name in attributes}


def tags(trial: FrozenTrial) -> dict[str, str]:
    """What a trial is found by."""
    found = {"trial_state": trial.state.name}
    if "fixed_params" in trial.system_attrs:
        found["enqueued"] = ""
    if "failed_trial" in trial.system_attrs:
        found["retry_of"] = str(trial.system_attrs["failed_trial"])
    return found


def distributions(known: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Name to distribution, as Optuna writes them."""
    return {name: _distribution(one) for name, one in known.items()}


def _distribution(one: BaseDistribution) -> Any:
    try:
        return json.loads(distribution_to_json(one))
    except (TypeError, ValueError):  # choices that JSON does not have
        return {"name": type(one).__name__, "attributes": dict(vars(one))}
