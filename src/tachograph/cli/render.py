"""Tables, numbers and times for a person or for a program."""

from __future__ import annotations

import codecs
import datetime
import io
import json
import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.rule import Rule
from rich.segment import Segment
from rich.text import Text

from tachograph.cli.columns import Column, print_columns
from tachograph.table import Table
from tachograph.values import plain

STATUS_STYLES = {
    "running": "cyan",
    "finished": "green",
    "failed": "red",
    "interrupted": "yellow",
    "pruned": "yellow",
    "lost": "magenta",
}
_TIMES = ("started_at", "ended_at", "time", "last_time", "heartbeat_at", "changed_at")
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
_BARS = "▁▂▃▄▅▆▇█"


class _Console(Console):
    """Prints texts as they are, and lets none of them steer the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Make text of what is to be printed, without letters that move the cursor."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text), style)


def console() -> Console:
    """Where text for a person goes; wide where it is piped, so that no line is cut."""
    return _Console(highlight=False, markup=False, emoji=False, width=_width())


def _width() -> int | None:
    return None if sys.stdout.isatty() else 200


def visible(text: str, *, keep: str = "\n") -> str:
    """A text without letters that could hide or move what stands around them."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def rule(title: str) -> None:
    """A title, and a line to the end of the page."""
    console().print(Rule(Text(title, style="bold"), align="left", style="dim"))


def section(title: str) -> None:
    """Begin a part of a page."""
    console().print()
    rule(title)


def labelled(label: str, text: str, *, width: int = 12, style: str = "") -> None:
    """Print a text behind the label that says what it is, all of its lines below each other."""
    out = console()
    for line in Text(text, style=style).wrap(out, max(20, out.width - width - 2)):
        out.print(Text(f"{label:>{width}}  ", style="dim"), line, sep="")
        label = ""


def is_of_the_user(metric: str) -> bool:
    """Whether a metric is of the training, and not of the machine or of recording itself."""
    return not metric.startswith(("system/", "recording/"))


def print_json(value: Any) -> None:
    """Print a value as JSON; tables are lists of objects."""
    if isinstance(value, Table):
        value = value.to_pylist()
    print(json_text(_whole(value), indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that the standard output can carry, whatever its encoding."""
    return json.dumps(value, ensure_ascii=not _takes_all(), indent=indent, allow_nan=False)


def spare_letters() -> None:
    """Print a question mark for a letter that the standard output has no code for."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not _takes_all():
        sys.stdout.reconfigure(errors="replace")


def _takes_all() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return codecs.lookup(encoding).name.startswith("utf")


def _whole(value: Any) -> Any:
    """As JSON, without the limits that keep a record small."""
    if isinstance(value, Table):
        return [_whole(row) for row in value]
    if isinstance(value, Mapping):
        return {str(key): _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return value if isinstance(value, str) else plain(value)


def print_table(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    names: Mapping[str, str] | None = None,
    styles: Mapping[str, str] | None = None,
    right: Collection[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print rows for a person: times as local time, numbers short, status in colour.

    Columns of numbers are aligned on the right; `right` names those that hold them as text.
    Where the terminal is too narrow, columns of `spare` are left out, the first one first.
    """
    found, heads = list(rows), names or {}
    made = [
        Column(
            name,
            Text(visible(heads.get(name, name)), style="bold"),
            [cell(name, row.get(name)) for row in found],
            name in right or _has_numbers(name, found),
            (styles or {}).get(name, ""),
        )
        for name in columns
    ]
    print_columns(console(), made, spare)


def _has_numbers(column: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    return column not in _TIMES and any(isinstance(row.get(column), int | float) for row in rows)


def cell(column: str, value: Any) -> Text:
    """One value of a column, as a person reads it."""
    if value is None:
        return Text("")
    if column in _TIMES and isinstance(value, int):
        return Text(local_time(value))
    if column == "status":
        return Text(str(value), style=STATUS_STYLES.get(str(value), ""))
    if column in ("run_id", "parent_id", "root_id"):
        return Text(short_id(str(value)))
    return Text(visible(shown(value)))


def shown(value: Any) -> str:
    """A value in few characters: floats with five digits, the rest as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: ""}[value]
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else str(value)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(plain(value), ensure_ascii=False)
    return str(value)


def short_id(run_id: str) -> str:
    """The end of a long id, which tells runs of one second apart; others as they are.

    Ids that sort by time begin alike; the last eight characters are random, and every command
    takes them.
    """
    return run_id[-8:] if len(run_id) == 36 else run_id


def short_digest(value: Any) -> Any:
    """A digest by its beginning, which tells two apart; what is none as it is."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value.removeprefix("sha256:")[:8]
    return value


def short_name(name: str, longest: int) -> str:
    """A dotted name with its long parts cut, so that the short ones, often numbers, tell it apart.

    ``encoder.layers.9.self_attention.weight`` becomes ``enco….laye….9.self….weig…``.
    """
    parts = name.split(".")
    for most in range(max(map(len, parts)), 2, -1):
        cut = [part if len(part) <= most else f"{part[: most - 1]}…" for part in parts]
        if len(".".join(cut)) <= longest:
            return ".".join(cut)
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def local_time(microseconds: int) -> str:
    """Local date and time to the second."""
    moment = datetime.datetime.fromtimestamp(microseconds / 1e6)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def duration(microseconds: int | None) -> str:
    """A length of time as a person says it."""
    if microseconds is None:
        return ""
    seconds = microseconds / 1e6
    if seconds < 0.95:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def counted(count: int, noun: str, nouns: str = "") -> str:
    """So many of a thing: ``1 run``, ``3,000 runs``."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def size(count: int | None) -> str:
    """Bytes as a person says them."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def sparkline(values: Sequence[float | None], width: int = 24) -> str:
    """A curve in one line: the mean of each part; '×' where nothing in it is a finite number."""
    if not values:
        return ""
    parts = min(width, len(values))
    means = []
    for part in range(parts):
        piece = values[part * len(values) // parts : (part + 1) * len(values) // parts]
        finite = [v for v in piece if v is not None and math.isfinite(v)]
        # Divided before they are added: the sum of numbers near the largest is infinite.
        means.append(sum(v / len(finite) for v in finite) if finite else math.nan)
    known = [mean for mean in means if not math.isnan(mean)]
    if not known:
        return "×" * parts
    low, half = min(known), max(known) / 2 - min(known) / 2  # half of the height is finite
    is_flat = half <= 1e-12 * max(map(abs, known))  # but for the rounding of means
    heights = [0.0 if is_flat else (mean / 2 - low / 2) / half for mean in means]
    top = len(_BARS) - 1
    return "".join(
        "×" if math.isnan(mean) else _BARS[round(height * top)]
        for mean, height in zip(means, heights, strict=True)
    )


def context_label(context: str) -> str:
    """A context in few characters: ``phase=train, fold=3``."""
    try:
        pairs = json.loads(context or "{}")
    except ValueError:
        return context
    return ", ".join(f"{key}={shown(value)}" for key, value in pairs.items())
