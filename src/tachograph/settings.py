"""Every setting: its key, the values it takes, its default and what it means.

Knows neither files nor the environment; `config.py` brings the values.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tachograph.registry import resolve_url

DEFAULT_BACKEND = "sqlite:///.tachograph/runs.sqlite"

# ---------------------------------------------------------------------------- kinds of values


class Kind(NamedTuple):
    """A kind of value.

    Attributes
    ----------
    name : str
        What is expected, in words: '... must be <name>'.
    parse : callable
        From a value as TOML has it, and the folder that relative paths start from, to the
        checked value; ValueError where it is not usable.
    read : callable
        From the text of an environment variable to a value as TOML has it.
    choices : tuple of str
        All values, where there are only a few.
    """

    name: str
    parse: Callable[[Any, Path], Any]
    read: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()


def _text(value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _tag(value: Any, folder: Path) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise ValueError
    return str(value)


def _path(value: Any, folder: Path) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return os.path.normpath(folder / os.path.expanduser(_text(value, folder)))


def _urls(value: Any, folder: Path) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given:
        raise ValueError
    urls = [resolve_url(_text(url, folder), folder, bare_path=False) for url in given]
    return tuple(dict.fromkeys(urls))


def _boolean(value: Any, folder: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


_WORDS = dict.fromkeys(("1", "true", "yes", "on"), True)
_WORDS |= dict.fromkeys(("0", "false", "no", "off"), False)


def read_boolean(text: str) -> bool:
    """What a word such as 'on' or '0' says; ValueError for others."""
    try:
        return _WORDS[text.strip().lower()]
    except KeyError:
        raise ValueError from None


def _interval(value: Any, folder: Path) -> str | int:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError
    result: str | int = value
    return result


def _interval_or_off(value: Any, folder: Path) -> str | int:
    return "off" if value == "off" else _interval(value, folder)


def _snapshots(value: Any, folder: Path) -> str | int | tuple[int, ...]:
    if not isinstance(value, list | tuple):
        return _interval(value, folder)
    if not all(isinstance(step, int) and not isinstance(step, bool) for step in value):
        raise ValueError
    return tuple(value)


def _read_snapshots(text: str) -> str | int | list[int]:
    return [int(step) for step in _read_list(text)] if "," in text else _read_interval(text)


def _read_interval(text: str) -> str | int:
    return text if text in ("auto", "off") else int(text)


def _read_pairs(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not all(equals and key.strip() for key, equals, _ in pairs):
        raise ValueError
    return {key.strip(): value.strip() for key, _, value in pairs}


def _read_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)")
_UNITS = {"B": 1} | {f"{letter}iB": 1 << 10 * n for n, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}B": 1000**n for n, letter in enumerate("kMGT", 1)}


def _size(value: Any, folder: Path) -> int:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError
        value = int(float(match[1]) * _UNITS[match[2]])
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError
    return value


def _read_size(text: str) -> str | int:
    return int(text) if text.strip().isdecimal() else text


def _number(name: str, holds: Callable[[float], bool]) -> Kind:
    def parse(value: Any, folder: Path) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError
        if not math.isfinite(value) or not holds(value):
            raise ValueError
        return float(value)

    return Kind(name, parse, float)


def _or_off(kind: Kind) -> Kind:
    """That kind, or false, which switches off what it is a threshold of."""

    def parse(value: Any, folder: Path) -> Any:
        return False if value is False else kind.parse(value, folder)

    def read(text: str) -> Any:
        return False if text.strip().lower() in ("0", "false", "no", "off") else kind.read(text)

    return Kind(f"{kind.name}, or false", parse, read)


def _count(value: Any, folder: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError
    return value


def _choice(*choices: str) -> Kind:
    def parse(value: Any, folder: Path) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError
        return value

    return Kind(f"one of {', '.join(map(repr, choices))}", parse, choices=choices)


_BOOLEAN = Kind("true or false", _boolean, read_boolean)
_LEVELS = _choice("off", "stats", "full")
_COUNT = Kind("a whole number above 0", _count, int)
_POSITIVE = _number("a number above 0", lambda value: value > 0)
_SHARE = _number("a number above 0, at most 1", lambda value: 0 < value <= 1)


# ---------------------------------------------------------------------------- the settings


class RecordConfig(NamedTuple):
    """What is recorded and how: the table ``[record]``. `SETTINGS` says what each key means."""

    weights: str = "stats"
    gradients: str = "stats"
    every: str | int = "auto"
    updates: bool = True
    histograms: str | int = "auto"
    snapshots: str | int | tuple[int, ...] = "auto"
    budget: float = 0.02
    durability: str = "1s"
    code: str = "snapshot"
    on_error: str = "warn"
    console: bool = False
    system: bool = True
    system_interval: float = 10.0
    checkpoints: str = "reference"
    exit_deadline: float = 10.0


class HealthConfig(NamedTuple):
    """Which rules watch over trainings, and their thresholds: the table ``[health]``.

    A threshold that is False switches its rule off. `SETTINGS` says what each key means.
    """

    enabled: bool = True
    nan: bool = True
    vanishing_gradient: float | Literal[False] = 1e-5
    exploding_gradient: float | Literal[False] = 100.0
    dead_units: float | Literal[False] = 0.95
    frozen_weights: int | Literal[False] = 10
    update_ratio_high: float | Literal[False] = 0.25
    update_ratio_low: float | Literal[False] = 1e-8
    divergence: float | Literal[False] = 3.0
    plateau: int | Literal[False] = 2000
    stalled: float | Literal[False] = 300.0
    patience: int = 10


class Setting(NamedTuple):
    """One key of the config file.

    Attributes
    ----------
    key : str
        Dotted key, such as 'record.every'.
    kind : Kind
        What values it takes.
    default : Any
        Value where nothing else is said, as the file would have it.
    help : str
        One sentence.
    """

    key: str
    kind: Kind
    default: Any
    help: str

    @property
    def type(self) -> str:
        """What values it takes, in words."""
        return self.kind.name

    @property
    def choices(self) -> tuple[str, ...]:
        """All values, where there are only a few; else empty."""
        return self.kind.choices

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "TACHOGRAPH_" + self.key.replace(".", "_").upper()


def _record(name: str, kind: Kind, text: str) -> Setting:
    return Setting(f"record.{name}", kind, getattr(RecordConfig(), name), text)


def _health(name: str, kind: Kind, text: str) -> Setting:
    return Setting(f"health.{name}", kind, getattr(HealthConfig(), name), text)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "project", Kind("text", _text), None, "Project of the runs; else the working folder's name."
    ),
    Setting(
        "backend",
        Kind("the URL of a store, or a list of several", _urls, _read_list),
        DEFAULT_BACKEND,
        "Where runs are stored; several stores each receive everything.",
    ),
    Setting("user", Kind("text", _text), None, "Author of the runs; else the login name."),
    Setting(
        "tags",
        Kind("text, a number, true or false", _tag, _read_pairs),
        MappingProxyType({}),
        "Tags of every run.",
    ),
    Setting(
        "journal",
        Kind("a folder", _path),
        None,
        "Folder of the journals; else beside the first local store.",
    ),
    Setting(
        "journal_limit",
        Kind("bytes, as a whole number or as in '10 GiB'", _size, _read_size),
        "100 GiB",
        "Journal bytes that may wait for a store before records are dropped.",
    ),
    _record("weights", _LEVELS, "What to record of weights; full adds snapshots."),
    _record("gradients", _LEVELS, "What to record of gradients; full adds snapshots."),
    _record(
        "every",
        Kind("'auto' or a whole number above 0", _interval, _read_interval),
        "Steps between records of tensors; auto keeps to the budget.",
    ),
    _record(
        "updates",
        _BOOLEAN,
        "Record what each step changed of the weights; takes the memory of a copy of them.",
    ),
    _record(
        "histograms",
        Kind("'auto', 'off' or a whole number above 0", _interval_or_off, _read_interval),
        "Steps between histograms of tensors; auto keeps to the budget.",
    ),
    _record(
        "snapshots",
        Kind("'auto', a whole number above 0, or a list of steps", _snapshots, _read_snapshots),
        "Steps between snapshots, or the steps that have one, where weights or gradients are"
        " 'full'. The end of a fit always has one.",
    ),
    _record(
        "budget",
        _SHARE,
        "Share of the training time that recording may take.",
    ),
    _record(
        "durability",
        _choice("process", "1s", "call"),
        "What survives a power cut: what the system wrote by itself, all but the last second,"
        " or every call. The end of the process loses nothing either way.",
    ),
    _record(
        "code",
        _choice("snapshot", "allow", "refuse"),
        "The code: keep it with what is not committed, record facts alone, or do not start with"
        " uncommitted work.",
    ),
    _record("on_error", _choice("warn", "raise"), "Whether recording may ever stop a training."),
    _record("console", _BOOLEAN, "Keep what the run prints."),
    _record("system", _BOOLEAN, "Record use of CPU, GPU and memory, and what recording costs."),
    _record(
        "system_interval",
        _number("seconds above 0", lambda value: value > 0),
        "Seconds between the points of CPU, GPU and memory.",
    ),
    _record(
        "checkpoints",
        _choice("reference", "copy"),
        "Checkpoints and models that the framework saves: keep path and hash, or the file too.",
    ),
    _record(
        "exit_deadline",
        _number("seconds, 0 or more", lambda value: value >= 0),
        "Seconds that the last transfer to the stores may take at exit.",
    ),
    _health("enabled", _BOOLEAN, "Look for signs of a training that goes wrong."),
    _health("nan", _BOOLEAN, "NaN or infinite weights, gradients and losses."),
    _health(
        "vanishing_gradient",
        _or_off(_SHARE),
        "Gradients of the first layers are below this share of those of the last ones.",
    ),
    _health(
        "exploding_gradient",
        _or_off(_POSITIVE),
        "The norm of the gradients is over this many times its usual value.",
    ),
    _health(
        "dead_units",
        _or_off(_SHARE),
        "At least this share of a layer's units has a gradient of exactly zero.",
    ),
    _health(
        "frozen_weights",
        _or_off(_COUNT),
        "A layer has not changed for this many records while others did.",
    ),
    _health(
        "update_ratio_high",
        _or_off(_POSITIVE),
        "Updates are larger than this share of the weights.",
    ),
    _health(
        "update_ratio_low",
        _or_off(_POSITIVE),
        "Updates are smaller than this share of the weights from the start.",
    ),
    _health(
        "divergence",
        _or_off(_number("a number above 1", lambda value: value > 1)),
        "The training's loss is over this many times its first values.",
    ),
    _health(
        "plateau",
        _or_off(_COUNT),
        "The training's loss has not improved over this many values from its first one.",
    ),
    _health(
        "stalled",
        _or_off(_POSITIVE),
        "Seconds without a new point in an idle process; six times as many in a busy one.",
    ),
    _health(
        "patience",
        _COUNT,
        "Records in a row that must show vanishing gradients or dead units.",
    ),
)
"""Every setting, in the order of the documentation."""
