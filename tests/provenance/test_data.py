"""The same content has the same fingerprint, other content another, and data stays untouched."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import random
import tracemalloc
import uuid
import weakref
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import sklearn.datasets
import sklearn.utils
import torch
import xgboost
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from tachograph.callbacks.xgboost_facts import matrix_document
from tachograph.provenance import digest, files
from tachograph.provenance.data import fingerprint

ARRAY = np.arange(24.0).reshape(6, 4)


def changed(data: np.ndarray[Any, Any], where: int = 5) -> np.ndarray[Any, Any]:
    copy = data.copy()
    copy.flat[where] += 1
    return copy


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "number": [1.5, None],
            "text": ["a", None],
            "when": pd.to_datetime(["2020-01-01", None], utc=True),
            "kind": pd.Categorical(["u", "v"]),
            "nullable": pd.array([1, None], dtype="Int64"),
        }
    )


EXAMPLES: dict[str, Any] = {
    "array": ARRAY,
    "scalar": np.array(3),
    "empty": np.zeros((0, 3)),
    "texts": np.array(["a", None, 3], dtype=object),
    "dates": np.array(["2020-01-01"], dtype="M8[D]"),
    "pandas": frame(),
    "pandas index": frame().set_index("text"),
    "series": frame()["text"],
    "polars": pl.from_pandas(frame()),
    "arrow": pa.Table.from_pandas(frame()),
    "csr": scipy.sparse.csr_matrix(np.eye(3)),
    "coo": scipy.sparse.coo_array(np.eye(3)),
    "tensor": torch.arange(12.0).reshape(3, 4),
    "half": torch.arange(4).bfloat16(),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "matrix": xgboost.DMatrix(ARRAY, label=np.arange(6)),
    "list": [1, "a", None, [2.5]],
    "range": range(10),
    "other values": pd.DataFrame(
        {
            "interval": pd.cut([1, 2], 2),
            "period": pd.period_range("2020", periods=2, freq="M"),
            "array": [np.arange(2), np.arange(3)],
            "id": [uuid.UUID(int=1), uuid.UUID(int=2)],
        }
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_kind_has_a_plain_document_with_a_digest(name: str) -> None:
    """JSON as it stands, the same each time."""
    document = fingerprint(EXAMPLES[name], name="train")
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["name"] == "train"
    assert document["digest"].startswith("sha256:"), document
    assert document["digest_of"] == "content"
    assert "missing" not in document
    assert fingerprint(EXAMPLES[name], name="train") == document


def test_memory_layout_and_library_do_not_matter() -> None:
    """Of equal values of equal type: C and Fortran order, views, torch, memory maps."""
    expected = fingerprint(ARRAY)["digest"]
    padded = np.zeros((6, 8))
    padded[:, ::2] = ARRAY
    for same in (np.asfortranarray(ARRAY), padded[:, ::2], torch.from_numpy(ARRAY)):
        assert fingerprint(same)["digest"] == expected
    assert fingerprint(torch.from_numpy(np.asfortranarray(ARRAY)))["digest"] == expected


def noisy(dtype: Any) -> np.ndarray[Any, Any]:
    """Zeros with other bytes where nothing is."""
    array: np.ndarray[Any, Any] = np.frombuffer(random.randbytes(dtype.itemsize), dtype).copy()
    array[...] = np.zeros(1, dtype)
    for name in dtype.names or ():
        array[name] = 0
    return array


SAME = {
    "records with gaps": lambda: noisy(np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "long doubles": lambda: noisy(np.dtype("g")),
    "below a mask": lambda: np.ma.masked_array([1.0, random.random()], mask=[False, True]),
    "decimals": lambda: pl.DataFrame({"a": [Decimal("1.5"), Decimal("2.5")]}),
}


@pytest.mark.parametrize("name", SAME)
def test_bytes_that_are_no_content_do_not_matter(name: str) -> None:
    """Gaps, values that are masked, and where values lie."""
    assert fingerprint(SAME[name]())["digest"] == fingerprint(SAME[name]())["digest"]


def test_what_the_same_bytes_mean_matters() -> None:
    """A matrix and its transpose, a mask, categories in another order."""
    matrix = scipy.sparse.csr_array(np.triu(np.ones((3, 3))))
    masks = [np.ma.masked_array([True, True], mask=[False, last]) for last in (False, True)]
    kinds = [pd.DataFrame({"a": pd.Categorical(["u"], [*names])}) for names in ("uv", "vu")]
    for one, two in ((matrix, matrix.T), masks, kinds):
        assert fingerprint(one)["digest"] != fingerprint(two)["digest"]


@pytest.mark.parametrize(
    "other",
    [changed(ARRAY), ARRAY.astype("float32"), ARRAY.reshape(6, 2, 2), ARRAY.T, ARRAY[:5]],
    ids=["one value", "type", "shape", "transposed", "fewer rows"],
)
def test_other_content_has_another_digest(other: np.ndarray[Any, Any]) -> None:
    """One value, the type, or the shape."""
    assert fingerprint(other)["digest"] != fingerprint(ARRAY)["digest"]
    assert fingerprint(torch.from_numpy(other.copy()))["digest"] != fingerprint(ARRAY)["digest"]


def test_a_frame_is_its_names_types_content_and_index() -> None:
    """Each of them changes the digest; so does swapping the content of two columns."""
    base = pd.DataFrame({"a": [1, 2], "b": [3, 4], "t": ["x", "y"]})
    others = [
        base.rename(columns={"a": "c"}),
        base.astype({"a": "float64"}),
        base.assign(t=["x", "z"]),
        base.set_index(pd.Index([7, 8])),
        base.rename(columns={"a": "b", "b": "a"}),
        base[::-1],
    ]
    digests = {fingerprint(data)["digest"] for data in (base, *others)}
    assert len(digests) == 1 + len(others)
    assert fingerprint(base.copy())["digest"] == fingerprint(base)["digest"]


def test_chunks_of_an_arrow_table_do_not_matter() -> None:
    """Only the content does."""
    for texts in (["x", None, "z"], [f"{number:099}" for number in range(30_000)]):
        table = pa.table({"a": range(len(texts)), "b": texts})
        pieces = pa.concat_tables([table.slice(at, 1) for at in range(2)] + [table.slice(2)])
        assert fingerprint(pieces)["digest"] == fingerprint(table)["digest"]


def test_large_content_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """By position alone, first and last rows included, in the same way each time."""
    monkeypatch.setattr(digest, "EXACT_BYTES", 1 << 16)
    monkeypatch.setattr(digest, "SAMPLE_BYTES", 1 << 14)
    large = np.arange(100_000.0)
    document = fingerprint(large)
    assert document["digest_of"] == "sample"
    assert fingerprint(torch.from_numpy(large))["digest"] == document["digest"]
    for where in (0, len(large) - 1):
        assert fingerprint(changed(large, where))["digest"] != document["digest"]
    spans = list(digest.spans(100_000, 8, exact=False))
    assert spans[0][0] == 0
    assert spans[-1][1] == 100_000
    assert sum(stop - start for start, stop in spans) * 8 <= 1 << 14
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
    table = pd.DataFrame({"a": large, "b": large})
    assert fingerprint(table)["digest_of"] == "sample"
    assert fingerprint(pa.table({"text": ["x" * 1_000] * 100}))["digest_of"] == "sample"
    assert fingerprint(pa.table({"text": ["x"] * 100}))["digest_of"] == "content"


def test_no_more_than_chunks_are_copied() -> None:
    """32 MB are read with a few MB."""
    large = np.zeros((1 << 19, 8))
    fingerprint(large[:10])
    tracemalloc.start()
    fingerprint(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_no_reference_to_the_data_is_kept() -> None:
    """Neither by the document nor by a failure."""

    class Broken(np.ndarray):  # type: ignore[type-arg]
        def reshape(self, *_: Any, **__: Any) -> Any:  # called for the digest of 0-d arrays
            raise RuntimeError("broken")

    makers = (ARRAY.copy, lambda: np.array(1.0).view(Broken), lambda: torch.ones(3), frame)
    for make in makers:
        data: Any = make()
        watched = weakref.ref(data)
        fingerprint(data)
        del data
        gc.collect()
        assert watched() is None


# ---------------------------------------------------------------------------- holders


class Pictures(Dataset[Any]):
    """What a dataset of torchvision looks like."""

    def __init__(self) -> None:
        self.data = ARRAY
        self.targets = [0, 1, 0, 1, 0, 1]
        self.transform = str.lower

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("data was drawn")


class Stream(IterableDataset[Any]):
    """A dataset without length."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the stream was read")


def test_a_loader_is_described_and_never_iterated() -> None:
    """Its dataset, its batches, its generator, whose state stays."""
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(Pictures(), batch_size=2, shuffle=True, generator=generator)
    before = (generator.get_state(), torch.get_rng_state(), random.getstate())
    document = fingerprint(loader)
    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    assert document["batch_size"] == 2
    assert document["sampler"] == "RandomSampler"
    assert document["generator_seed"] == 5
    parts = document["dataset"]["parts"]
    assert set(parts) == {"data", "targets"}
    assert parts["data"]["digest"] == fingerprint(ARRAY)["digest"]
    assert fingerprint(DataLoader(Stream()))["dataset"]["rows"] is None


def test_datasets_are_read_through_their_wrappers() -> None:
    """Tensors, subsets with their rows, and concatenations."""
    tensors = TensorDataset(torch.arange(6.0), torch.arange(6))
    whole = fingerprint(tensors)
    assert whole["rows"] == 6
    assert whole["parts"]["0"]["digest"] == fingerprint(torch.arange(6.0))["digest"]
    one, two = fingerprint(Subset(tensors, [0, 1])), fingerprint(Subset(tensors, [0, 2]))
    assert one["dataset"] == two["dataset"]
    assert one["indices"]["digest"] != two["indices"]["digest"]
    assert fingerprint(ConcatDataset([tensors, tensors]))["rows"] == 12


def test_a_matrix_of_xgboost_is_its_content_and_labels() -> None:
    """Either changes its digests; names of features are told."""
    names = list("abcd")
    one = fingerprint(xgboost.DMatrix(ARRAY, label=np.zeros(6), feature_names=names))
    two = fingerprint(xgboost.DMatrix(changed(ARRAY), label=np.zeros(6)))
    three = fingerprint(xgboost.DMatrix(ARRAY, label=np.ones(6)))
    assert one["feature_names"] == names
    assert one["shape"] == [6, 4]
    assert one["digest"] != two["digest"]
    assert one["digest"] == three["digest"]
    assert one["label"]["digest"] != three["label"]["digest"]
    ranked = [xgboost.DMatrix(ARRAY, qid=[0, 0, 0, 1, 1, last]) for last in (1, 2)]
    weighed = [xgboost.DMatrix(ARRAY, feature_weights=[1, 1, 1, last]) for last in (1, 2)]
    for name, pair in (("group_ptr", ranked), ("feature_weights", weighed)):
        for read in (fingerprint, matrix_document):
            first, second = (read(matrix)[name]["digest"] for matrix in pair)
            assert first != second


def test_splits_are_described_each() -> None:
    """A mapping or a pair of arrays."""
    document = fingerprint({"train": (ARRAY, [1, 2]), "test": ARRAY[:2]})
    assert document["parts"]["test"]["rows"] == 2
    assert document["parts"]["train"]["parts"]["0"]["digest"] == fingerprint(ARRAY)["digest"]


def test_files_and_folders_are_their_content(tmp_path: Path) -> None:
    """A file's digest is its SHA-256; a folder's follows names and content, not its place."""
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "a.csv").write_text("x,y\n")
        (tmp_path / name / "b.csv").write_text("1,2\n")
    (tmp_path / "one" / "loop").symlink_to(tmp_path)
    file = fingerprint(tmp_path / "one" / "b.csv")
    assert file["digest"] == f"sha256:{hashlib.sha256(b'1,2' + bytes([10])).hexdigest()}"
    one, two = fingerprint(tmp_path / "one"), fingerprint(str(tmp_path / "two"))
    assert (one["files"], one["bytes"], one["digest"]) == (2, 8, two["digest"])
    (tmp_path / "two" / "b.csv").rename(tmp_path / "two" / "c.csv")
    assert fingerprint(tmp_path / "two")["digest"] != one["digest"]


# ---------------------------------------------------------------------------- what is not read


def _endless() -> Iterator[int]:
    yield 1
    raise AssertionError("the generator was read")


class Hostile:
    """Fails at whatever is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("hostile")

    def __len__(self) -> int:
        raise RuntimeError("hostile")


def test_what_cannot_be_read_says_why_and_nothing_raises() -> None:
    """Streams, other devices, objects, hostile objects, a missing file, a list in itself."""
    endless: list[Any] = []
    endless.append(endless)
    stream = _endless()
    unreadable = [
        *(stream, Hostile(), [Hostile()], np.array([object()]), endless, None, object, 3),
        *(torch.empty(3, device="meta"), pl.from_pandas(frame()).lazy(), Path("/nowhere/at/all")),
    ]
    for data in unreadable:
        document = fingerprint(data)
        assert document["digest"] is None, document
        assert document["missing"], document
    assert next(stream) == 1


@pytest.mark.slow
def test_tensorflow_and_jax_are_read_without_being_iterated() -> None:
    """Tensors on the processor have the digest of their numpy array; a stream has none."""
    tensorflow = pytest.importorskip("tensorflow")
    numpy_of_jax = pytest.importorskip("jax.numpy")
    expected = fingerprint(ARRAY.astype("float32"))["digest"]
    assert fingerprint(tensorflow.constant(ARRAY, "float32"))["digest"] == expected
    assert fingerprint(numpy_of_jax.asarray(ARRAY, "float32"))["digest"] == expected
    stream = fingerprint(tensorflow.data.Dataset.from_tensor_slices(ARRAY))
    assert "shape=(4,)" in stream["element"]
    assert stream["missing"] == "a stream"


# ---------------------------------------------------------------------------- names and versions


class Folder(Dataset[Any]):
    """What an `ImageFolder` of torchvision looks like."""

    def __init__(self, root: Path, *, train: bool = True) -> None:
        self.root = str(root)
        self.train = train
        self.split = "train"
        self.url = "https://me:planted@host/x.zip"
        self.classes = ["cat", "dog"]
        files = sorted(root.rglob("*.png"))
        self.samples = [(str(file), self.classes.index(file.parent.name)) for file in files]
        self.imgs = self.samples
        self.targets = [label for _, label in self.samples]
        self.loader = open

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("data was drawn")


def pictures(root: Path) -> Folder:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return Folder(root)


def test_a_folder_of_samples_is_its_files_and_classes(tmp_path: Path) -> None:
    """Wherever it lies; by name and content of each file, once, and by what was chosen."""
    document = fingerprint(pictures(tmp_path / "one"))
    assert document["source"] == {
        "root": str(tmp_path / "one"),
        "split": "train",
        "train": True,
        "url": "https://[redacted]@host/x.zip",
        "classes": 2,
    }
    assert set(document["parts"]) == {"samples", "targets"}
    assert document["parts"]["targets"]["sketch"]["distinct"] == 2
    samples = document["parts"]["samples"]
    assert (samples["files"], samples["bytes"], samples["digest_of"]) == (3, 27, "content")
    other = pictures(tmp_path / "two")
    assert fingerprint(other)["parts"]["samples"] == samples
    (tmp_path / "two/cat/1.png").write_text("cat/9.png")
    assert fingerprint(other)["parts"]["samples"]["digest"] != samples["digest"]
    other.samples = [file for file, _ in other.samples]
    assert fingerprint(other)["parts"]["samples"]["files"] == 3
    swapped = Folder(tmp_path / "one")
    swapped.samples = [(file, 1 - label) for file, label in swapped.samples]
    assert fingerprint(swapped)["parts"]["samples"]["digest"] != samples["digest"]


def test_of_many_files_only_sizes_or_names_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the document says so."""
    folder = pictures(tmp_path)
    before = fingerprint(folder)["parts"]["samples"]["digest"]
    for limit, covers in (("_FOLDER_BYTES", "names and sizes"), ("_FILES", "names")):
        monkeypatch.setattr(files, limit, 2)
        samples = fingerprint(folder)["parts"]["samples"]
        assert samples["digest_of"] == covers
        assert samples["digest"] != before


def test_data_of_sklearn_says_what_it_is() -> None:
    """Of a data set of its own the title and the file; of one from OpenML name and version."""
    document = fingerprint(sklearn.datasets.load_iris())
    assert document["source"] == {
        "title": "Iris plants dataset",
        "file": "iris.csv",
        "module": "sklearn.datasets.data",
    }
    assert set(document["parts"]) == {"data", "target", "target_names", "feature_names"}
    assert document["parts"]["target"]["sketch"]["values"] == {"0": 50, "1": 50, "2": 50}
    details = {"name": "iris", "version": "1", "id": "61", "md5_checksum": "ad48", "licence": "P"}
    openml = sklearn.utils.Bunch(data=ARRAY, details=details, url="https://www.openml.org/d/61")
    assert fingerprint(openml)["source"] == {
        **{"name": "iris", "version": "1", "id": "61", "md5": "ad48"},
        "url": "https://www.openml.org/d/61",
    }


def test_attributes_of_a_frame_are_told_where_they_are_short() -> None:
    """Without secrets; a frame without attributes has no source."""
    data = frame()
    assert "source" not in fingerprint(data)
    data.attrs = {"origin": "v3", "api_key": "planted", "notes": "x" * 300, "deep": {"a": 1}}
    source = fingerprint(data)["source"]
    assert source == {"attributes": {"origin": "v3", "api_key": "[redacted]"}}
    assert fingerprint(data["number"])["source"] == source


def test_a_dataset_that_cannot_say_what_it_is_is_described_all_the_same() -> None:
    """What it is asked for may raise."""

    class Odd(Dataset[Any]):
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            if name == "__dict__":
                raise RuntimeError("planted")
            return super().__getattribute__(name)

    document = fingerprint(Odd())
    assert document["source"] == {"failed": "RuntimeError"}
    assert document["digest"] is None


def test_a_package_that_is_called_like_a_library_is_not_taken_for_it() -> None:
    """A module `datasets` of the user's."""
    mine = type("Dataset", (Pictures,), {"__module__": "datasets.mine"})
    assert set(fingerprint(mine())["parts"]) == {"data", "targets"}
