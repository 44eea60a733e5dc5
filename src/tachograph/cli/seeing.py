"""The command that looks for runs of the same thing: seen."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from tachograph.cli.options import JsonOption, StoreOption, open_for_reading
from tachograph.cli.render import console, print_json, print_table
from tachograph.comparing import seen as sightings
from tachograph.errors import QueryError


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(seen)


def seen(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run: are there others that differ in nothing but the seed?",
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--command",
            "-c",
            metavar="'train.py …'",
            help="A command: was it run before, whatever the seed, and is its code the same now?",
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether the same was run before: the same code, data and configuration."""
    if (run is None) == (command is None):
        raise QueryError("name a run, or a command with --command")
    with open_for_reading(store) as opened:
        if run is not None:
            found = sightings.same_training(opened, run)
        else:
            found = sightings.same_command(opened, shlex.split(command or ""))
    if as_json:
        print_json(found)
    elif len(found):
        print_table(found, found.columns, names={"run_id": "run", "started_at": "started"})
    else:
        what = "no other run is the same" if run is not None else "no run was started like that"
        console().print(what)
