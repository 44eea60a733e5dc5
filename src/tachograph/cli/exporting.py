"""Commands that write files of what was recorded: export."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from tachograph.cli.options import RunArgument, StoreOption, open_for_reading
from tachograph.cli.render import console
from tachograph.errors import QueryError
from tachograph.restoring import environments


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(export)


def export(
    run: RunArgument,
    environment: Annotated[
        str,
        typer.Option(
            "--environment",
            "-e",
            metavar="FORMAT",
            help=f"The environment as a file for: {', '.join(environments.FORMATS)}.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there; not over a file."),
    ] = None,
    lock: Annotated[
        bool,
        typer.Option(
            "--lock", help="With --environment uv and --output: have uv make uv.lock beside it."
        ),
    ] = False,
    store: StoreOption = None,
) -> None:
    """Write the environment of a run as a file that makes it again."""
    if lock and (environment != "uv" or output is None or output.name != "pyproject.toml"):
        raise QueryError("--lock needs --environment uv and --output FOLDER/pyproject.toml")
    with open_for_reading(store) as opened:
        text = environments.export(opened.run(run).provenance, environment)
    if output is None:
        print(text, end="")
        return
    try:
        with output.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise QueryError(f"{output} cannot be written: {error.strerror}") from error
    console().print(f"wrote {output}")
    if lock:
        _lock(output.parent)


def _lock(folder: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        raise QueryError("uv is not installed; see https://docs.astral.sh/uv")
    done = subprocess.run([uv, "lock", "--project", str(folder)], check=False)
    if done.returncode != 0:
        raise QueryError(f"uv lock failed in {folder}; {folder / 'pyproject.toml'} is there")
    console().print(f"wrote {folder / 'uv.lock'}")
