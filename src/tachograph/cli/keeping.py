"""Commands that look after stores: gc, doctor, config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from tachograph import doctor as doctors
from tachograph import registry
from tachograph.backends.base import SupportsCompact
from tachograph.cli.options import JsonOption, StoreOption, configured, open_for_reading
from tachograph.cli.render import console, counted, print_json, print_table, shown, size
from tachograph.config import SETTINGS, load_config
from tachograph.security.credentials import locate_token

_WIDE = 120  # columns of a terminal in which sentences beside a table can be read


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (gc, doctor, config):
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
        f"{counted(len(garbage.runs), 'deleted run')} with {counted(garbage.points, 'point')}, and"
        f" {counted(len(garbage.artifacts), 'file')} without a run ({size(garbage.bytes)})"
    )
    if not (garbage.runs or garbage.artifacts):
        print("there is nothing to free")
    else:
        print(f"freed {what}" if really else f"to free: {what}\nadd --really to do it")
    if merged:
        print(f"merged {counted(merged, 'small file')}")


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for orphaned or damaged journals, lost runs and stores that cannot be used."""
    loaded = configured(store)
    findings = doctors.examine(loaded, repair=repair)
    if as_json:
        print_json([finding.as_row() for finding in findings])
    else:
        styles = {"ok": "green", "repaired": "cyan"}
        for finding in findings:
            mark = Text(f"{finding.level:>8} ", style=styles.get(finding.level, "yellow"))
            console().print(mark, finding.message, soft_wrap=True)
            if finding.advice and finding.level not in styles:
                console().print(f"          {finding.advice}", style="dim", soft_wrap=True)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def config(as_json: JsonOption = False) -> None:
    """Print every setting and where its value comes from."""
    loaded = load_config()
    rows: list[dict[str, Any]] = []
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
    for url in filter(registry.is_server, loaded.backend):
        found = locate_token(url)
        place = "nowhere; run: tachograph login " + url if found is None else found[1]
        rows.append(
            {"key": "token", "value": None, "from": place, "meaning": f"Of {url}; never shown."}
        )
    if as_json:
        print_json(rows)
        return
    print_table(
        [row | {"value": _value(row), "from": _origin(row["from"], loaded.file)} for row in rows],
        ("key", "value", "from", "meaning"),
        styles={"from": "dim", "meaning": "dim"},
        spare=("meaning",) if console().width < _WIDE else (),
    )
    journal = registry.journal_folder(loaded.backend, loaded.journal)
    print(f"\nconfig file: {loaded.file or 'none'}\njournals:    {journal}")


def _origin(text: str, file: Path | None) -> str:
    """Where a value comes from; the config file, which stands below the table, by its name."""
    return text.replace(f"{file}", file.name) if file else text


def _value(row: Mapping[str, Any]) -> str:
    value = row["value"]
    if row["key"] == "journal_limit":
        return size(value)
    if isinstance(value, tuple):
        return "\n".join(value)
    return "" if value in (None, {}) else shown(value)
