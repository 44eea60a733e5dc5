"""Files on their way to stores that may be away: kept here until all of them have the content.

The outbox is a folder beside the journals, shared by the processes of a machine. Each file has a
sidecar ``<sha256>.json``, a list of the stores that still need it. Knows no run and no journal.

The content is a copy: a link would follow a training that writes its checkpoint in place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tachograph import host, registry
from tachograph.content import ContentFolder
from tachograph.delivery.drain import alone, lock_file
from tachograph.errors import StoreError

FORGOTTEN_SECONDS = 24 * 3600.0
"""After that long, what no sidecar names is removed: who was keeping it is gone."""

_LOCK_SECONDS = 10.0
_MEASURE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Parcel:
    """A file that waits.

    Attributes
    ----------
    sha256 : str
    bytes : int
    urls : tuple of str
        Stores that do not have it yet.
    """

    sha256: str
    bytes: int
    urls: tuple[str, ...]


def keep(
    folder: Path, path: Path, sha256: str, urls: Iterable[str], limit_bytes: int = 100 << 30
) -> None:
    """Keep a file's content for stores, durable when this returns.

    Parameters
    ----------
    folder : Path
        Where journals lie.
    path : Path
        The file; what happens to it later does not matter.
    sha256 : str
        Digest of its content.
    urls : iterable of str
        Who needs it.
    limit_bytes : int
        What may wait in the outbox at most.

    Raises
    ------
    OSError
        There is no room, or the file has another digest by now; nothing is kept.
    """
    box, size = _box(folder), path.stat().st_size
    if _kept_bytes(box) + size > limit_bytes:
        raise OSError(errno.EDQUOT, f"more than {limit_bytes >> 20} MiB would wait", str(box))
    content = ContentFolder(box)
    content.put(path, sha256)  # not locked: it may be large
    with _locked(box):
        content.put(path, sha256)  # another process may have sent and removed it meanwhile
        _write(box, sha256, {*_needed_by(box, sha256), *urls})
    measured, total = _measured[box]
    _measured[box] = measured, total + size


def waiting(folder: Path, urls: Sequence[str] = ()) -> list[Parcel]:
    """Files that one of these stores needs, or any store without `urls`; the oldest first."""
    box = _box(folder)
    found: list[tuple[float, Parcel]] = []
    for sidecar in box.glob("*.json"):
        needed = _needed_by(box, sidecar.stem)
        if not needed or (urls and not set(needed) & set(urls)):
            continue
        with contextlib.suppress(OSError):  # another process has just sent it
            kept = sidecar.stat().st_mtime
            size = ContentFolder(box).path(sidecar.stem).stat().st_size
            found.append((kept, Parcel(sidecar.stem, size, needed)))
    return [parcel for _, parcel in sorted(found, key=lambda pair: pair[0])]


def send(
    folder: Path,
    urls: Sequence[str] = (),
    *,
    wait: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Exception]:
    """Send what waits, and remove what all its stores have.

    Parameters
    ----------
    folder : Path
        Where journals lie.
    urls : sequence of str
        Only to these stores; by default to all.
    wait : float, default 0.0
        Seconds to wait for another process that sends to the same store; then it is left to it.
    progress : callable, optional
        Told the bytes of each file that was sent.

    Returns
    -------
    dict
        Stores that did not take all, and why; the files stay for them.
    """
    box = _box(folder)
    needed = {url for parcel in waiting(folder, urls) for url in parcel.urls}
    problems: dict[str, Exception] = {}
    for url in sorted(needed.intersection(urls) if urls else needed):
        with alone(lock_file(box, url), wait) as here:
            try:
                if here:
                    _send_to(folder, url, progress)
            except Exception as error:  # a store of another package may raise anything
                problems[url] = error
    _sweep(box)
    return problems


# ---------------------------------------------------------------------------- inside

_measured: dict[Path, tuple[float, int]] = {}  # when, and how many bytes there were


def _box(folder: Path) -> Path:
    return folder / "outbox"


def _kept_bytes(box: Path) -> int:
    """About how much waits: with thousands of files, not all are looked at for each new one."""
    now = time.monotonic()
    if box not in _measured or now - _measured[box][0] > _MEASURE_SECONDS:
        _measured[box] = now, sum(size for _, size in ContentFolder(box).list())
    return _measured[box][1]


def _send_to(folder: Path, url: str, progress: Callable[[int], None] | None) -> None:
    from tachograph.backends.base import SupportsArtifacts  # start_run does without

    box = _box(folder)
    backend = registry.open_backend(url, create=True)
    try:
        for parcel in waiting(folder, (url,)):
            if isinstance(backend, SupportsArtifacts):  # else nobody will ever take it
                backend.put_artifact(ContentFolder(box).path(parcel.sha256), parcel.sha256)
            _strike_off(box, parcel.sha256, url)
            if progress:
                progress(parcel.bytes)
    finally:
        backend.close()


def _strike_off(box: Path, sha256: str, url: str) -> None:
    """Note that a store has a file; remove it when it was the last one."""
    with _locked(box):
        left = set(_needed_by(box, sha256)) - {url}
        _write(box, sha256, left)
        if not left:
            ContentFolder(box).remove(sha256)
            _sidecar(box, sha256).unlink(missing_ok=True)


def _sweep(box: Path) -> None:
    """Remove what processes left here that were killed as they kept or removed a file."""
    for path in box.glob("??/*"):
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_mtime > FORGOTTEN_SECONDS
            if old and not _needed_by(box, path.name):
                path.unlink()
                _sidecar(box, path.name).unlink(missing_ok=True)


def _sidecar(box: Path, sha256: str) -> Path:
    return box / f"{sha256}.json"


def _needed_by(box: Path, sha256: str) -> tuple[str, ...]:
    try:
        return tuple(json.loads(_sidecar(box, sha256).read_text()))
    except (OSError, ValueError):
        return ()


def _write(box: Path, sha256: str, urls: Iterable[str]) -> None:
    """Replace a sidecar, durable when this returns."""
    temporary = box / f".{os.urandom(16).hex()}.tmp"
    with temporary.open("x") as file:
        json.dump(sorted(urls), file)
        file.flush()
        host.sync_data(file.fileno())
    temporary.rename(_sidecar(box, sha256))
    host.sync_folder(str(box))


@contextlib.contextmanager
def _locked(box: Path) -> Iterator[None]:
    with alone(box, _LOCK_SECONDS) as here:
        if not here:
            raise StoreError(f"another process has locked {box} for {_LOCK_SECONDS:g} s")
        yield
