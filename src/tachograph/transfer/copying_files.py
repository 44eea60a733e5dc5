"""Copies the files that runs refer to from store to store, each content once.

Knows the interface of a store and nothing of media.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tachograph.backends.base import Backend, Query, SupportsArtifacts
from tachograph.errors import StoreError
from tachograph.reading import portions


def send_files(
    source: Backend,
    destination: Backend,
    run_ids: Sequence[str] | None,
    progress: Callable[[str, int, int], None],
) -> list[int]:
    """Send the files that the destination does not keep; return how large they were.

    Parameters
    ----------
    source, destination : Backend
    run_ids : sequence of str or None
        Only files of these runs; None is all that the source keeps.
    progress : callable
        Told 'files', the bytes that were sent, and all that there are to send.

    Raises
    ------
    StoreError
        The destination keeps no files, and there are some.
    """
    if not isinstance(source, SupportsArtifacts):
        return []
    kept = dict(source.list_artifacts())
    if run_ids is not None:
        kept = {sha256: kept[sha256] for sha256 in _of_runs(source, run_ids) & kept.keys()}
    if not kept:
        return []
    if not isinstance(destination, SupportsArtifacts):
        raise StoreError(f"{destination.url} keeps no files, and {len(kept)} belong to the runs")
    missing = sorted(kept.keys() - {sha256 for sha256, _ in destination.list_artifacts()})
    total = sum(kept[sha256] for sha256 in missing)
    sent: list[int] = []
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        for sha256 in missing:
            path = Path(folder, sha256)
            with source.open_artifact(sha256) as content, path.open("wb") as file:
                shutil.copyfileobj(content, file)
            destination.put_artifact(path, sha256)
            path.unlink()
            sent.append(kept[sha256])
            done += kept[sha256]
            progress("files", done, total)
    return sent


def _of_runs(source: Backend, run_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for some in portions.chunks(run_ids):
        where = [portions.one_of("run_id", some)]
        found |= set(source.read(Query("artifacts", where, ["sha256"]))["sha256"])
    return found
