"""The configuration: finds the values of all settings, and says where each came from.

Knows no store and no framework.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tachograph import config_files
from tachograph.config_files import ConfigFile
from tachograph.errors import ConfigError
from tachograph.settings import SETTINGS, HealthConfig, RecordConfig, Setting, read_boolean
from tachograph.values import flatten

__all__ = [
    "SETTINGS",
    "Config",
    "HealthConfig",
    "Origin",
    "RecordConfig",
    "Setting",
    "is_disabled",
    "load_config",
]


class Origin(NamedTuple):
    """Where a value came from.

    Attributes
    ----------
    kind : str
        'argument', 'environment', 'file', 'config' (a mapping given as `config`) or 'default'.
    place : str
        The variable, or the file and line; empty for the other kinds.
    """

    kind: str
    place: str = ""

    def __str__(self) -> str:
        return self.place if self.kind == "file" else f"{self.kind} {self.place}".rstrip()


class Config(NamedTuple):
    """Every effective setting.

    Attributes
    ----------
    project, user : str or None
        None is 'not configured'.
    backend : tuple of str
        Absolute URLs of the stores, without secrets.
    tags : mapping of str to str
        Tags of every run.
    journal : str or None
        Absolute folder to keep journals in, instead of the one that `registry.journal_folder`
        chooses.
    journal_limit : int
        Bytes that may wait in journals before records are dropped.
    record : RecordConfig
        The table ``[record]``.
    file : Path or None
        The config file, if there is one.
    origins : mapping of str to Origin
        Dotted key, such as 'record.every' or 'tags.team', to where its value came from.
    health : HealthConfig
        The table ``[health]``.
    """

    project: str | None
    backend: tuple[str, ...]
    user: str | None
    tags: Mapping[str, str]
    journal: str | None
    journal_limit: int
    record: RecordConfig
    file: Path | None
    origins: Mapping[str, Origin]
    health: HealthConfig = HealthConfig()

    def __reduce__(self) -> tuple[Any, ...]:  # read-only views of dicts do not pickle
        values = {"tags": dict(self.tags), "origins": dict(self.origins)}
        return _rebuild, (self._asdict() | values,)


def _rebuild(values: dict[str, Any]) -> Config:
    views = {name: MappingProxyType(values[name]) for name in ("tags", "origins")}
    return Config(**values | views)


def load_config(
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Config:
    """Find, read and check the configuration.

    An argument wins over the environment, that over the file, that over the default. Tags are
    put together from all of them, key by key.

    Parameters
    ----------
    config : path or mapping, optional
        A config file, or a mapping of its shape, which takes the file's place: then no file is
        looked for. By default the file that ``TACHOGRAPH_CONFIG`` names, or the nearest one
        from `cwd` upwards.
    arguments : mapping, optional
        Values given in code, by dotted key ('record.every'), or without 'record.' ('every');
        None is 'not given'.
    environ : mapping, optional
        Environment to read; `os.environ` by default. An empty variable counts as not set.
    cwd : Path, optional
        Working directory; the real one by default. Relative paths in a file start from the
        file's folder, as does that of the default store; all others from `cwd`.

    Raises
    ------
    ConfigError
        A key is unknown, a value not usable, or the file missing or not valid. The message
        names the place, the key and the nearest valid key.
    """
    environ = os.environ if environ is None else environ
    folder = _working_directory() if cwd is None else cwd.absolute()
    given = {name for name in environ if name.startswith("TACHOGRAPH_")}  # asking takes longer
    variables = tuple(
        (name, text) for name in _BY_VARIABLE if name in given and (text := environ[name])
    )
    if isinstance(config, Mapping):
        file = None
        stated = _layer(config, _always(Origin("config")), folder)
        values = _defaults(folder) | stated | _environment(variables, folder)
    else:
        file = _find_file(config or environ.get("TACHOGRAPH_CONFIG"), folder)
        values = _from_file(file, folder, variables)
    if arguments:
        full = {_full_key(key): value for key, value in arguments.items()}
        values = values | _layer(full, _always(Origin("argument")), folder)
    return _build(values, file)


def is_disabled(environ: Mapping[str, str] | None = None) -> bool:
    """Whether ``TACHOGRAPH_DISABLED`` is 1, true, yes or on."""
    text = (os.environ if environ is None else environ).get("TACHOGRAPH_DISABLED", "")
    try:
        return read_boolean(text)
    except ValueError:
        return False


# ---------------------------------------------------------------------------- layers

_Layer = dict[str, tuple[Any, Origin]]

_BY_KEY = {setting.key: setting for setting in SETTINGS}
_BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}
_TABLES = frozenset({"record", "health", "tags"})


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError("the working directory no longer exists") from error


def _find_file(named: str | os.PathLike[str] | None, folder: Path) -> ConfigFile | None:
    if not named:
        return config_files.find(folder)
    if not isinstance(named, str | os.PathLike):
        raise ConfigError(f"config must be a path or a mapping, got {named!r}")
    return config_files.read(Path(os.path.normpath(folder / Path(named).expanduser())))


@functools.lru_cache(maxsize=16)
def _from_file(
    file: ConfigFile | None, folder: Path, variables: tuple[tuple[str, str], ...]
) -> _Layer:
    """Everything but the arguments; an unchanged file is the same object at each call."""
    if file is None:
        return _defaults(folder) | _environment(variables, folder)
    home = file.path.parent
    stated = _layer(file.document, lambda key: Origin("file", file.place(key)), home)
    return _defaults(home) | stated | _environment(variables, folder)


@functools.lru_cache(maxsize=16)
def _defaults(folder: Path) -> _Layer:
    origin = Origin("default")
    values: _Layer = {s.key: (None, origin) for s in SETTINGS if s.key not in _TABLES}
    return values | _layer({s.key: s.default for s in SETTINGS}, _always(origin), folder)


def _environment(variables: tuple[tuple[str, str], ...], folder: Path) -> _Layer:
    layer: _Layer = {}
    for name, text in variables:
        setting, origin = _BY_VARIABLE[name], Origin("environment", name)
        try:
            value = setting.kind.read(text)
        except ValueError:
            raise _unusable(setting.key, text, setting, origin) from None
        layer |= _layer({setting.key: value}, _always(origin), folder)
    return layer


def _always(origin: Origin) -> Callable[[str], Origin]:
    return lambda key: origin


def _full_key(key: str) -> str:
    return f"record.{key}" if key not in _BY_KEY and f"record.{key}" in _BY_KEY else key


def _layer(values: Mapping[str, Any], origin_of: Callable[[str], Origin], folder: Path) -> _Layer:
    """Check the values of one place, by dotted key; None is 'not given'."""
    layer: _Layer = {}
    for key, value in flatten(values).items():
        if value is None or (key in _TABLES and value == {}):
            continue
        origin = origin_of(key)
        layer[key] = _checked(key, value, origin, folder), origin
    return layer


def _checked(key: str, value: Any, origin: Origin, folder: Path) -> Any:
    setting = _BY_KEY["tags"] if key.startswith("tags.") else _BY_KEY.get(key)
    if key in _TABLES:
        raise ConfigError(f"{origin}: {key!r} must be a table, got {value!r:.80}")
    if setting is None:
        raise ConfigError(f"{origin}: unknown key {key!r}{_hint(key)}")
    try:
        return setting.kind.parse(value, folder)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {key!r}: {error}") from None
    except ValueError:
        raise _unusable(key, value, setting, origin) from None


def _unusable(key: str, value: Any, setting: Setting, origin: Origin) -> ConfigError:
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}…"
    hint = _nearest(str(value), {choice: choice for choice in setting.choices})
    return ConfigError(f"{origin}: {key!r} must be {setting.type}, got {shown}{hint}")


def _hint(key: str) -> str:
    if any(word in key.lower() for word in ("token", "password", "secret")):
        return "; secrets belong into the environment variable TACHOGRAPH_TOKEN"
    short = {known.rpartition(".")[2]: known for known in _BY_KEY}
    return _nearest(key, short | {known: known for known in _BY_KEY})


def _nearest(word: str, targets: Mapping[str, str]) -> str:
    from difflib import get_close_matches  # only on the way to an error

    near = get_close_matches(word, targets, n=1)
    return f"; did you mean {targets[near[0]]!r}?" if near else ""


def _build(values: _Layer, file: ConfigFile | None) -> Config:
    plain = {key: value for key, (value, _) in values.items()}
    record = {name: plain[f"record.{name}"] for name in RecordConfig._fields}
    health = {name: plain[f"health.{name}"] for name in HealthConfig._fields}
    tags = {key.removeprefix("tags."): plain[key] for key in plain if key.startswith("tags.")}
    return Config(
        project=plain["project"],
        backend=plain["backend"],
        user=plain["user"],
        tags=MappingProxyType(tags),
        journal=plain["journal"],
        journal_limit=plain["journal_limit"],
        record=RecordConfig(**record),
        file=file.path if file else None,
        origins=MappingProxyType({key: origin for key, (_, origin) in values.items()}),
        health=HealthConfig(**health),
    )
