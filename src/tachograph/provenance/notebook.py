"""The cells that a notebook or an IPython terminal has run, in the order in which they ran.

Read from the history that the shell keeps anyway; nothing of it is patched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tachograph.provenance import Document, encodable
from tachograph.provenance.shell import shell, shell_kind
from tachograph.security.texts import REDACTED, redact_text

SOURCE_BYTES = 1 << 20
"""Of longer cells the sources are in the exported script alone."""

_SCRIPT_BYTES = 8 << 20
_FILE_BYTES = 32 << 20
_NO_FILE = "it is not known where the notebook is saved"


class Cell(NamedTuple):
    """One run of a cell.

    Attributes
    ----------
    number : int
        Its execution count, as the notebook shows it in brackets.
    source : str
        What was typed, secrets taken out.
    python : str
        The same in Python: magics and shell commands as calls of IPython.
    error : str or None
        Name of the exception that ended it, where the shell keeps that.
    """

    number: int
    source: str
    python: str
    error: str | None


def collect(*, content: bool = True) -> Document:
    """The cells that were run, and whether they ran in the notebook's order.

    Parameters
    ----------
    content : bool, default True
        False for no sources.
    """
    found = cells()
    if not found:
        return {"missing": "no notebook and no IPython shell has run a cell in this process"}
    file = notebook_file()
    document: Document = encodable(
        {
            "shell": shell_kind(),
            "file": None if file is None else redact_text(str(file)),
            "count": len(found),
            "cells": _documents(found, SOURCE_BYTES if content else 0),
            "order": order(found, file),
            "needs_ipython": any(map(_needs_ipython, found)),
        }
    )
    return document


def cells() -> list[Cell]:
    """The cells that this process has run so far; the last one may still be running."""
    history = getattr(shell(), "history_manager", None)
    if history is None:
        return []
    failed: Mapping[int, Any] = getattr(history, "exceptions", None) or {}
    pairs = list(zip(history.input_hist_raw, history.input_hist_parsed, strict=False))
    return [
        Cell(number, redact_text(source), redact_text(python), _error(failed.get(number)))
        for number, (source, python) in enumerate(pairs)
        if source.strip()
    ]


def _error(kept: Any) -> str | None:
    return str(kept.get("ename") or "an error") if isinstance(kept, Mapping) else None


def _documents(found: Sequence[Cell], left: int) -> list[Document]:
    documents = []
    for cell in found:
        document: Document = {"number": cell.number}
        left -= len(cell.source)
        document |= {"source": cell.source} if left >= 0 else {"left_out": len(cell.source)}
        if redactions := cell.source.count(REDACTED):
            document["redacted"] = redactions
        if cell.error is not None:
            document["error"] = cell.error
        documents.append(document)
    return documents


# ---------------------------------------------------------------------------- order


def notebook_file() -> Path | None:
    """Where the notebook is saved, as Jupyter or an editor tells its kernel."""
    variables: Mapping[str, Any] = getattr(shell(), "user_ns", None) or {}
    told = (variables.get("__vsc_ipynb_file__"), os.environ.get("JPY_SESSION_NAME"))
    for path in (Path(path) for path in told if isinstance(path, str) and path):
        for file in (path, Path(path.name)):  # a kernel starts in its notebook's folder
            if file.suffix == ".ipynb" and file.is_file():
                return file.absolute()
    return None


def order(found: Sequence[Cell], file: Path | None) -> Document:
    """Whether running the saved notebook from top to bottom would do the same.

    Returns
    -------
    dict
        in_order (None where it cannot be told), and the execution counts of cells that ran after
        a later one (`out_of_order`), more than once (`repeated`), or that the file does not hold
        as they were run (`not_in_file`); `skipped` are positions of code cells, from 1, that did
        not run although a later one did.
    """
    places = _places(file)
    if places is None:
        repeated = _repeated(found, [cell.source.strip() for cell in found])
        document: Document = {"in_order": False if repeated else None, "repeated": repeated}
        return document | {"missing": _NO_FILE if file is None else "the file cannot be read"}
    positions: list[int | None] = []
    last = 0
    late = []
    for cell in found:
        position = _nearest(places.get(cell.source.strip(), ()), last)
        positions.append(position)
        if position is not None and position < last:
            late.append(cell.number)
        last = max(last, position or 0)
    codes = {position for several in places.values() for position in several}
    document = {
        "out_of_order": late,
        "repeated": _repeated(found, positions),
        "not_in_file": [c.number for c, p in zip(found, positions, strict=True) if p is None],
        "skipped": sorted(place for place in codes - set(positions) if place < last),
    }
    return {"in_order": not any(document.values()), **document}


def _places(file: Path | None) -> dict[str, list[int]] | None:
    """Source to positions (from 1) of the code cells of a saved notebook."""
    try:
        if file is None or file.stat().st_size > _FILE_BYTES:
            return None
        saved = json.loads(file.read_bytes())
        sources = [_joined(one["source"]) for one in saved["cells"] if one["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    places: dict[str, list[int]] = {}
    for position, source in enumerate(sources, 1):
        if source.strip():
            places.setdefault(redact_text(source).strip(), []).append(position)
    return places


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _nearest(positions: Iterable[int], last: int) -> int | None:
    """Of cells with one text the next one, else the first."""
    positions = list(positions)
    return next((place for place in positions if place > last), next(iter(positions), None))


def _repeated(found: Sequence[Cell], places: Sequence[Any]) -> list[int]:
    seen = set()
    repeated = []
    for cell, place in zip(found, places, strict=True):
        if place is not None and place in seen:
            repeated.append(cell.number)
        seen.add(place)
    return repeated


# ---------------------------------------------------------------------------- export


def as_script(found: Sequence[Cell]) -> str:
    """The cells as one script, in the order in which they ran; those that failed as comments."""
    parts = []
    for cell in found:
        head = f"# %% [{cell.number}]"
        lines = cell.python.rstrip("\n").split("\n")
        if cell.error is not None:
            head += f" failed: {cell.error}"
            lines = [f"# {line}".rstrip() for line in lines]
        parts.append("\n".join([head, *lines]) + "\n")
    return "\n".join(parts)[:_SCRIPT_BYTES]


def _needs_ipython(cell: Cell) -> bool:
    return "get_ipython()" in cell.python and "get_ipython()" not in cell.source
