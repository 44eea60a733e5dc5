"""Upkeep of a Parquet store: keyed tables merged into few files, deleted runs freed."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tachograph.backends.base import Garbage, Query
from tachograph.backends.parquet_files import SCHEMAS, Folder
from tachograph.backends.parquet_merge import deciding_rows
from tachograph.backends.parquet_read import Reader
from tachograph.backends.parquet_scan import codes, keep_rows, scan, sort_table
from tachograph.content import ContentFolder
from tachograph.records import TABLES, TableSpec, now_us

_TEMPORARY_SECONDS = 86_400.0
_KEYED = [spec for spec in TABLES.values() if not spec.grows]
_GROWING = [spec for spec in TABLES.values() if spec.grows]


class Upkeep:
    """Rewrites the files of one store without changing what they say.

    Parameters
    ----------
    folder : Folder
        The store.
    reader : Reader
        Reads the same store.
    """

    def __init__(self, folder: Folder, reader: Reader) -> None:
        self._folder = folder
        self._reader = reader

    # ------------------------------------------------------------------ merging

    def compact(self, grace_seconds: float) -> int:
        """Merge each keyed table into one segment, drop what was merged before the grace."""
        self._sweep()
        merged = 0
        for spec in _KEYED:
            files = self._settled(spec)
            if len(files) > 1:
                self._merge(spec, files)
                merged += len(files)
            self._drop_replaced(spec, grace_seconds)
        return merged

    def _settled(self, spec: TableSpec) -> list[Path]:
        """Segments of finished batches: rows of others may be needed as they were before."""
        cursors: dict[str, int] = {}
        settled = []
        for path in self._reader.files(spec.name):
            if part := self._folder.parse_segment(path.name):
                writer, _, last = part
                if writer not in cursors:
                    cursors[writer] = self._folder.read_cursor(writer).next
                if last >= cursors[writer]:
                    continue
            settled.append(path)
        return settled

    def _merge(self, spec: TableSpec, files: list[Path], without: Collection[str] = ()) -> None:
        """Write what decides in `files` into one segment, leaving out rows of some runs."""
        table = scan(files, SCHEMAS[spec.name], ())
        table = _without_runs(table.take(deciding_rows(spec, table)), without)
        name = f"merged.{uuid.uuid4().hex}.parquet"
        with self._folder.segment(self._folder.path / spec.name / name, spec) as file:
            file.write_table(sort_table(table, spec.key))
        record = {"at": now_us(), "files": [path.name for path in files]}
        self._folder.put_replacement(spec.name, name, record)

    def _drop_replaced(self, spec: TableSpec, grace_seconds: float) -> None:
        for path, record in self._folder.replacements(spec.name):
            if now_us() - record["at"] >= grace_seconds * 1e6:
                for name in record["files"]:
                    (self._folder.path / spec.name / name).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove temporary files of processes that were killed."""
        for path in self._folder.temporary.iterdir():
            if time.time() - path.stat().st_mtime > _TEMPORARY_SECONDS:
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ deleted runs

    def collect(self, content: ContentFolder, *, dry_run: bool) -> Garbage:
        """Find, and unless `dry_run` free, the rows and files of deleted runs."""
        deleted = self._reader.deleted_runs()
        growing = [(spec, path) for spec in _GROWING for path in self._segments(spec, deleted)]
        keyed = [spec for spec in _KEYED if "run_id" in spec.columns and spec.name != "runs"]
        found: set[str] = set()
        points = size = 0
        for spec, path in growing:
            rows = _runs_in(path)
            gone = {run: rows[run] for run in deleted & rows.keys()}
            found |= gone.keys()
            points += sum(gone.values()) if spec.name == "metrics" else 0
            size += path.stat().st_size if gone.keys() == rows.keys() else 0
            if gone and not dry_run:
                self._rewrite(spec, path, deleted, empty=gone.keys() == rows.keys())
        files = self._unused_files(content)
        for spec in keyed:
            rows_of = {run for path in self._reader.files(spec.name) for run in _runs_in(path)}
            found |= rows_of & deleted
            if rows_of & deleted and not dry_run:
                self._merge(spec, self._settled(spec), deleted)
                self._drop_replaced(spec, 0.0)
        if not dry_run:
            for digest in files:
                content.remove(digest)
        return Garbage(
            tuple(sorted(found)), points, tuple(sorted(files)), size + sum(files.values())
        )

    def _segments(self, spec: TableSpec, runs: set[str]) -> list[Path]:
        roots = {root for _, root in self._reader.roots(sorted(runs))} | runs
        return self._folder.segments(spec.name, sorted(roots)) if runs else []

    def _rewrite(self, spec: TableSpec, path: Path, runs: Collection[str], *, empty: bool) -> None:
        """Take rows out of a segment; it keeps its name, which tells what was written."""
        if empty:
            path.unlink(missing_ok=True)
            return
        with pq.ParquetFile(path) as old, self._folder.segment(path, spec) as new:
            for group in range(old.metadata.num_row_groups):
                table = old.read_row_group(group, use_threads=False)
                new.write_table(_without_runs(table, runs))

    def _unused_files(self, content: ContentFolder) -> dict[str, int]:
        """Digest and bytes of the artifacts that no row, or only hidden rows, name."""
        used = set(self._reader.read(Query("artifacts", columns=("sha256",)))["sha256"])
        columns = ("sha256", "changed_at")
        named = self._reader.read(Query("artifacts", columns=columns, order=columns[1:], raw=True))
        return content.unused(used, dict(zip(*(named[name] for name in columns), strict=True)))


def _runs_in(path: Path) -> Counter[str]:
    """How many rows of each run a segment holds."""
    table = scan([path], pa.schema([("run_id", pa.string())]), (), ["run_id"])
    numbers, runs = codes(table["run_id"])
    return Counter(dict(zip(runs, np.bincount(numbers).tolist(), strict=True)))


def _without_runs(table: pa.Table, runs: Collection[str]) -> pa.Table:
    if not runs:
        return table
    numbers, run_ids = codes(table["run_id"])
    kept = np.array([run not in runs for run in run_ids], np.bool_)
    return keep_rows(table, kept[numbers]) if len(kept) else table
