"""The command `demo`: five real trainings, recorded, and what to do with their record."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tachograph.cli import comparing, curves, reading
from tachograph.cli.render import console, rule
from tachograph.comparing import comparison
from tachograph.query import Store, open_store

TRAININGS = {
    "lightning_digits": "PyTorch Lightning: a network that reads digits",
    "keras_breast_cancer": "Keras: a network that tells tumours apart",
    "xgboost_diabetes": "XGBoost: trees on diabetes, stopped early",
    "sklearn_grid_search": "scikit-learn: a pipeline in a grid search, two processes",
    "optuna_study": "Optuna: twelve trials that each train a model",
}
_CONFIG = """\
# Where the demonstration's runs are kept. Change the backend to "parquet:///runs" and run it again.
project = "demo"
backend = "sqlite:///runs.sqlite"
"""

_COMMANDS = (
    ("tachograph runs --children", "every trial, candidate and step"),
    ("tachograph show latest", "all about the newest run"),
    ('tachograph plot "digits, two layers" --layers', "gradients of each layer by step"),
    ('tachograph runs -w "params.max_depth <= 3" --children', "runs by a filter"),
    ('sqlite3 runs.sqlite "select name, count(*) from metrics group by name"', "plain SQL"),
    ("tachograph copy runs.sqlite parquet:///runs", "the same as Parquet, proven equal"),
)


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(demo)


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder to record into; made if absent.")
    ] = Path("tachograph-demo"),
) -> None:
    """Record five real trainings, one per framework, and look at them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "tachograph.toml"
    if not config.exists():
        config.write_text(_CONFIG)
    before = time.time()
    failed = [name for name in TRAININGS if not _train(name, folder)]
    with open_store(config=config) as store:
        _look(store, int(before * 1e6))
        where = store.url
    _next(folder, where)
    if failed:
        raise typer.Exit(1)


def _train(name: str, folder: Path) -> bool:
    out, start = console(), time.monotonic()
    out.print(Text(TRAININGS[name], style="bold"), "… ", end="")
    command = [sys.executable, "-m", f"tachograph.examples.{name}"]
    environment = {"KERAS_BACKEND": "torch"} | dict(os.environ)
    environment.pop("TACHOGRAPH_CONFIG", None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        out.print(f"failed: {lines[-1] if lines else done.returncode}", style="red")
        if "No module named" in done.stderr:
            advice = "  install the frameworks with: pip install 'tachograph[all]'"
            out.print(advice, style="dim")
        return False
    out.print(Text("recorded", style="green"), f"in {time.monotonic() - start:.1f} s")
    ours = [line for line in done.stderr.splitlines() if "tachograph: " in line.lower()]
    for line in ours:  # frameworks have much to say that is nobody's concern here
        out.print(f"  {line}", style="dim")
    return True


def _look(store: Store, since: int) -> None:
    rule("The runs")
    reading.print_runs(store, where=f"started_at >= {since}")
    trials = store.runs(
        f"kind == 'trial' and status == 'finished' and started_at >= {since}",
        columns=["run_id", "metrics.value"],
        sort="metrics.value",
        children=True,
        limit=3,
    )
    if len(trials) > 1:
        rule("The best trials of the study, side by side")
        comparing.print_comparison(
            comparison.compare(store, list(trials["run_id"])), everything=False
        )
    networks = store.runs(
        f"framework like 'lightning%' and started_at >= {since}", columns=["run_id"], limit=1
    )
    for row in networks:
        rule("A learning curve")
        curves.draw(curves.find_curves(store, row["run_id"], ["loss"]))


def _next(folder: Path, where: str) -> None:
    rule("What next")
    out = console()
    out.print(f"The record lies in {where}, plain tables for any tool.", soft_wrap=True)
    for command, meaning in ((f"cd {shlex.quote(str(folder))}", "to the record"), *_COMMANDS):
        out.print(f"# {meaning}", style="dim")
        out.print(_typed(command), style="cyan", soft_wrap=True)


def _typed(command: str) -> str:
    """As it must be typed: with the way to the command, where a shell would not find it."""
    if not command.startswith("tachograph ") or shutil.which("tachograph"):
        return command
    return command.replace("tachograph", str(Path(sys.argv[0]).absolute()), 1)
