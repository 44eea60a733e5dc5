"""Commands that change what is said of a run: tag, note, edit, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from tachograph.cli.options import JsonOption, RunArgument, StoreOption, open_for_reading
from tachograph.cli.render import counted, print_json
from tachograph.errors import QueryError

_COLUMNS = ("name", "project", "description", "hypothesis", "verdict")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (tag, note, edit, delete):
        app.command()(command)


def tag(
    run: RunArgument,
    tags: Annotated[
        list[str], typer.Argument(metavar="TAG[=VALUE]...", help="Tags; '-TAG' takes one away.")
    ],
    store: StoreOption = None,
) -> None:
    """Set tags of a run, or with a leading '-' (after '--') take them away."""
    pairs: dict[str, str | None] = {}
    for text in tags:
        key, _, value = text.partition("=")
        if not key.strip("-"):
            raise QueryError(f"{text!r} names no tag")
        pairs[key.removeprefix("-")] = None if key.startswith("-") else value
    with open_for_reading(store) as opened:
        opened.tag(run, **pairs)


def note(
    run: RunArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to note.")],
    store: StoreOption = None,
) -> None:
    """Add a note to a run."""
    with open_for_reading(store) as opened:
        opened.note(run, text)


def edit(
    run: RunArgument,
    changes: Annotated[
        list[str],
        typer.Argument(metavar="COLUMN=TEXT...", help=f"Of {', '.join(_COLUMNS)}."),
    ],
    store: StoreOption = None,
) -> None:
    """Change the name, project, description, hypothesis or verdict of a run."""
    pairs = [change.partition("=") for change in changes]
    if bare := [key for key, equals, _ in pairs if not equals]:
        raise QueryError(f"{bare[0]}: write COLUMN=TEXT; '{bare[0]}=' empties a column")
    columns = {key: value for key, _, value in pairs}
    if unknown := set(columns) - set(_COLUMNS):
        raise QueryError(
            f"{', '.join(sorted(unknown))} cannot be edited; these can: {', '.join(_COLUMNS)}"
        )
    with open_for_reading(store) as opened:
        opened.update(run, **columns)


def delete(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs to delete.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hide runs with their parts and points; 'gc' frees the space later."""
    with open_for_reading(store) as opened:
        names = [opened.run(name) for name in runs]
        if not yes:
            listed = ", ".join(f"{record.run_id} ({record.name or 'no name'})" for record in names)
            typer.confirm(f"Delete {listed} and all their parts?", abort=True)
        gone = opened.delete(*(record.run_id for record in names))
    if as_json:
        print_json({"deleted": gone})
    else:
        print(f"deleted {counted(len(gone), 'run')}; 'tachograph gc' frees the space")
