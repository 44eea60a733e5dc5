"""How long a program waits until it has a run: the import, the first start, later ones.

CPU is that of the waiting thread: on a busy machine it tells what the wait would be on a quiet
one, where no disk is waited for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, Figures, Options, Result, at_most, for_information, medians

LATER = 20
_PROGRAM = f"""
import sys, time
def timed(work):
    wall, cpu = time.perf_counter(), time.thread_time()
    result = work()
    return result, 1e3 * (time.perf_counter() - wall), 1e3 * (time.thread_time() - cpu)
def load():
    import tachograph
    return tachograph
def log(run):
    run.log({{"loss": 1.0}}, 0)
tachograph, *imported = timed(load)
start = lambda: tachograph.start_run(project="bench", params={{"lr": 0.1}}, config=config)
config = {{"backend": sys.argv[1]}}
run, *first = timed(start)
_, *logged = timed(lambda: log(run))
_, *ended = timed(run.finish)
later = []
for _ in range({LATER}):
    run, *one = timed(start)
    later.append(one)
    run.finish()
middle = lambda numbers: sorted(numbers)[len(numbers) // 2]
walls, cpus = zip(*later)
import json
print(json.dumps([imported, first, logged, ended, [middle(walls), middle(cpus)]]))
"""
_NAMES = ("import", "first", "log", "finish", "later")


def measure(scheme: str) -> Figures:
    """One program, run in the folder of this project: a working tree with a history."""
    with tempfile.TemporaryDirectory(prefix="tachograph-bench-") as folder:
        url = f"{scheme}:///{Path(folder, 'runs')}" + (".sqlite" if scheme == "sqlite" else "")
        command = [sys.executable, "-c", _PROGRAM, url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    figures: Figures = {}
    for name, (wall, cpu) in zip(_NAMES, json.loads(done.stdout), strict=True):
        figures |= {name: wall, f"{name}_cpu": cpu}
    return figures


def results(options: Options) -> Iterator[Result]:
    """The same program with either store."""
    found = {scheme: [] for scheme in ("sqlite", "parquet")}  # type: dict[str, list[Figures]]
    for _ in range(options.repeats if options.quick else 3 * options.repeats):
        for scheme, many in found.items():
            many.append(measure(scheme))
    for scheme, many in found.items():
        figures = medians(many)

        def note(name: str, figures: Figures = figures) -> str:
            return f"CPU {figures[f'{name}_cpu']:.3g}"

        if scheme == "sqlite":
            yield at_most("import tachograph", figures["import"], 50, "ms", note("import"))
        what = f"{scheme}: first start_run, with what it imports"
        yield at_most(what, figures["first"], 50, "ms", note("first"))
        yield at_most(f"{scheme}: later start_run", figures["later"], 2, "ms", note("later"))
        yield for_information(f"{scheme}: first log", figures["log"], "ms", note("log"))
        what = f"{scheme}: first finish, until all is stored"
        yield for_information(what, figures["finish"], "ms", note("finish"))
