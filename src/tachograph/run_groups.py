"""The group of a run, worked out once all that it depends on has been recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tachograph.grouping import group_id

if TYPE_CHECKING:
    from tachograph.run import Run

_ROWS = 500  # of one record


def record_group(run: Run) -> None:
    """Record the group of a run that has ended, and those of its parts; runs in the background.

    A part waits for the outermost run, whose code is known as a whole only at its end. A part
    whose parent is in another process has no group.
    """
    outermost = run
    while outermost.parent is not None:
        outermost = outermost.parent
    own = run.gathered.own(run.kind)
    if outermost is not run:
        if own is not None:
            outermost.gathered.parts[run.run_id] = own
        if outermost.gathered.is_complete:
            _record_parts(outermost)
    elif run.parent_id is None:
        run.gathered.is_complete = True
        if own is not None:
            run.record_rows("runs", {"group_id": group_id(run.gathered.code(), own)})
        _record_parts(run)


def _record_parts(run: Run) -> None:
    if not run.gathered.parts:
        return
    around = run.gathered.around()
    rows = [
        {"run_id": part, "group_id": group_id(around, own)}
        for part, own in run.gathered.parts.items()
    ]
    run.gathered.parts.clear()
    for start in range(0, len(rows), _ROWS):
        run.record_rows("runs", *rows[start : start + _ROWS])
