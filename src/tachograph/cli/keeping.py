"""Commands that look after stores: gc, copy, sync, doctor, config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tachograph import doctor as doctors
from tachograph import drain, registry
from tachograph.backends.base import SupportsCompact
from tachograph.cli.options import JsonOption, StoreOption, open_for_reading
from tachograph.cli.render import console, print_json, print_table, shown, size
from tachograph.config import SETTINGS, Config, load_config
from tachograph.copying import copy_store


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (gc, copy, sync, doctor, config):
        app.command()(command)


def gc(
    really: Annotated[
        bool, typer.Option("--really", help="Free the space; without it, only say what would be.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Free what deleted runs still take, and merge small files. Says first what that is."""
    with open_for_reading(store) as opened:
        garbage = opened.gc(dry_run=not really)
        backend = opened.backend
        merged = backend.compact() if really and isinstance(backend, SupportsCompact) else 0
    if as_json:
        print_json(
            {
                "runs": garbage.runs,
                "points": garbage.points,
                "artifacts": garbage.artifacts,
                "bytes": garbage.bytes,
                "freed": really,
                "merged": merged,
            }
        )
        return
    what = (
        f"{len(garbage.runs)} deleted runs with {garbage.points} points, and "
        f"{len(garbage.artifacts)} files that no run refers to ({size(garbage.bytes)})"
    )
    if not (garbage.runs or garbage.artifacts):
        print("there is nothing to free")
    else:
        print(f"freed {what}" if really else f"to free: {what}\nadd --really to do it")
    if merged:
        print(f"merged {merged} small files")


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Store to copy from.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Store to copy into.")],
    run: Annotated[
        list[str] | None, typer.Option("--run", "-r", help="Only these runs and their parts.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy runs between stores and prove by digests that nothing changed."""
    base = Path.cwd()
    source_url = registry.resolve_url(source, base)
    destination_url = registry.resolve_url(destination, base)
    with open_for_reading(source_url) as opened:
        chosen = [opened.resolve(name) for name in run] if run else None
        target = registry.open_backend(destination_url, create=True)
        try:
            report = _with_progress(opened.backend, target, chosen, quiet=as_json)
        finally:
            target.close()
    if as_json:
        print_json({name: getattr(report, name) for name in report.__dataclass_fields__})
        return
    print(
        f"copied {report.points} points and {report.rows} rows of {report.runs} runs, "
        f"{report.artifacts} files"
    )
    rows = [{"table": row["table"], "digest of both": row["source"][:16]} for row in report.digests]
    print_table(rows, ("table", "digest of both"))


def _with_progress(source: Any, target: Any, runs: list[str] | None, *, quiet: bool) -> Any:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        transient=True,
        disable=quiet,
        console=console(),
    ) as bar:
        task = bar.add_task("copying", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return copy_store(source, target, run_ids=runs, progress=show)


def sync(
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring what processes that are gone left in journals into the stores."""
    loaded = _configured(store)
    folder = registry.journal_folder(loaded.backend, loaded.journal)
    writers = drain.drain_orphans(folder)
    if as_json:
        print_json({"journal": str(folder), "sent": writers})
    elif writers:
        print(f"sent what {len(writers)} processes had left in {folder}")
    else:
        print(f"nothing is left behind in {folder}")


def _configured(store: str | None) -> Config:
    """The configuration, with that store instead of its own."""
    if store is None:
        return load_config()
    return load_config(arguments={"backend": registry.resolve_url(store, Path.cwd())})


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for orphaned or damaged journals, lost runs and stores that cannot be used."""
    loaded = _configured(store)
    findings = doctors.examine(loaded, repair=repair)
    if as_json:
        print_json([finding.as_row() for finding in findings])
    else:
        marks = {"ok": "[green]ok[/]", "repaired": "[cyan]repaired[/]"}
        for finding in findings:
            mark = marks.get(finding.level, f"[yellow]{finding.level}[/]")
            console().print(f"{mark:>8}  {finding.message}")
            if finding.advice and finding.level not in marks:
                console().print(f"          {finding.advice}", style="dim")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def config(as_json: JsonOption = False) -> None:
    """Print every setting and where its value comes from."""
    loaded = load_config()
    rows = []
    for setting in SETTINGS:
        section, _, key = setting.key.rpartition(".")
        value = getattr(getattr(loaded, section) if section else loaded, key)
        value = dict(value) if setting.key == "tags" else value
        origin = loaded.origins.get(setting.key)
        if setting.key == "tags":
            places = {str(o) for k, o in loaded.origins.items() if k.startswith("tags.")}
            origin_text = ", ".join(sorted(places)) or "default"
        else:
            origin_text = str(origin or "default")
        rows.append(
            {"key": setting.key, "value": value, "from": origin_text, "meaning": setting.help}
        )
    if as_json:
        print_json(rows)
        return
    print_table(
        [row | {"value": _value(row["value"])} for row in rows],
        ("key", "value", "from", "meaning"),
        styles={"from": "dim", "meaning": "dim"},
    )
    journal = registry.journal_folder(loaded.backend, loaded.journal)
    print(f"\nconfig file: {loaded.file or 'none'}\njournals:    {journal}")


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "\n".join(value)
    return "" if value in (None, {}) else shown(value)
