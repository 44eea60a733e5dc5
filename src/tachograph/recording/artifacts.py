"""Files of a run: their hash and place, and where wanted their content, kept by content.

Nothing is pickled. A copy goes to each store that keeps files, at once or by way of the outbox; a
reference is hashed beside the training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mimetypes
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph import registry
from tachograph.backends.base import SupportsArtifacts
from tachograph.errors import RecordError, StoreError
from tachograph.records import Row
from tachograph.values import plain
from tachograph.warning import warn_once

if TYPE_CHECKING:
    from tachograph.recording.run_facts import Facts

MAX_FILES = 10_000
_CHUNK = 1 << 20


def log_artifact(
    run: Facts, path: Path, name: str | None, *, kind: str, step: int | None, copy: bool
) -> None:
    """Record a file, or all files of a folder; see `Run.log_artifact`."""
    path = path.expanduser().absolute()
    if not path.exists():
        raise RecordError(f"there is no file or folder {path}")
    for file, label in _files(path, name or path.name):
        if copy:
            _copy(run, file, label, kind, step)
        else:
            run.in_background(_reference(run, file, label, kind, step))


def _files(path: Path, name: str) -> Iterator[tuple[Path, str]]:
    if path.is_file():
        yield path, name
        return
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if len(files) > MAX_FILES:
        raise RecordError(f"{path} has {len(files)} files; at most {MAX_FILES} can be recorded")
    for file in files:
        yield file, f"{name}/{file.relative_to(path).as_posix()}"


def _row(file: Path, label: str, kind: str, step: int | None) -> Row:
    return {
        "path": label,
        "bytes": file.stat().st_size,
        "media_type": mimetypes.guess_type(file.name)[0] or "application/octet-stream",
        "kind": kind,
        "step": step,
        "uri": file.as_uri(),
    }


def _copy(
    run: Facts, file: Path, label: str, kind: str, step: int | None, *, lasting: bool = True
) -> None:
    """Record a file with its content; where it is not `lasting`, only its content stays."""
    sha256 = digest_of(file)
    uris, later = _put_in_stores(run.config.backend, file, sha256)
    kept = _keep(run, file, sha256, later) if later else False
    row = _row(file, label, kind, step) | {"sha256": sha256}
    if uris or kept or not lasting:  # without a place readers find the content by its digest
        row["uri"] = uris[0] if uris else None
    run.record_rows("artifacts", row)


def _put_in_stores(urls: Sequence[str], file: Path, sha256: str) -> tuple[list[str], list[str]]:
    """Where the stores keep the file now, and the stores that are given it later.

    Those are servers, for which no training waits, and what cannot be written now. A folder on a
    network gets it at once, however slow it is: where such folders are used, a second copy of a
    checkpoint may not fit beside the journal.
    """
    uris, later = [], []
    for url in urls:
        if registry.is_far(url) and registry.local_path(url) is None:
            later.append(url)
            continue
        try:
            uris += _put(url, file, sha256)
        except StoreError:
            later.append(url)
    return uris, later


def _keep(run: Facts, file: Path, sha256: str, urls: list[str]) -> bool:
    try:
        run.keep_content(file, sha256, urls)
    except OSError as error:
        if run.config.record.on_error == "raise":
            raise
        warn_once(f"{file} is recorded without its content: {error}", key="no content kept")
        return False
    return True


def _put(url: str, file: Path, sha256: str) -> list[str]:
    backend = registry.open_backend(url, create=True)
    try:
        return (
            [backend.put_artifact(file, sha256)] if isinstance(backend, SupportsArtifacts) else []
        )
    finally:
        backend.close()


def _reference(run: Facts, file: Path, label: str, kind: str, step: int | None) -> Any:
    """A task that hashes a file and records where it is; the file may change later."""
    row = _row(file, label, kind, step)

    def record() -> None:
        try:
            digest: str | None = digest_of(file)
        except OSError:  # a checkpoint that was replaced meanwhile
            digest = None
        run.record_rows("artifacts", row | {"sha256": digest})

    return record


def digest_of(file: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal text."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------------------- made from values


@contextlib.contextmanager
def _folder_for_now() -> Iterator[str]:
    """A temporary folder.

    One of `TemporaryDirectory` is gone as soon as the process begins to end, while the recorder
    may still write into it.
    """
    folder = tempfile.mkdtemp()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def log_content(run: Facts, name: str, content: bytes, *, kind: str) -> None:
    """Keep bytes as a file of that name."""
    with _folder_for_now() as folder:
        file = Path(folder, Path(name).name)
        file.write_bytes(content)
        _copy(run, file, name, kind, None, lasting=False)


def log_table(run: Facts, name: str, table: Any, *, step: int | None) -> None:
    """Keep rows as JSON Lines, which DuckDB, pandas and Polars read."""
    with _folder_for_now() as folder:
        file = Path(folder, "table.jsonl")
        with open(file, "w", encoding="utf-8") as stream:
            for row in _rows_of(table):
                stream.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
        _copy(run, file, _label(name, step, ".jsonl"), "table", step, lasting=False)


def log_image(run: Facts, name: str, image: Any, *, step: int | None) -> None:
    """Keep an image as PNG, or as the file that it is."""
    if isinstance(image, str | Path):
        file = Path(image)
        _copy(run, file, _label(name, step, file.suffix), "image", step)
        return
    with _folder_for_now() as folder:
        file = Path(folder, "image.png")
        _as_pillow(image).save(file)
        _copy(run, file, _label(name, step, ".png"), "image", step, lasting=False)


def log_figure(run: Facts, name: str, figure: Any, *, step: int | None) -> None:
    """Keep a figure of Matplotlib as PNG, of Plotly as HTML."""
    with _folder_for_now() as folder:
        if hasattr(figure, "savefig"):
            file = Path(folder, "figure.png")
            figure.savefig(file)
        elif hasattr(figure, "write_html"):
            file = Path(folder, "figure.html")
            figure.write_html(file)
        else:
            raise RecordError(f"{type(figure).__name__} is no figure of Matplotlib or Plotly")
        _copy(run, file, _label(name, step, file.suffix), "figure", step, lasting=False)


def _label(name: str, step: int | None, suffix: str) -> str:
    return f"{name}{suffix}" if step is None else f"{name}/{step}{suffix}"


def _rows_of(table: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(table, Mapping):
        columns = {name: list(values) for name, values in table.items()}
        names = list(columns)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for method, arguments in (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",))):
        if hasattr(table, method):
            rows: Iterable[Mapping[str, Any]] = getattr(table, method)(*arguments)
            return rows
    rows = list(table)
    if not all(isinstance(row, Mapping) for row in rows):
        raise RecordError("a table is a data frame, an Arrow table, columns, or a list of mappings")
    return rows


def _as_pillow(image: Any) -> Any:
    if hasattr(image, "save") and hasattr(image, "mode"):
        return image
    try:
        from PIL import Image
    except ImportError as error:
        raise RecordError("arrays are kept as images by Pillow: pip install pillow") from error
    import numpy

    array = numpy.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.dtype.kind == "f":  # 0 to 1, as frameworks have it
        array = (array.clip(0, 1) * 255).round()
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(array.astype("uint8"))
