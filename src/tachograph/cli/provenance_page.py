"""The page about where a run comes from, and how far it can be reproduced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from tachograph.cli import provenance_lines as lines
from tachograph.cli.provenance_lines import Lines, get
from tachograph.cli.render import console, print_table, section, short_id, size
from tachograph.levels.level import SHAPE_ERRORS, Reproducibility
from tachograph.levels.pieces import Finding
from tachograph.reading.documents import Documents
from tachograph.reading.run_record import RunRecord

_FEW_DATA = 30  # rows of a table
_LONG = 200  # characters of a text
_MEANINGS = {
    "exact": "the same results bit for bit, on a machine like that one",
    "statistical": "results within the spread of other seeds",
    "methodological": "the method can be followed; other results are to be expected",
    "conceptual": "the idea is known, and no more",
}


def document(record: RunRecord, documents: Documents, result: Reproducibility) -> dict[str, Any]:
    """The documents and the level that they allow, for a program."""
    return {
        "run_id": record.run_id,
        "provenance": documents,
        "reproducibility": {
            "level": result.level,
            "verified": None if result.verified is None else asdict(result.verified),
            "findings": [asdict(finding) for finding in result.findings],
        },
    }


def headline(result: Reproducibility) -> str:
    """How far a run can be reproduced, in one line."""
    against = [finding.what for finding in result.findings if finding.area == "reproduction"]
    but = f"; {against[0]}" if against else ""
    if result.verified is not None:
        verified = result.verified
        return f"{verified.verdict}, verified by run {short_id(verified.run_id)}{but}"
    pieces = len(result.missing)
    lacks = f": {pieces} piece{'s' if pieces > 1 else ''} missing" if pieces else ""
    return f"allows {result.level}{lacks}{but}"


def print_provenance(record: RunRecord, documents: Documents, result: Reproducibility) -> None:
    """Print where a run comes from, area by area, and how far it can be reproduced."""
    console().print(record.name or short_id(record.run_id), style="bold")
    _print("Code", lines.code(documents))
    _print("Data", lines.data(documents))
    _print_data(documents)
    _print("Configuration", lines.configuration(documents, record.params))
    _print("Environment", lines.environment(documents))
    _print("Seeds", lines.seeds(documents, record.params))
    _print("Hardware", lines.hardware(documents))
    _print_level(result, documents)


def _print(title: str, lines: Lines) -> None:
    section(title)
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", style="dim", min_width=12, no_wrap=True)
    grid.add_column(overflow="fold")
    try:
        for label, text in lines:
            cut = text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
            grid.add_row(Text(label), Text(cut))
    except SHAPE_ERRORS:
        grid.add_row("", Text("the rest cannot be read; see --json", style="yellow"))
    if grid.row_count:
        console().print(grid)


# ---------------------------------------------------------------------------- data


def _print_data(documents: Documents) -> None:
    """A row for each array, frame or file that has a digest, or should have one."""
    found = [
        row
        for name, document in sorted(documents.items())
        if name.startswith("data.")
        for row in _leaves(name.removeprefix("data."), document)
    ]
    if found:
        columns = [
            name for name in ("data", "kind", "shape", "digest") if any(r[name] for r in found)
        ]
        print_table(found[:_FEW_DATA], columns)
    if len(found) > _FEW_DATA:
        console().print(f"{len(found) - _FEW_DATA} more; all of them with --json", style="dim")


def _leaves(name: str, document: Any) -> Iterator[dict[str, str]]:
    if not isinstance(document, Mapping):
        return
    inner = document.get("parts")
    nested = {"": document["dataset"]} if isinstance(document.get("dataset"), Mapping) else {}
    parts = inner if isinstance(inner, Mapping) else nested
    if "digest" in document or not parts:
        yield {
            "data": name,
            "kind": ".".join(str(document.get("kind") or "").split(".")[:: _ends(document)]),
            "shape": _shape(document),
            "digest": _digest(document),
        }
    for part, value in parts.items():
        yield from _leaves(f"{name}.{part}" if part else name, value)


def _ends(document: Mapping[str, Any]) -> int:
    """First and last part of a dotted name of three, which says enough."""
    return 2 if str(document.get("kind")).count(".") == 2 else 1


def _shape(document: Mapping[str, Any]) -> str:
    shape, rows, count = (document.get(name) for name in ("shape", "rows", "bytes"))
    if isinstance(shape, list) and shape:
        dtype = f" {document['dtype']}" if "dtype" in document else ""
        return " × ".join(map(str, shape)) + dtype
    if rows is not None:
        return f"{rows} rows"
    return size(count) if isinstance(count, int) else ""


def _digest(document: Mapping[str, Any]) -> str:
    digest, covers = document.get("digest"), document.get("digest_of", "content")
    if not digest:
        return f"none: {document.get('missing') or 'not read'}"
    short = str(digest).removeprefix("sha256:")[:12]
    return short if covers == "content" else f"{short} (of {covers})"


# ---------------------------------------------------------------------------- the level


def _print_level(result: Reproducibility, documents: Documents) -> None:
    section("Reproducibility")
    console().print(headline(result), style="bold")
    console().print(f"{result.level}: {_MEANINGS[result.level]}", style="dim")
    own = get(documents, "reproduction")
    if own.get("of"):
        verdict = own.get("verdict") or "not known yet"
        reason = f", {own['reason']}" if own.get("reason") else ""
        console().print(Text(f"this run is a reproduction of {own['of']}: {verdict}{reason}"))
    _print_findings("Missing", result.missing)
    notes = [finding for finding in result.findings if finding.limits_to is None]
    _print_findings("To know before it is run again", notes)


def _print_findings(title: str, findings: Iterable[Finding]) -> None:
    found = list(findings)
    if not found:
        return
    console().print()
    console().print(title, style="bold")
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in found:
        limit = f" (allows {finding.limits_to})" if finding.limits_to else ""
        grid.add_row(Text(finding.area), Text(finding.what + limit))
        grid.add_row("", Text(f"→ {finding.remedy}", style="cyan"))
    console().print(grid)
