"""The command that runs a recorded run again and compares: reproduce."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tachograph.cli.options import JsonOption, RunArgument, StoreOption, open_for_reading
from tachograph.cli.render import (
    console,
    context_label,
    print_json,
    print_table,
    section,
    short_digest,
    short_id,
    shown,
    visible,
)
from tachograph.errors import QueryError
from tachograph.reproduction.evidence import Departure
from tachograph.reproduction.reproduce import Prepared, Wishes, fetch, prepare, run_again
from tachograph.reproduction.verdict import (
    DIFFERENT,
    EXACT,
    FAILED,
    STATISTICAL,
    TOLERANCE,
    Verdict,
)

_STYLES = {EXACT: "bold green", STATISTICAL: "bold cyan", DIFFERENT: "bold red", FAILED: "bold red"}
_STDERR = 2  # the file descriptor
_SHOWN = 12  # changes
_LONGEST = 40  # letters of a value


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(reproduce)


def reproduce(
    run: RunArgument,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- ARGUMENT...]",
            help="Behind '--': arguments in place of those that the program was given.",
            show_default=False,
        ),
    ] = None,
    here: Annotated[
        bool,
        typer.Option(
            "--here", help="Use the present environment, not one made of the run's packages."
        ),
    ] = False,
    python: Annotated[
        Path | None,
        typer.Option("--python", metavar="FILE", help="Use the environment of this interpreter."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Restore the code there; new or empty. By default a temporary folder, which is "
            "removed where the results are exact.",
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Keep the temporary folder though the results are the same bit for bit.",
        ),
    ] = False,
    code: Annotated[
        Path | None,
        typer.Option(
            "--code",
            metavar="DIR",
            help="Run the project as it is in this folder instead, such as '.' after a change.",
        ),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(
            "--link",
            metavar="PATH",
            help="Data in the original project, below its top, that the program reads; again for "
            "more. What was recorded with log_data is there by itself.",
        ),
    ] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME=VALUE",
            help="Set an environment variable, or with NAME= take one away; again for more.",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            help="Share by which last values may differ and still count as the same.",
        ),
    ] = TOLERANCE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Run it without asking.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a run again, from its code, and say whether the results are the same.

    Ends with 0 where they are, exactly or statistically, and with 1 where they are not.
    """
    if here and python is not None:
        raise QueryError("--here and --python name two environments; give one")
    if as_json and not yes:
        raise QueryError("--json shows no command that could be agreed to; it needs --yes")
    wishes = Wishes(
        folder=folder or Path(tempfile.mkdtemp(prefix="tachograph-reproduce-")),
        code=code,
        python=Path(sys.executable) if here else python,
        arguments=arguments or None,
        variables=_variables(variables or []),
        link=link or (),
        tolerance=tolerance,
    )
    temporary = None if folder else wishes.folder
    with _tidied(temporary):
        with open_for_reading(store) as opened:
            prepared = prepare(opened, run, wishes)
            if not as_json:
                _print_plan(prepared)
        if not yes:
            _ask()
        known, prepared = _rows(prepared), fetch(prepared)
        if not as_json:
            _print_rows(row for row in _rows(prepared) if row not in known)
    # What the program prints is no part of the document.
    verdict = run_again(prepared, output=_STDERR if as_json else None)
    if verdict.verdict == EXACT and not keep:
        _tidy_up(temporary)
    if as_json:
        stands = str(wishes.folder.absolute()) if wishes.folder.exists() else None
        print_json(verdict.document() | {"run_id": verdict.reproduction, "folder": stands})
    else:
        _print_verdict(verdict)
        if wishes.folder.exists():
            _line("kept in      ", str(wishes.folder))
    if verdict.verdict not in (EXACT, STATISTICAL):
        raise typer.Exit(1)


@contextlib.contextmanager
def _tidied(temporary: Path | None) -> Iterator[None]:
    """Take the temporary folder away where nothing comes to be run in it."""
    try:
        yield
    except BaseException:
        _tidy_up(temporary)
        raise


def _tidy_up(temporary: Path | None) -> None:
    if temporary is not None:
        shutil.rmtree(temporary, ignore_errors=True)


def _variables(given: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise QueryError(f"--env {text}: write NAME=VALUE")
        found[name] = value or None
    return found


def _ask() -> None:
    """Go on only if somebody agrees."""
    if not sys.stdin.isatty():
        raise QueryError("nobody is there to ask: --yes runs the command that is shown above")
    typer.confirm("Run it?", abort=True)


# ---------------------------------------------------------------------------- the page


def _print_plan(prepared: Prepared) -> None:
    record = prepared.record
    name = f" {_visible(record.name)}" if record.name else ""
    section(f"Reproducing {short_id(record.run_id)}{name}")
    _print_rows(_rows(prepared))


def _rows(prepared: Prepared) -> list[tuple[str, str]]:
    """What is to happen, line by line."""
    plan = prepared.plan
    rows = [("runs", plan.text), ("in", str(plan.folder)), ("with", _environment(prepared))]
    for variable, value in sorted(plan.changed.items()):
        if not variable.startswith("TACHOGRAPH_"):
            now = " (not set)" if os.environ.get(variable) is None else ""
            rows.append(
                ("variable", f"{variable}={value}{now}" if value else f"without {variable}")
            )
    trees = prepared.record.provenance["source"]["trees"] if prepared.fetches else {}
    for tree, remote in prepared.fetches.items():
        rows.append(("fetches", f"commit {trees[tree]['commit'][:12]} of {tree} from {remote}"))
    return [*rows, *(("note", note) for note in plan.notes)]


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    for head, text in rows:
        _line(f"{head:<9}", text)


def _line(head: str, text: str, style: str = "dim") -> None:
    console().print(Text(head, style=style), Text(_visible(text)), sep="", soft_wrap=True)


def _visible(text: str) -> str:
    """A text in one line."""
    return visible(text, keep="")


def _environment(prepared: Prepared) -> str:
    python = prepared.plan.words[0]
    if prepared.environment == "given":
        return f"{python} and what is installed there"
    versions = prepared.record.provenance["packages"]["versions"]
    return f"{python}, an environment of the {len(versions)} packages that were recorded"


def _print_verdict(verdict: Verdict) -> None:
    section(f"{short_id(verdict.original)} and its reproduction {short_id(verdict.reproduction)}")
    _line(f"{verdict.verdict}: ", verdict.reason, _STYLES[verdict.verdict])
    if verdict.departure is not None:
        _line("first apart  ", _departure(verdict.departure))
    if verdict.verdict != EXACT:
        _line("first cause  ", _cause(verdict))
    _print_finals(verdict)
    _print_changes(verdict)


def _cause(verdict: Verdict) -> str:
    cause = verdict.cause
    if verdict.doubt:
        return f"not known: {verdict.doubt}"
    if cause is None:
        return "none"
    if cause.area == "code" and verdict.changed_line is not None:
        return f"code: {verdict.changed_line}"
    return f"{cause.area}: {cause.path}: {_value(cause.first)} -> {_value(cause.second)}"


def _departure(departure: Departure) -> str:
    values = f"{_value(departure.first)} -> {_value(departure.second)}"
    where = _label(departure.part, departure.metric, departure.context)
    if departure.step is None:
        return f"{where}: {values}"
    epoch = "" if departure.epoch is None else f", epoch {departure.epoch:g}"
    return f"{where} at step {departure.step}{epoch}: {values}"


def _label(part: tuple[str, ...], metric: str, context: str, rank: int = 0) -> str:
    pairs = [context_label(context), f"rank {rank}" if rank else ""]
    where = ", ".join(filter(None, pairs))
    return " / ".join((*part, f"{metric} ({where})" if where else metric))


def _value(value: object) -> str:
    """A value in one line; a digest by its beginning."""
    if value is None:
        return "nothing"
    text = shown(short_digest(value))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _print_finals(verdict: Verdict) -> None:
    if not verdict.finals:
        return
    section("Last values of what is not the same throughout")
    rows = [
        {
            "metric": _visible(_label(final.part, final.metric, final.context, final.rank)),
            "original": final.first,
            "reproduction": final.second,
            "spread": "" if final.spread is None else " to ".join(map(shown, final.spread)),
            "near enough": "yes" if final.agrees else "no",
        }
        for final in verdict.finals[:_SHOWN]
    ]
    columns = [name for name in rows[0] if name != "spread" or any(row[name] for row in rows)]
    print_table(rows, columns)


def _print_changes(verdict: Verdict) -> None:
    is_exact = verdict.verdict == EXACT  # then no state of a generator has mattered
    changes = [change for change in verdict.changes if not (is_exact and change.generator)]
    if not changes:
        return
    order = "" if is_exact else ", the likeliest cause first"
    section(f"What differs in where they come from{order}")
    rows = [
        {
            "area": change.area,
            "path": _visible(change.path),
            "original": _visible(_value(change.first)),
            "reproduction": _visible(_value(change.second)),
        }
        for change in changes[:_SHOWN]
    ]
    print_table(rows, list(rows[0]))
    more = len(changes) - _SHOWN
    if more > 0:
        text = f"{more} more; tachograph diff {short_id(verdict.original)}"
        console().print(f"{text} {short_id(verdict.reproduction)} shows all", style="dim")
