"""The first line in which the code of two runs differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from tachograph.errors import StoreError
from tachograph.provenance.source import TOTAL_BYTES
from tachograph.query import Store
from tachograph.reading.run_record import RunRecord
from tachograph.restoring.sources import read_archive


def first_changed_line(store: Store, first: RunRecord, second: RunRecord) -> str | None:
    """File, number and text of it in both runs; None where the archives do not tell.

    Examples
    --------
    ``project/model.py, line 3: 'WIDTH = 8' -> 'WIDTH = 16'``
    """
    files = _files(store, first), _files(store, second)
    cells = _cells(store, first)
    if cells is not None:  # they ran again as a script, that of the second run
        key = (second.provenance.get("source", {}).get("entry") or {}).get("file")
        files = {**files[0], str(key): cells}, files[1]
    for key in sorted(files[0].keys() & files[1].keys()):
        if files[0][key] != files[1][key]:
            return f"{key}, {_line(files[0][key], files[1][key])}"
    return None


def _files(store: Store, record: RunRecord) -> Mapping[str, bytes]:
    document: Mapping[str, Any] = record.provenance.get("source", {})
    sha256 = (document.get("archive") or {}).get("sha256")
    if sha256 is None:
        return {}
    try:
        with store.open_artifact(sha256) as archive:
            members, _ = read_archive(document, archive)
    except StoreError:
        return {}
    return {key: member.content for key, member in members.items()}


def _cells(store: Store, record: RunRecord) -> bytes | None:
    """The cells of a notebook as a script."""
    script = record.provenance.get("notebook", {}).get("script") or {}
    if "sha256" not in script:
        return None
    try:
        with store.open_artifact(script["sha256"]) as stream:
            return bytes(stream.read(TOTAL_BYTES))
    except StoreError:
        return None


def _line(first: bytes, second: bytes) -> str:
    lines = zip_longest(_lines(first), _lines(second))
    for number, (one, two) in enumerate(lines, 1):
        if one != two:
            return f"line {number}: {_quoted(one)} -> {_quoted(two)}"
    return "in the ends of its lines"


def _lines(content: bytes) -> Iterator[str]:
    yield from content.decode(errors="replace").splitlines()


def _quoted(line: str | None) -> str:
    return "nothing" if line is None else repr(line.strip()[:80])
