"""Everything that the pages show is typed in, and works; other tools read what it left."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("run_page.py")
RUNNABLE = re.compile(r"^ *```(?:python|console|sql)\n", re.MULTILINE)
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if RUNNABLE.search(page.read_text(encoding="utf-8"))
]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("[!_]*.py"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a reader: no settings of ours, a home of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TACHO")}
    commands = Path(sys.executable).parent
    home = tmp_path / "home"
    home.mkdir()
    return kept | {
        "PATH": f"{commands}{os.pathsep}{kept.get('PATH', '')}",
        "HOME": str(home),
        "XDG_STATE_HOME": str(home),
        "KERAS_BACKEND": "torch",
        "CUDA_VISIBLE_DEVICES": "",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that a reader types in."""
    made = tmp_path / "project"
    made.mkdir()
    return made


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a command to its end; what it printed, which is also the message if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    assert "TachographWarning" not in done.stderr, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page: Path, folder: Path, environment: dict[str, str]) -> None:
    """Python, console and SQL of a page run in order; each example of the README by itself."""
    fresh = ["--fresh"] if page.name == "README.md" else []
    run([sys.executable, str(RUNNER), str(page), *fresh], folder, environment)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: str, folder: Path, environment: dict[str, str]) -> None:
    """Each example records a run that finishes, and says nothing that a user did not ask for."""
    run([sys.executable, "-m", f"tachograph.examples.{example}"], folder, environment)
    with sqlite3.connect(folder / ".tachograph/runs.sqlite") as connection:
        found = connection.execute("select status from runs where parent_id is null").fetchall()
        points = connection.execute("select count(*) from metrics").fetchone()[0]
    assert {status for (status,) in found} == {"finished"}
    assert points > 10


# ---------------------------------------------------------------------------- other tools

LIVE = """
import time, tachograph
settings = {"backend": [STORES], "record": {"system": False}}
with tachograph.start_run(name="live", config=settings) as run:
    step = 0
    while True:
        run.log({"loss": 1 / (step + 1), "even": step % 2}, step=step)
        step += 1
        time.sleep(0.0005)
"""


@pytest.fixture
def live(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A training that goes on while a test reads, into both stores."""
    stores = f'"sqlite:///{folder}/runs.sqlite", "parquet:///{folder}/runs"'
    code = LIVE.replace("STORES", stores)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment)
    yield
    assert process.poll() is None, "the training ended while it was read"
    process.kill()
    process.wait()


def wait_for(path: Path, pattern: str) -> None:
    """Wait until a file of that pattern is there."""
    deadline = time.monotonic() + 60
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("live")
def test_other_tools_read_while_a_training_writes(folder: Path) -> None:
    """sqlite3, pandas, DuckDB and Polars read both stores by themselves, and never half a batch."""
    duckdb, pandas, polars = (pytest.importorskip(name) for name in ("duckdb", "pandas", "polars"))
    store = folder / "runs"
    wait_for(store / "metrics", "root_id=*/*-*-*.parquet")

    pairs = "select name, count(*) from metrics group by name order by name"
    seen = 0
    for _ in range(20):
        with sqlite3.connect(f"file:{folder}/runs.sqlite?mode=ro", uri=True) as connection:
            (_, even), (_, loss) = connection.execute(pairs).fetchall()
            frame = pandas.read_sql("select status from runs", connection)
        connection.close()
        assert even == loss >= seen
        assert list(frame["status"]) == ["running"]
        seen = loss
        time.sleep(0.1)
    assert seen > 100

    before = Path.cwd()
    os.chdir(store)  # as `cd runs && duckdb -init views.sql` does
    try:
        with duckdb.connect() as engine:
            engine.execute(Path("views.sql").read_text(encoding="utf-8"))
            (_, even), (_, loss) = engine.execute(pairs).fetchall()
    finally:
        os.chdir(before)
    assert even == loss > 100
    points = polars.read_parquet(f"{store}/metrics/**/*.parquet")
    assert set(points["name"]) == {"loss", "even"}


@pytest.mark.slow
def test_the_sqlite3_command_reads_it(folder: Path, environment: dict[str, str]) -> None:
    """The views need nothing that the plain command does not have."""
    from shutil import which

    if which("sqlite3") is None:
        pytest.skip("there is no sqlite3 command here")
    run([sys.executable, "-m", "tachograph.examples.plain_loop"], folder, environment)
    query = "select name, (context ->> 'phase') is null, count(*) from metrics group by 1, 2"
    found = run(["sqlite3", ".tachograph/runs.sqlite", query], folder, environment)
    assert "loss|1|60" in found
