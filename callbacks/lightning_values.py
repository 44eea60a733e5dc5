"""The metric values of a Lightning Trainer: which are new, their names, their way into a run.

Knows metric dictionaries and tensors by what they can do; imports no framework.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tachograph.callbacks.tensors_torch import Flight, send
from tachograph.run import Run

Where = tuple[int, float, str]
"""Step, epoch and phase of some values."""

_TRAIN = {"phase": "train"}
_DATALOADER = "/dataloader_idx_"


@functools.lru_cache(maxsize=4096)
def split_name(name: str) -> tuple[str, int | None]:
    """Name and dataloader of a metric: ``loss/dataloader_idx_1`` is loss of dataloader 1."""
    base, found, index = name.rpartition(_DATALOADER)
    return (base, int(index)) if found and index.isdecimal() else (name, None)


@functools.lru_cache(maxsize=4096)
def _forks(name: str) -> tuple[str, str]:
    base, found, index = name.rpartition(_DATALOADER)
    end = found + index if found else ""
    base = base if found else name
    return f"{base}_step{end}", f"{base}_epoch{end}"


class NewValues:
    """Finds the values in a Trainer's dictionary of metrics that were not there at the last look.

    A value that Lightning shows again is another tensor on the same memory. Each value is kept
    until it is replaced, so that its memory cannot be another's.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}

    def take(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The new values, without a ``loss`` that only repeats ``loss_step`` or ``loss_epoch``."""
        seen, new = self._seen, {}
        for name, value in metrics.items():
            old = seen.get(name)
            if old is not None and (old is value or old.data_ptr() == value.data_ptr()):
                continue
            seen[name] = value.detach() if value.requires_grad else value
            step, epoch = _forks(name)
            if metrics.get(step) is not value and metrics.get(epoch) is not value:
                new[name] = seen[name]
        return new

    def clear(self) -> None:
        """Forget all values."""
        self._seen.clear()


class Points:
    """Records values into a run; those on an accelerator when they have arrived from there."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._device = DeviceValues()

    def log(self, values: Mapping[str, Any], where: Where) -> None:
        """Record numbers and tensors of one element; no device is waited for."""
        here: dict[str, float] = {}
        away: dict[str, Any] = {}
        for name, value in values.items():
            if value.__class__ is float:
                here[name] = value
            elif value.is_cpu:
                here[name] = float(value)
            else:
                away[name] = value
        if here:
            self._record(here, where)
        if away:
            self._device.put(where, away)
        if self._device:
            self.arrive(wait=False)

    def arrive(self, *, wait: bool) -> None:
        """Record what has arrived from devices; all that is on its way with `wait`."""
        for where, values in self._device.arrived(wait=wait):
            self._record(values, where)

    def _record(self, values: Mapping[str, float], where: Where) -> None:
        step, epoch, phase = where
        if phase == "train":  # where Lightning tells no loaders apart
            self._run.log(values, step, epoch=epoch, context=_TRAIN)
            return
        by_loader: dict[int | None, dict[str, float]] = {}
        for full_name, value in values.items():
            name, loader = split_name(full_name)
            by_loader.setdefault(loader, {})[name] = value
        for loader, group in by_loader.items():
            context = {"phase": phase} if loader is None else {"phase": phase, "dataloader": loader}
            self._run.log(group, step, epoch=epoch, context=context)


class _Sent(NamedTuple):
    where: Where
    names: Sequence[str]
    flight: Flight


@dataclass(slots=True)
class DeviceValues:
    """Values on their way from an accelerator to the host, which never waits for them.

    They are gathered in one copy per step, and read when the device has passed it.
    """

    _waiting: deque[_Sent] = field(default_factory=deque)

    def put(self, where: Where, values: Mapping[str, Any]) -> None:
        """Send tensors off."""
        by_device: dict[Any, dict[str, Any]] = {}
        for name, value in values.items():
            by_device.setdefault(value.device, {})[name] = value.detach()
        for group in by_device.values():
            self._waiting.append(_Sent(where, tuple(group), send(_stacked(list(group.values())))))

    def __len__(self) -> int:
        return len(self._waiting)

    def arrived(self, *, wait: bool = False) -> Iterator[tuple[Where, dict[str, float]]]:
        """Values that are on the host by now; all of them with `wait`."""
        waiting = self._waiting
        while waiting and (wait or waiting[0].flight.has_arrived(behind=len(waiting) - 1)):
            where, names, flight = waiting.popleft()
            yield where, dict(zip(names, flight.wait().tolist(), strict=True))


def _stacked(values: list[Any]) -> Any:
    torch = sys.modules["torch"]
    wide = torch.float64 if any(value.dtype == torch.float64 for value in values) else torch.float32
    return torch.stack([value.reshape(()).to(wide) for value in values])


def synchronised_names(results: Any) -> set[str]:
    """Names of the metrics in a loop's results that are the same on all ranks.

    What cannot be known counts as different: it is recorded by each rank under its own number.
    """
    names: set[str] = set()
    with contextlib.suppress(AttributeError, TypeError):
        for metric in results.values():
            meta = metric.meta
            if meta.sync.should:
                names |= {meta.name, meta.forked_name(True)}
            if meta.sync.should or not metric.is_tensor:  # torchmetrics reduce what they compute
                names.add(meta.forked_name(False))
    return names


@functools.lru_cache(maxsize=4096)
def _rate_name(optimizer: int | None, group: int | str | None) -> str:
    name = "lr" if optimizer is None else f"lr/optimizer_{optimizer}"
    if group is None:
        return name
    return f"{name}/{group}" if isinstance(group, str) else f"{name}/group_{group}"


def learning_rates(optimizers: Sequence[Any]) -> dict[str, Any]:
    """The present learning rate of each group of parameters.

    It is ``lr`` where there is one, else ``lr/optimizer_0``, ``lr/group_1``,
    ``lr/optimizer_0/group_1``, or the group's own name.
    """
    rates: dict[str, Any] = {}
    several = len(optimizers) > 1
    for number, optimizer in enumerate(optimizers):
        groups = optimizer.param_groups
        for index, group in enumerate(groups):
            rate = group.get("lr")
            if rate is None:
                continue
            label = group.get("name", index) if len(groups) > 1 else None
            name = _rate_name(number if several else None, label)
            if rate.__class__ is float:
                rates[name] = rate
            else:
                rates[name] = rate.detach().clone() if hasattr(rate, "detach") else float(rate)
    return rates
