"""What all benchmarks share: fresh processes, repeats in turn, medians, lines of results."""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Figures = dict[str, float]
"""What one measurement found, by name."""

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a table; `met` is None where there is no target."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How thorough to be: repeats of each measurement, and sizes for a first look."""

    repeats: int = 5
    quick: bool = False


class Subject(Protocol):
    """A module of this folder: its docstring is the title of its table."""

    __doc__: str | None

    def results(self, options: Options) -> Iterator[Result]:
        """Measure, and yield the lines of the table."""
        ...


# ---------------------------------------------------------------------------- lines


def at_most(what: str, value: float, limit: float, unit: str, note: str = "") -> Result:
    """A line for a figure that should be small."""
    return Result(what, _shown(value, unit, note), f"<= {limit:.4g} {unit}", value <= limit)


def at_least(what: str, value: float, limit: float, unit: str, note: str = "") -> Result:
    """A line for a figure that should be large."""
    return Result(what, _shown(value, unit, note), f">= {limit:.4g} {unit}", value >= limit)


def for_information(what: str, value: float, unit: str, note: str = "") -> Result:
    """A line for a figure without a target."""
    return Result(what, _shown(value, unit, note))


def _shown(value: float, unit: str, note: str) -> str:
    return f"{value:.4g} {unit}" + (f"  ({note})" if note else "")


# ---------------------------------------------------------------------------- processes


def fresh(
    function: Callable[..., Figures], *, cwd: Path | None = None, **arguments: Any
) -> Figures:
    """Call a function of a module of this folder in a process of its own.

    Parameters
    ----------
    function : callable
        Takes and returns what JSON can say.
    cwd : Path, optional
        Where it runs; by default an empty folder that is removed afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="tachograph-bench-") as folder:
        answer = Path(folder, "answer.json")
        work = Path(folder, "work")
        work.mkdir()
        module = Path(function.__code__.co_filename).stem
        command = [sys.executable, __file__, module, function.__name__, json.dumps(arguments)]
        done = subprocess.run(
            [*command, answer],
            cwd=cwd or work,
            env=_environment(folder),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode or not answer.exists():
            raise RuntimeError(f"{module}.{function.__name__} failed:\n{done.stderr[-2000:]}")
        figures: Figures = json.loads(answer.read_text())
        return figures


def _environment(folder: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if "TACHOGRAPH" not in name}
    return kept | {"BENCH_FOLDER": folder, "PYTHONWARNINGS": "ignore"}


def scratch() -> Path:
    """The folder for the files of this measurement."""
    return Path(os.environ["BENCH_FOLDER"])


def in_turn(variants: Mapping[str, Callable[[], Figures]], repeats: int) -> dict[str, Figures]:
    """Measure each variant `repeats` times, in turn and in changing order; medians of each."""
    found: dict[str, list[Figures]] = {name: [] for name in variants}
    names = list(variants)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(variants[name]())
    return {name: medians(many) for name, many in found.items()}


def medians(many: list[Figures]) -> Figures:
    """The median of each figure."""
    return {name: statistics.median(one[name] for one in many) for name in many[0]}


# ---------------------------------------------------------------------------- the machine


def folder_bytes(path: Path) -> int:
    """Bytes of a file, or of all files under a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def clean_folder(name: str) -> Iterator[Path]:
    """An empty folder in `scratch`, removed afterwards."""
    path = scratch() / name
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Busy:
    """How many processors other programs used since this was made; None where nobody says."""

    def __init__(self) -> None:
        self._start = self._used()

    def others(self, seconds: float) -> float | None:
        """Processors that others used on average over `seconds`."""
        used = self._used()
        if self._start is None or used is None or seconds <= 0:
            return None
        return max(0.0, (used - self._start) / seconds)

    @staticmethod
    def _used() -> float | None:
        try:
            line = Path("/proc/stat").read_text().splitlines()[0]
        except OSError:
            return None
        user, nice, system, _, _, hard, soft, *_ = map(int, line.split()[1:])
        total = (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage = resource.getrusage(who)
            total -= usage.ru_utime + usage.ru_stime
        return total


def _answer(module: str, function: str, arguments: str, answer: str) -> None:
    figures = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(figures))


if __name__ == "__main__":
    _answer(*sys.argv[1:])
