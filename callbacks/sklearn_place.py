"""Where a fit is recorded: its run, and its context in that run. Knows runs only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tachograph.callbacks.sklearn_tensors import Settings
from tachograph.run import Run


@contextlib.contextmanager
def guard(run: Run, where: str) -> Iterator[None]:
    """Keep what goes wrong in recording from the training."""
    try:
        yield
    except Exception as error:
        run.report_problem(error, f"SklearnCallback, {where}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fit is recorded. Pickles, so that a worker process records there too.

    Attributes
    ----------
    run : Run
    context : mapping or None
        Inside a fold fits are told apart by the context of their metrics, because a run for
        each step of each fold of each candidate would be more than anybody can look at.
        Elsewhere None, and each step has a run.
    settings : Settings
        What to record of tensors.
    """

    run: Run
    context: Mapping[str, Any] | None = None
    settings: Settings = Settings()  # noqa: RUF009 - frozen

    def below(self, name: str) -> Place:
        """The place of a step inside a fold."""
        outer = self.context or {}
        path = f"{outer['step']}/{name}" if "step" in outer else name
        return replace(self, context={**outer, "step": path})

    def at(self, run: Run, context: Mapping[str, Any] | None = None) -> Place:
        """The place of a part that has a run of its own."""
        return replace(self, run=run, context=context)
