"""The page about one run, and runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.text import Text

from tachograph.cli import tensors
from tachograph.cli.provenance_page import headline
from tachograph.cli.render import (
    STATUS_STYLES,
    console,
    context_label,
    duration,
    is_of_the_user,
    labelled,
    local_time,
    print_table,
    section,
    short_id,
    shown,
    size,
    sparkline,
)
from tachograph.levels.level import assess
from tachograph.query import Store
from tachograph.reading.run_record import RunRecord
from tachograph.records import now_us

_FEW_METRICS = 40
_FEW_PARAMS = 40
_FEW_CHILDREN = 20
_FEW_EVENTS = 15
_LONG = 100  # characters of a value
_POINTS = 2400  # of a series; a hundred for each sign of its curve


def document(store: Store, record: RunRecord) -> dict[str, Any]:
    """Everything about a run, for a program."""
    return {
        "run": record.row,
        "params": record.params,
        "tags": record.tags,
        "metrics": [
            row | {"context": json.loads(row["context"] or "{}")} for row in record.metrics
        ],
        "attempts": record.attempts,
        "events": record.events,
        "artifacts": record.artifacts,
        "tensors": store.tensors_of(record.run_id),
        "children": record.children,
        "provenance": record.provenance,
    }


def print_page(store: Store, record: RunRecord) -> None:
    """Print the page about a run."""
    _head(record)
    _health(record)
    _metrics(store, record)
    tensors.print_section(store, record)
    _children(record)
    _events(record)
    _params(record)
    _artifacts(record)
    _cost(record)
    _origin(store, record)


def begun(row: Mapping[str, Any]) -> str | None:
    """When, by whom and where; a client of one's own may have said less."""
    if not row["started_at"]:
        return None
    by = f" by {row['user']}" if row["user"] else ""
    on = f" on {row['host']}" if row["host"] else ""
    return f"{local_time(row['started_at'])}{by}{on}"


def _head(record: RunRecord) -> None:
    row, out = record.row, console()
    status = record.status
    name = record.name or short_id(record.run_id)
    out.print(Text(name, style="bold"), Text(f" {status}", style=STATUS_STYLES.get(status, "")))
    started, ended = row["started_at"], row["ended_at"]
    end = ended or (now_us() if status == "running" else None)
    facts = {
        "run": record.run_id,
        "kind": row["kind"],
        "part of": row["parent_id"],
        "project": row["project"],
        "framework": row["framework"],
        "started": begun(row),
        "took": duration(end - started) if started and end else None,
        "attempt": row["attempt"] if (row["attempt"] or 1) > 1 else None,
        "tags": ", ".join(f"{k}={v}" if v else k for k, v in record.tags.items()) or None,
        "description": row["description"],
        "hypothesis": row["hypothesis"],
        "verdict": row["verdict"],
        "error": row["error"],
    }
    for key, value in facts.items():
        if value is not None:
            labelled(key, str(value), style="red" if key == "error" else "")


def _health(record: RunRecord) -> None:
    """What was found to be wrong with the training; first, because it decides what is read."""
    found = [event for event in record.events if event["kind"] == "health"]
    if not found:
        return
    section("Health")
    for event in found[:_FEW_EVENTS]:
        style = {"error": "bold red", "warning": "yellow"}.get(event["level"] or "", "")
        console().print(f"⚠ {event['message']}", style=style)
    _more(len(found) - _FEW_EVENTS)


def _cost(record: RunRecord) -> None:
    """What recording took of the training, on the lowest rank, in the latest attempt."""
    found = {
        row["name"].removeprefix("recording/"): row["max" if "lag" in row["name"] else "last"]
        for row in sorted(record.metrics, key=lambda row: (-row["rank"], row["attempt"]))
        if row["name"].startswith("recording/")
    }
    if text := cost_line(found):
        section("Recording")
        console().print(text, style="yellow" if found.get("dropped") else "")


def cost_line(known: Mapping[str, float | None]) -> str:
    """The cost of recording in one sentence; empty where nothing is known of it.

    Parameters
    ----------
    known : mapping
        What is known of share, milliseconds (a step), tensor_milliseconds (a record), bytes,
        lag_seconds and dropped (records).
    """
    wordings: dict[str, Callable[[float], str]] = {
        "share": lambda value: f"{100 * value:.2g} % of the time",
        "milliseconds": lambda value: f"{value:.2g} ms a step",
        "tensor_milliseconds": lambda value: f"{value:.2g} ms a record of tensors",
        "bytes": lambda value: size(int(value)),
    }
    parts = [say(value) for name, say in wordings.items() if (value := known.get(name)) is not None]
    if not parts:
        return ""
    lag, dropped = known.get("lag_seconds"), known.get("dropped")
    lost = f"{dropped:,.0f} records dropped" if dropped else "nothing dropped"
    late = f"; stores at most {lag:.1f} s behind" if lag is not None and lag >= 1 else ""
    return f"took {', '.join(parts)}; {lost}{late}"


def _params(record: RunRecord) -> None:
    params = list(record.given)
    given = [row for row in params if row["source"] != "default"]
    if not params:
        return
    section("Parameters")
    rows = [{"name": row["path"], "value": _cut(shown(row["value"]))} for row in given]
    if rows:
        print_table(rows[:_FEW_PARAMS], ("name", "value"))
    _more(len(rows) - _FEW_PARAMS)
    if len(given) < len(params):
        note = f"{len(params) - len(given)} that the framework chose are with --json"
        console().print(note, style="dim")


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"


def _metrics(store: Store, record: RunRecord) -> None:
    rows = [row for row in record.metrics if is_of_the_user(row["name"])]
    rows.sort(key=lambda row: (row["count"] or 0) < 2)  # curves before what has one value
    if not rows:
        return
    section("Metrics")
    found = []
    width = 24 if console().width >= 100 else 12
    shown_rows = rows[:_FEW_METRICS]
    curves = store.curves(record.run_id, shown_rows, _POINTS)
    for row in shown_rows:
        points = curves[row["name"], row["context"], row["rank"]]
        rank = f"rank {row['rank']}" if row["rank"] else ""
        found.append(
            {
                "metric": row["name"],
                "of": ", ".join(filter(None, (context_label(row["context"]), rank))),
                "last": row["last"],
                "min": row["min"] if row["count"] > 1 else None,
                "max": row["max"] if row["count"] > 1 else None,
                "points": row["count"],
                "curve": sparkline(list(points["value"]), width) if row["count"] > 1 else "",
            }
        )
    columns = ("metric", "of", "last", "min", "max", "points", "curve")
    print_table(found, columns, spare=("points", "curve"))
    _more(len(rows) - _FEW_METRICS)


def _children(record: RunRecord) -> None:
    children = list(record.children)
    if not children:
        return
    section("Parts")
    rows = [
        child
        | {
            "duration": duration(child["ended_at"] - child["started_at"])
            if child["ended_at"] and child["started_at"]
            else ""
        }
        for child in children
    ]
    print_table(
        rows[:_FEW_CHILDREN],
        ("run_id", "kind", "name", "status", "duration"),
        names={"run_id": "run"},
    )
    _more(len(rows) - _FEW_CHILDREN)


def _events(record: RunRecord) -> None:
    events = [event for event in record.events if event["kind"] not in ("console", "health")]
    if not events:
        return
    section("Events")
    for event in events[-_FEW_EVENTS:]:
        style = {"error": "red", "warning": "yellow"}.get(event["level"] or "", "")
        text = f"{local_time(event['time'])}  {event['kind']}: {event['message']}"
        console().print(text, style=style)
    trace: dict[str, Any] = next(
        (json.loads(e["data"]) for e in reversed(events) if e["kind"] == "error" and e["data"]), {}
    )
    if "traceback" in trace:
        console().print(trace["traceback"].rstrip(), style="dim", soft_wrap=True)


def _artifacts(record: RunRecord) -> None:
    if not len(record.artifacts):
        return
    section("Files")
    rows = [
        {
            "path": row["path"],
            "kind": row["kind"],
            "step": row["step"],
            "size": size(row["bytes"]),
            "sha256": (row["sha256"] or "")[:12],
        }
        for row in record.artifacts
    ]
    print_table(rows, ("path", "kind", "step", "size", "sha256"))


def _origin(store: Store, record: RunRecord) -> None:
    documents = record.provenance
    if not documents:
        return
    section("Where it comes from")
    reproducible = ("reproducible", headline(assess(record, store)))
    for label, text in [*_origin_lines(documents), reproducible]:
        if text:
            labelled(label, text)
    labelled("recorded", f"{', '.join(sorted(documents))}; more with --provenance", style="dim")


def _origin_lines(documents: dict[str, Any]) -> list[tuple[str, str]]:
    git = documents.get("git") or {}
    python = documents.get("python") or {}
    hardware = documents.get("hardware") or {}
    argv = documents.get("argv") or {}
    commit = str(git.get("commit") or "")[:12]
    code = f"{commit} on {git.get('branch') or 'no branch'}" if commit else ""
    if git.get("dirty"):
        code += ", with uncommitted changes"
    packages = (documents.get("packages") or {}).get("versions") or {}
    cpu = hardware.get("cpu") or {}
    return [
        ("code", code or str(git.get("missing") or "")),
        ("command", str(argv.get("command") or "")),
        ("python", str(python.get("version") or "").split(" ")[0]),
        ("packages", f"{len(packages)} recorded" if packages else ""),
        ("machine", str(cpu.get("model") or "") if isinstance(cpu, dict) else str(cpu)),
    ]


def _more(count: int) -> None:
    if count > 0:
        console().print(f"{count} more; all of them with --json", style="dim")
