"""How long a program waits until it has a run: the import, the first start, later ones.

Also in a repository of many files with many packages installed, where everything about a run
that is not known at once is gathered on the recorder's thread: how long until that is done, and
what it takes. CPU is that of the waiting thread: on a busy machine it tells what the wait would
be on a quiet one, where no disk is waited for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import Figures, Options, Result, at_most, for_information, medians

LATER = 20
TRIALS = 1_000
FEW_FILES, MANY_FILES = 100, 50_000
FILES_A_FOLDER = 100
PACKAGES = 300
_PROGRAM = f"""
import importlib, json, os, sys, time
url, *loaded = sys.argv[1:]
for name in loaded:  # as a program that trains has its framework loaded before it starts a run
    importlib.import_module(name)
def timed(work):
    wall, cpu = time.perf_counter(), time.thread_time()
    result = work()
    return result, 1e3 * (time.perf_counter() - wall), 1e3 * (time.thread_time() - cpu)
def load():
    import tachograph
    return tachograph
def log(run):
    run.log({{"loss": 1.0}}, 0)
def others():  # CPU of other threads, and of git
    times = os.times()
    children = times.children_user + times.children_system
    return time.process_time() - time.thread_time(), children
def settle(run):
    while run._recorder.has_background:
        time.sleep(0.005)
def studied(run):
    for number in range({TRIALS}):
        run.child("trial", f"trial {{number}}", params={{"lr": number}}).finish(wait=False)
tachograph, *imported = timed(load)
start = lambda: tachograph.start_run(project="bench", params={{"lr": 0.1}}, config=config)
config = {{"backend": url, "record": {{"exit_deadline": 60}}}}
run, *first = timed(start)
_, *logged = timed(lambda: log(run))
before = others()
_, settled, _ = timed(lambda: settle(run))
threads, children = (1e3 * (now - then) for now, then in zip(others(), before))
_, *ended = timed(run.finish)
later = []
for _ in range({LATER}):
    run, *one = timed(start)
    later.append(one)
    run.finish()
run = start()
_, *trials = timed(lambda: studied(run))
run.finish()
middle = lambda numbers: sorted(numbers)[len(numbers) // 2]
walls, cpus = zip(*later)
print(json.dumps([imported, first, logged, [settled, threads], [children, children],
                  ended, [middle(walls), middle(cpus)], [took / {TRIALS} for took in trials]]))
"""
_NAMES = ("import", "first", "log", "settled", "git", "finish", "later", "trial")


def measure(
    scheme: str, repository: Path, packages: Path | None, loaded: tuple[str, ...]
) -> Figures:
    """The program of a repository, run there."""
    with tempfile.TemporaryDirectory(prefix="tachograph-bench-") as store:
        url = f"{scheme}:///{Path(store, 'runs')}" + (".sqlite" if scheme == "sqlite" else "")
        done = subprocess.run(
            [sys.executable, "train.py", url, *loaded],
            cwd=repository,
            env=_environment(packages),
            capture_output=True,
            text=True,
            check=True,
        )
    figures: Figures = {}
    for name, (wall, cpu) in zip(_NAMES, json.loads(done.stdout), strict=True):
        figures |= {name: wall, f"{name}_cpu": cpu}
    return figures


def _environment(packages: Path | None) -> dict[str, str]:
    """Modules are kept compiled, as those of an installed package are."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = [str(packages)] if packages else []
    return kept | {"PYTHONPATH": os.pathsep.join([*path, *filter(None, [kept.get("PYTHONPATH")])])}


def results(options: Options) -> Iterator[Result]:
    """Either store in a small repository; one in a large one, without and with a framework."""
    with tempfile.TemporaryDirectory(prefix="tachograph-bench-") as temporary:
        small, large, packages = (Path(temporary, name) for name in ("small", "large", "packages"))
        files = FEW_FILES if options.quick else MANY_FILES
        _make_repository(small, FEW_FILES)
        _make_repository(large, files)
        _make_packages(packages)
        many = f"{files:,} files, {PACKAGES} packages"
        places: dict[str, tuple[str, Path, Path | None, tuple[str, ...]]] = {
            "sqlite": ("sqlite", small, None, ()),
            "parquet": ("parquet", small, None, ()),
            many: ("sqlite", large, packages, ()),
        }
        if importlib.util.find_spec("torch"):
            places[f"{many}, torch loaded"] = ("sqlite", large, packages, ("torch",))
        for place in places.values():
            measure(*place)  # compiles what was changed
        found: dict[str, list[Figures]] = {name: [] for name in places}
        for _ in range(options.repeats if options.quick else 3 * options.repeats):
            for name, place in places.items():
                found[name].append(measure(*place))
    for name, figures in found.items():
        yield from _lines(name, medians(figures))


def _lines(name: str, figures: Figures) -> Iterator[Result]:
    def note(figure: str) -> str:
        return f"CPU {figures[f'{figure}_cpu']:.3g}"

    yield at_most(f"{name}: import tachograph", figures["import"], 50, "ms", note("import"))
    what = f"{name}: first start_run, with what it imports"
    yield at_most(what, figures["first"], 50, "ms", note("first"))
    yield at_most(f"{name}: later start_run", figures["later"], 2, "ms", note("later"))
    yield for_information(f"{name}: a trial of {TRIALS:,}", figures["trial"], "ms", note("trial"))
    yield for_information(f"{name}: first log", figures["log"], "ms", note("log"))
    what = f"{name}: until nothing waits in the background"
    more = f"CPU of its threads {figures['settled_cpu']:.3g}, of git {figures['git']:.3g}"
    yield for_information(what, figures["settled"], "ms", more)
    what = f"{name}: first finish, until all is stored"
    yield for_information(what, figures["finish"], "ms", note("finish"))


# ---------------------------------------------------------------------------- a large place


def _make_repository(folder: Path, files: int) -> None:
    """A repository with one commit, of the program and so many files."""
    for number in range(files):
        inner = folder / f"part{number // FILES_A_FOLDER}"
        if number % FILES_A_FOLDER == 0:
            inner.mkdir(parents=True)
        (inner / f"{number}.txt").write_text(f"{number}\n")
    (folder / "train.py").write_text(_PROGRAM)
    for arguments in (["init"], ["add", "--all"], ["commit", "--message", "all"]):
        author = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        command = ["git", *author, *arguments, *(["--quiet"] if arguments[0] != "add" else [])]
        subprocess.run(command, cwd=folder, check=True)


def _make_packages(folder: Path) -> None:
    """What tells of so many installed packages."""
    for number in range(PACKAGES):
        inner = folder / f"package_{number}-1.{number}.dist-info"
        inner.mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: package-{number}\nVersion: 1.{number}\n\n"
        (inner / "METADATA").write_text(head + "A description.\n" * 500)
        (inner / "INSTALLER").write_text("pip\n")
        (inner / "RECORD").write_text("")
