"""How far long work has got, for a person who waits."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tachograph.cli.render import size


@contextlib.contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Draw a bar for each kind of thing, on the terminal where stderr is one.

    Yields
    ------
    callable
        To be told what, how many are done, and of how many; of 'records' a number, else bytes.
    """
    console = Console(stderr=True)
    columns = ("{task.description}", "{task.fields[amount]}", "{task.fields[rate]}")
    what, amount, rate = map(TextColumn, columns)
    bars = (what, BarColumn(), amount, rate, TimeElapsedColumn())
    with Progress(
        *bars, transient=True, disable=not sys.stderr.isatty(), console=console
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, amount="", rate="")
            task = progress.tasks[tasks[what]]
            speed = task.speed
            progress.update(
                task.id,
                completed=done,
                total=total,
                amount=f"{_said(what, done)} of {_said(what, total)}",
                rate="" if speed is None else f"{_said(what, round(speed))}/s",
            )

        yield show


def _said(what: str, count: int) -> str:
    return f"{count:,}" if what == "records" else size(count)
