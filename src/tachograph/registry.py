"""Names of stores: from a URL to the class that opens it, and to the folder of its journals.

Knows no store from inside; a store's library is imported when one is opened, never before.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tachograph.errors import ConfigError
from tachograph.filesystems import is_network_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from tachograph.backends.base import Backend

BUILTIN: Mapping[str, str] = {
    "sqlite": "tachograph.backends.sqlite:SQLiteBackend",
    "parquet": "tachograph.backends.parquet:ParquetBackend",
    "memory": "tachograph.backends.memory:MemoryBackend",
    "http": "tachograph.backends.remote:RemoteBackend",
    "https": "tachograph.backends.remote:RemoteBackend",
}
"""Scheme of a URL to 'module:class' of its store."""

ENTRY_POINTS = "tachograph.backends"
"""Group of entry points in which other packages register stores of their own."""

SQLITE_SUFFIXES = (".sqlite", ".sqlite3", ".db")
_EXTRAS = {"parquet": "parquet", "http": "remote", "https": "remote"}
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_SECRET = re.compile(
    r"[?&;](?:[^=&;]*[_-])?(?:token|password|passwd|secret|key|signature|sig)=", re.I
)


# ---------------------------------------------------------------------------- URLs


def resolve_url(url: str, base: Path, *, bare_path: bool = True) -> str:
    """Check the URL of a store and make it absolute.

    Parameters
    ----------
    url : str
        ``sqlite:///folder/runs.sqlite`` (relative to `base`), ``sqlite:////data/runs.sqlite``
        (absolute), ``parquet:///folder``, ``memory://name``, ``https://host:port`` of a server,
        or a URL of a registered store. The path is taken as it is written, without
        percent-encoding; a leading ``~`` is the home folder.
    base : Path
        Folder that a relative path starts from; ``Path()`` is the working directory.
    bare_path : bool, default True
        Also take a path instead of a URL: a file that ends in .sqlite, .sqlite3 or .db, or an
        existing folder, which is Parquet.

    Raises
    ------
    ConfigError
        It is no URL, its scheme is not known, or it carries a secret.
    """
    match = _URL.fullmatch(url)
    if match is None:
        if bare_path and (scheme := _scheme_of_path(url, base)):
            return _absolute(scheme, url, base)
        shown = re.sub(r"[^/]*@", "***@", url)
        raise ConfigError(f"{shown!r} is not the URL of a store; {_advice(url)}")
    scheme, rest = match["scheme"].lower(), match["rest"]
    _refuse_secrets(scheme, rest)
    _target(scheme)
    if scheme in ("http", "https"):
        from tachograph import addresses

        insecure = os.environ.get(addresses.INSECURE, "") == "1"
        return addresses.server_address(f"{scheme}://{rest}", insecure=insecure)
    if rest.startswith("/"):
        if not rest.strip("/"):
            raise ConfigError(f"{url!r} names no file or folder, as {scheme}:///runs would")
        return _absolute(scheme, rest[1:], base)
    if scheme in ("sqlite", "parquet"):
        raise ConfigError(
            f"{url!r} has two slashes; write three before a relative path"
            f" ({scheme}:///{rest}), four before an absolute one"
        )
    return f"{scheme}://{rest}"


def local_path(url: str) -> Path | None:
    """File (sqlite) or folder (parquet) of an absolute URL; None for any other store."""
    scheme, _, path = url.partition(":///")
    return Path(path) if path and scheme in ("sqlite", "parquet") else None


def store_folder(url: str) -> Path | None:
    """Folder that holds a local store: the parent of an SQLite file, or the Parquet folder."""
    path = local_path(url)
    return path.parent if path and url.startswith("sqlite:") else path


def is_server(url: str) -> bool:
    """Whether a store is behind a server, which asks for a token."""
    return url.startswith(("http:", "https:"))


def is_far(url: str) -> bool:
    """Whether a store may be slow or away: all but memory and this machine's own disks."""
    folder = store_folder(url)
    return not url.startswith("memory:") if folder is None else is_network_path(folder)


def _absolute(scheme: str, path: str, base: Path) -> str:
    full = os.path.abspath(os.path.join(base, os.path.expanduser(path)))
    return f"{scheme}:///{Path(full).as_posix()}"


def _scheme_of_path(text: str, base: Path) -> str | None:
    path = base / os.path.expanduser(text)
    if path.suffix.lower() in SQLITE_SUFFIXES:
        return "sqlite"
    return "parquet" if text and path.is_dir() else None


def _advice(text: str) -> str:
    if text.lower().endswith(SQLITE_SUFFIXES) and not {":", "@"} & set(text):
        return f"write sqlite:///{text}"
    return "write sqlite:///runs.sqlite for a file, parquet:///runs for a folder"


def _refuse_secrets(scheme: str, rest: str) -> None:
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in host or _SECRET.search(rest):
        shown = host.rpartition("@")[2]  # never repeat the secret itself
        raise ConfigError(
            f"the URL {scheme}://{shown} carries a user name, token or password, and URLs are"
            " written into records; leave it out, and set the environment variable"
            " TACHOGRAPH_TOKEN or run: tachograph login"
        )


# ---------------------------------------------------------------------------- classes


def backend_class(scheme: str) -> Callable[..., Backend]:
    """The class of a store, imported now; it is called with ``(url, *, create)``.

    Raises
    ------
    ConfigError
        Nothing has that scheme, or the library that the store needs is not installed.
    """
    module, _, name = _target(scheme).partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and not f"{module}.".startswith(f"{missing}."):
            raise ConfigError(_missing(scheme, missing)) from error
        raise ConfigError(f"the {scheme} store ({module}:{name}) is broken: {error}") from error
    store: Callable[..., Backend] = found
    return store


def open_backend(url: str | os.PathLike[str], *, create: bool = False) -> Backend:
    """Open the store at a URL, or at a path as `resolve_url` takes it.

    Raises
    ------
    ConfigError
        The URL is not usable, or the store's library is not installed.
    StoreNotFound
        There is no store, and `create` is False.
    """
    # Not Path.cwd(): the working directory may be gone, and an absolute URL does not need it.
    absolute = resolve_url(os.fspath(url), Path())
    return backend_class(absolute.partition(":")[0])(absolute, create=create)


def _target(scheme: str) -> str:
    target = BUILTIN.get(scheme) or _registered().get(scheme)
    if target is None:
        raise ConfigError(_unknown(scheme))
    return target


@functools.cache
def _registered() -> Mapping[str, str]:
    from importlib.metadata import entry_points  # slow, and not needed for the built-in ones

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def _unknown(scheme: str) -> str:
    from difflib import get_close_matches

    known = sorted({*BUILTIN, *_registered()})
    near = get_close_matches(scheme, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
    return f"no store has the scheme {scheme!r}; {hint}"


def _missing(scheme: str, module: str) -> str:
    message = f"the {scheme} store needs {module.partition('.')[0]!r}, which is not installed"
    if scheme in _EXTRAS:
        message += f"; install it with: pip install 'tachograph[{_EXTRAS[scheme]}]'"
    return message


# ---------------------------------------------------------------------------- journals


def journal_folder(
    urls: Sequence[str],
    override: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Folder of the journals for these stores; nothing is made or opened.

    It lies in the folder of the first local store, or in the user's state folder
    (``$XDG_STATE_HOME/tachograph/journal``) where there is none, or where that store is on a
    network file system: there neither locks nor syncs can be trusted.

    Parameters
    ----------
    urls : sequence of str
        Absolute URLs of the stores, in the order of the configuration.
    override : path, optional
        Take this folder instead.
    environ : mapping, optional
        Environment to read; `os.environ` by default.
    """
    if override is not None:
        return Path(override).expanduser().absolute()
    folder = next((found for url in urls if (found := store_folder(url))), None)
    if folder is not None and not is_network_path(folder):
        inner = folder if folder.name == ".tachograph" else folder / ".tachograph"
        return inner / "journal"
    return _state_home(os.environ if environ is None else environ) / "tachograph" / "journal"


def _state_home(environ: Mapping[str, str]) -> Path:
    given = environ.get("XDG_STATE_HOME", "")
    # The specification of XDG_STATE_HOME says to ignore relative paths.
    if os.path.isabs(given):
        return Path(given)
    try:
        return Path.home() / ".local" / "state"
    except RuntimeError as error:  # a container's user without an entry in the user database
        raise ConfigError("there is no home folder for journals; set XDG_STATE_HOME") from error
