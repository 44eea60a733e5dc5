"""The commands together, their common options, and what errors look like."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tachograph import __version__
from tachograph.cli import (
    demo,
    editing,
    exporting,
    keeping,
    login,
    plotting,
    reading,
    reproducing,
    restoring,
    seeing,
    sending,
    serving,
    tailing,
    tensors,
)
from tachograph.cli.render import spare_letters
from tachograph.errors import TachographError

app = typer.Typer(
    name="tachograph",
    help="Look at recorded runs, compare them, and look after the stores that hold them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (
    *(reading, tailing, seeing, restoring, reproducing),
    *(tensors, plotting, exporting),
    *(editing, sending, keeping, serving, login, demo),
):
    group.register(app)


def _list_in_full(commands: typer.Typer) -> None:
    """Let a list of commands say what each does to the end, not its first few words."""
    for command in commands.registered_commands:
        command.short_help = (inspect.getdoc(command.callback) or "").partition("\n\n")[0]
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _list_in_full(group.typer_instance)


_list_in_full(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tachograph {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Look at recorded runs, compare them, and look after the stores that hold them."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    spare_letters()
    try:
        app(args=None if arguments is None else list(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except TachographError as error:
        print(f"tachograph: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # such as a folder that is not this user's
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"tachograph: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tachograph: interrupted", file=sys.stderr)
        return 130
    return 0
