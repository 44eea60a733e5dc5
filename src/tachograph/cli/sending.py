"""Commands that send: sync, copy."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tachograph import registry
from tachograph.cli.options import JsonOption, StoreOption, configured, open_for_reading
from tachograph.cli.progress import shown_progress
from tachograph.cli.render import console, counted, print_json, print_table, size
from tachograph.transfer import syncing
from tachograph.transfer.copying import CopyReport, copy_store
from tachograph.transfer.syncing import FilesReport, Verdict


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (copy, sync):
        app.command()(command)


def copy(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Store to copy from, here or on a server.")
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="Store to copy into, here or on a server.")
    ],
    run: Annotated[
        list[str] | None,
        typer.Option("--run", "-r", metavar="RUN", help="Only these runs and their parts."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy runs between stores and prove by digests that nothing changed."""
    base = Path.cwd()
    source_url = registry.resolve_url(source, base)
    destination_url = registry.resolve_url(destination, base)
    with _interruptible(), open_for_reading(source_url) as opened:
        chosen = [opened.resolve(name) for name in run] if run else None
        target = registry.open_backend(destination_url, create=True)
        with contextlib.closing(target), shown_progress() as progress:
            report = copy_store(opened.backend, target, run_ids=chosen, progress=progress)
    if as_json:
        print_json(asdict(report))
        return
    print(
        f"copied {counted(report.points, 'point')} and {counted(report.rows, 'row')}"
        f" of {counted(report.runs, 'run')}, {counted(report.artifacts, 'file')}"
    )
    rows = [{"table": row["table"], "digest of both": row["source"][:16]} for row in report.digests]
    print_table(rows, ("table", "digest of both"))


def sync(
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="URL",
            help="Then send the runs of the local store to this one too: a server, or any other.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send what waits in journals to its stores; with --to, a local store to another one."""
    loaded = configured(store)
    target = None if to is None else registry.resolve_url(to, Path.cwd())
    source = None if target is None else syncing.local_store(loaded.backend, target)
    folder = registry.journal_folder(loaded.backend, loaded.journal)
    with _interruptible(), shown_progress() as progress:
        journals = syncing.send_journals(folder, progress)
        files = syncing.send_files(folder, progress)
        report = None
        if source is not None and target is not None:
            report = syncing.send_store(source, target, progress)
    if as_json:
        print_json(_document(folder, journals, files, report))
    else:
        _print_journals(journals, folder)
        _print_files(files)
        if report is not None:
            _print_copy(report, f"{source}", f"{target}")
    if files.problems or any(one.outcome == "waiting" for one in journals):
        raise typer.Exit(1)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        text = "interrupted; what was sent stays sent, and the same command goes on from there"
        print(f"tachograph: {text}", file=sys.stderr)
        raise typer.Exit(130) from None


def _document(
    folder: Path, journals: list[Verdict], files: FilesReport, report: CopyReport | None
) -> dict[str, Any]:
    return {
        "journal": str(folder),
        "sent": [one.writer for one in journals if one.outcome == "sent"],
        "journals": [asdict(one) for one in journals],
        "files": asdict(files),
        "copied": None if report is None else asdict(report),
    }


def _print_journals(journals: list[Verdict], folder: Path) -> None:
    if sent := [one for one in journals if one.outcome == "sent"]:
        records = sum(one.records for one in sent)
        whose = counted(len(sent), "process", "processes")
        print(f"sent what {whose} had left in {folder}: {counted(records, 'record')}")
    elif not any(one.outcome == "waiting" for one in journals):
        print(f"nothing is left behind in {folder}")
    for one in journals:
        if one.outcome == "waiting":
            text = f"{size(one.bytes)} wait: {one.problem}"
            console().print(text, style="yellow", soft_wrap=True)
    for outcome, whose in (("running", "that still run"), ("elsewhere", "on other machines")):
        if left := [one for one in journals if one.outcome == outcome]:
            count = size(sum(one.bytes for one in left))
            print(f"left alone: {counted(len(left), 'journal')} of processes {whose} ({count})")


def _print_files(files: FilesReport) -> None:
    if files.sent:
        print(f"sent {counted(files.sent, 'file')} ({size(files.bytes)})")
    if files.waiting:
        why = "; ".join(f"{url}: {problem}" for url, problem in files.problems)
        what = f"{counted(files.waiting, 'file')} ({size(files.waiting_bytes)})"
        text = f"{what} to be sent later{why and f': {why}'}"
        console().print(text, style="yellow", soft_wrap=True)


def _print_copy(report: CopyReport, source: str, target: str) -> None:
    if not (report.records or report.artifacts):
        print(f"{target} has all of {source} already ({counted(report.runs, 'run')})")
        return
    print(
        f"sent {counted(report.points, 'point')}, {counted(report.rows, 'row')} and"
        f" {counted(report.artifacts, 'file')} ({size(report.artifact_bytes)}) to {target};"
        f" it has all of {source} ({counted(report.runs, 'run')})"
    )
