"""Writes one batch again and again, each time into a new store, and is killed at another point.

Usage: python parquet_crashes.py FOLDER. Prints the number of stores, one per point.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tachograph.backends.parquet import ParquetBackend
from tachograph.records import Batch
from tachograph.testing import make_batch, make_block


def crash_batch(first: int, next_: int) -> Batch:
    """Records of three runs under two roots, in every kind of table; record n says so."""
    seqs = range(first, next_)
    blocks = [
        make_block(run, {"loss": [float(n) for n in part], "acc": [0.5] * len(part)}, seqs=part)
        for i, run in enumerate(("a", "child", "stray"))
        if (part := [n for n in seqs if n % 3 == i])
    ]
    rows: dict[str, list[dict[str, Any]]] = {
        "events": [{"run_id": "ac"[n % 2] + "hild" * (n % 2), "seq": n} for n in seqs],
        "tensors": [{"run_id": "a", "name": "w", "seq": n} for n in seqs if n % 10 == 0],
        "tags": [{"run_id": "a", "key": str(n), "value": "x", "seq": n} for n in seqs],
    }
    if first == 0:
        rows["runs"] = [
            {"run_id": "a", "root_id": "a", "seq": 0},
            {"run_id": "child", "root_id": "a", "seq": 1},
        ]
    return make_batch("w", first, next_, blocks=blocks, **rows)


def killed_write(url: str, point: int) -> bool:
    """Write in a child that kills itself at its `point`-th rename; whether it was killed."""
    child = os.fork()
    if child == 0:
        backend = ParquetBackend(url)
        rename = os.replace
        left = [point]

        def replace(source: Any, target: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace
        backend.write(crash_batch(0, 100))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main(folder: Path) -> None:
    """Make store after store until the batch is written whole."""
    point, killed = 0, True
    while killed:
        point += 1
        url = f"parquet:///{folder}/{point}"
        ParquetBackend(url, create=True).close()
        killed = killed_write(url, point)
    print(point)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
