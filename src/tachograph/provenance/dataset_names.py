"""What a data set says of itself: name, version, split, where it lies; as far as the object tells.

Recognises the types of other libraries by their names and imports none of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tachograph.provenance import Document
from tachograph.security.redaction import redact_value
from tachograph.security.texts import redact_text

_LENGTH = 200  # characters of one value
_ATTRIBUTES = 20  # of a frame
_REVISION = re.compile(r"^hf://datasets/[^@]{1,200}@(\w{40})/")
_TORCH = (
    *("name", "dataset_name", "version", "root", "split", "_split", "train", "mode"),
    *("image_set", "year", "background", "subset", "url"),
)


def named(data: Any, kinds: Iterable[str]) -> Document:
    """What data says of where it comes from.

    Parameters
    ----------
    data : any
    kinds : iterable of str
        Names of its class and the bases of that, the most derived first; see `data`.

    Returns
    -------
    dict
        `source`, or nothing where the data says nothing. Never raises.
    """
    reader = next((_READERS[kind] for kind in kinds if kind in _READERS), None)
    if reader is None:
        return {}
    try:
        found = _short(reader(data))
    except Exception as error:
        found = {"failed": type(error).__name__}
    return {"source": found} if found else {}


def _short(facts: Mapping[str, Any]) -> Document:
    """Plain, short, without secrets; what is not known is left out."""
    known = {name: _short_value(value) for name, value in facts.items()}
    return {
        redact_text(name.removeprefix("_")): redact_value(name, value)
        for name, value in known.items()
        if value not in (None, "", {})
    }


def _short_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _short(value)
    return value if isinstance(value, bool | int | float | None) else str(value)[:_LENGTH]


# ---------------------------------------------------------------------------- libraries


def _huggingface(data: Any) -> Document:
    info = data.info
    addresses = map(_REVISION.match, info.download_checksums or ())
    return {
        "name": info.dataset_name or info.builder_name,
        "config": info.config_name,
        "version": info.version,
        "split": data.split,
        "revision": next((found[1] for found in addresses if found), None),
        "fingerprint": getattr(data, "_fingerprint", None),
    }


def _torch(data: Any) -> Document:
    """Attributes by which torchvision and those who follow it say what was chosen."""
    own = vars(data)
    kinds = (str, bool, int, os.PathLike)
    facts = {name: own[name] for name in _TORCH if isinstance(own.get(name), kinds)}
    classes = own.get("classes")
    return facts | {"classes": len(classes) if isinstance(classes, list | tuple) else None}


def _tensorflow_info(info: Any) -> Document:
    splits = {str(name): split.num_examples for name, split in info.splits.items()}
    return {
        "name": info.name,
        "config": info.config_name,
        "version": info.version,
        "root": info.data_dir,
        "rows": splits,
    }


def _tensorflow_source(data: Any) -> Document:
    return _tensorflow_info(data.dataset_info) | {"split": data.split}


def _bunch(data: Any) -> Document:
    """Of scikit-learn's own data sets, and of those that it gets from OpenML."""
    details = data.get("details")
    details = details if isinstance(details, Mapping) else {}
    lines = str(data.get("DESCR") or "")[:10_000].splitlines()
    titles = (line.strip() for line in lines if line.strip() and not line.startswith(".."))
    return {
        "name": details.get("name"),
        "version": details.get("version"),
        "id": details.get("id"),
        "md5": details.get("md5_checksum"),
        "title": None if details else next(titles, None),
        "file": data.get("filename"),
        "module": data.get("data_module"),
        "url": data.get("url"),
    }


def _pandas(data: Any) -> Document:
    plain = str | bool | int | float
    attributes = {
        name: value
        for name, value in list(data.attrs.items())[:_ATTRIBUTES]
        if isinstance(name, str) and isinstance(value, plain) and len(str(value)) <= _LENGTH
    }
    return {"attributes": attributes}


_READERS: dict[str, Callable[[Any], Document]] = {
    "datasets.arrow_dataset.Dataset": _huggingface,
    "datasets.iterable_dataset.IterableDataset": _huggingface,
    "torch.Dataset": _torch,
    "tensorflow_datasets.core.dataset_info.DatasetInfo": _tensorflow_info,
    "tensorflow_datasets.core.data_sources.base.BaseDataSource": _tensorflow_source,
    "sklearn.Bunch": _bunch,
    "pandas.DataFrame": _pandas,
    "pandas.Series": _pandas,
}
