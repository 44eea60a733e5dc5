"""Digests of what a training has made: equal bits, equal digests, and nothing else."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
import pytest

import tachograph
from tachograph.comparing.comparison import diff
from tachograph.provenance import outcomes
from tachograph.provenance.data import fingerprint
from tachograph.provenance.outcomes import outcome
from tachograph.start import InertRun

torch = pytest.importorskip("torch")
pd = pytest.importorskip("pandas")
sparse = pytest.importorskip("scipy.sparse")

ARRAY = np.random.default_rng(0).random((1000, 7)).astype("float32")


def changed(array: Any, place: int = 0) -> Any:
    """The same but for the last bit of one number."""
    bits = array.copy().view("uint32")
    bits.reshape(-1)[place] ^= 1
    return bits.view("float32")


def test_equal_bits_have_one_digest_whatever_holds_them() -> None:
    """Arrays of any layout, tensors, batches of any size: the digest that their data would have."""
    expected = fingerprint(ARRAY)["digest"]
    holders = [ARRAY, np.asfortranarray(ARRAY), torch.tensor(ARRAY), torch.tensor(ARRAY.T).T]
    assert {outcome(one)["digest"] for one in holders} == {expected}
    for size in (1, 300, 1000):
        batches = [ARRAY[start : start + size] for start in range(0, 1000, size)]
        document = outcome(batches, batches=True)
        assert document["digest"] == expected
        assert document["shape"] == [1000, 7]
        assert math.isclose(document["l2"], np.linalg.norm(ARRAY.astype("float64")))


def test_batches_longer_than_what_is_read_at_once() -> None:
    """Each is read from its own beginning to its end."""
    long = np.arange(700_000, dtype="float32").reshape(-1, 7)
    batches = [long[:45_000], long[45_000:]]
    assert outcome(batches, batches=True)["digest"] == outcome(long)["digest"]


@pytest.mark.parametrize("place", [0, 3500, 6999])
def test_one_bit_changes_the_digest(place: int) -> None:
    """Of an array, of a batch, of a part: and the part is named."""
    other = changed(ARRAY, place)
    assert outcome(other)["digest"] != outcome(ARRAY)["digest"]
    one, two = (outcome({"b": torch.zeros(2), "a": {"x": array}}) for array in (ARRAY, other))
    assert one["digest"] != two["digest"]
    assert {name for name in one["parts"] if one["parts"][name] != two["parts"][name]} == {"a.x"}


def test_shape_type_and_place_count() -> None:
    """The same bytes in another shape, as another type or in another place are not the same."""
    values = np.arange(6, dtype="float32")
    different = [values, values.reshape(2, 3), values.reshape(3, 2), values.view("int32")]
    assert len({outcome(one)["digest"] for one in different}) == 4
    swapped = outcome({"a": values, "b": -values}), outcome({"a": -values, "b": values})
    assert swapped[0]["digest"] != swapped[1]["digest"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, dtype=torch.bfloat16) * 2,
        torch.ones(3, dtype=torch.float16) * 2,
        torch.ones(3, dtype=torch.int64) * 2,
        torch.tensor([2 + 0j, 0 + 2j, 2 + 0j]).conj(),
        torch.nn.Parameter(torch.full((3,), 2.0)),
    ],
)
def test_types_of_torch(tensor: Any) -> None:
    """Also those that numpy does not have, and those that are a view with a flag."""
    document = outcome(tensor)
    assert document["digest_of"] == "content"
    assert document["l2"] == pytest.approx(math.sqrt(12))
    assert outcome(tensor.clone())["digest"] == document["digest"] != outcome(tensor * 3)["digest"]


def test_numbers_that_cannot_be_summed_have_no_norm() -> None:
    """Those of eight bits, of which only the bits are read, and texts."""
    tensor = torch.full((3,), 2.0).to(torch.float8_e4m3fn)
    for value in (tensor, np.array(["a", "b"])):
        document = outcome(value)
        assert document["digest_of"] == "content"
        assert "l2" not in document


def test_what_is_no_tensor() -> None:
    """Bytes and files by their own SHA-256, frames and sparse matrices as data, plain values."""
    assert outcome(b"abc")["digest"] == f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    for value in (pd.DataFrame({"a": [1.0]}), pd.Series([1.0]), sparse.eye_array(3).tocsr()):
        assert outcome(value)["digest"] == fingerprint(value)["digest"]
        assert outcome({"part": value})["parts"]["part"] == fingerprint(value)["digest"]
    assert outcome({"loss": 0.3})["digest"] != outcome({"loss": 0.4})["digest"]
    assert outcome(["a", "b"])["digest"] != outcome(["a", "c"])["digest"]
    batches = [{"x": ARRAY[:4], "id": ["a", "b"]}, {"x": ARRAY[4:], "id": ["c"]}]
    assert outcome(batches, batches=True)["parts"]["x"] == fingerprint(ARRAY)["digest"]


def test_a_file_by_its_path(tmp_path: Path) -> None:
    """The digest is that of its content."""
    path = tmp_path / "predictions.bin"
    path.write_bytes(b"abc")
    assert outcome(path)["digest"] == outcome(b"abc")["digest"]


def test_what_cannot_be_read_is_said_and_the_rest_is_read() -> None:
    """A sparse tensor, one without content, an object: no digest of the whole, but of the parts."""
    parts = {"meta": torch.empty(2, device="meta"), "object": object(), "good": ARRAY}
    document = outcome(parts)
    assert document["digest"] is None
    assert document["missing"]
    assert document["parts"]["good"] == outcome(ARRAY)["digest"]
    assert document["parts"]["meta"] is document["parts"]["object"] is None
    assert outcome(object())["missing"]
    with_nan = outcome(np.array([math.nan, 1.0]))
    assert (with_nan["l2"], with_nan["digest_of"]) == (None, "content")


def test_reading_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit a sample of each part, first and last values among it."""
    monkeypatch.setattr(outcomes, "EXACT_BYTES", 1 << 20)
    monkeypatch.setattr(outcomes, "SAMPLE_BYTES", 1 << 17)
    large = np.zeros(1 << 20, "float32").reshape(1, -1)
    document = outcome({"a": large, "b": ARRAY})
    assert document["digest_of"] == "sample"
    for place in (0, (1 << 20) - 1):
        assert outcome({"a": changed(large, place), "b": ARRAY})["digest"] != document["digest"]
    small = {str(number): np.full(50_000, number, "float32") for number in range(20)}
    assert outcome(small)["digest_of"] == "sample"  # 200 kB each, 4 MB together
    monkeypatch.setattr(outcomes, "MAX_PARTS", 10)
    many = {str(number): ARRAY[number] for number in range(100)}
    document = outcome(many)
    assert (len(document["parts"]), document["more_parts"], document["count"]) == (10, 90, 100)
    assert outcome(many | {"99": ARRAY[0]})["digest"] != document["digest"]


def test_reading_leaves_all_as_it_was() -> None:
    """No gradient, no number drawn, no flag of the tensor."""
    tensor = torch.randn(4, 4, requires_grad=True)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    before = tensor.detach().clone()
    outcome({"x": tensor, "y": tensor.T})
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(tensor, before)
    assert tensor.requires_grad
    assert tensor.grad is None


def test_a_large_model_is_read_within_a_second() -> None:
    """64 MB in 300 tensors."""
    tensors = {f"layer.{i}.weight": torch.zeros(56_000) for i in range(300)}
    started = thread_time()
    outcome(tensors)
    assert thread_time() - started < 1.0


def test_recorded_at_once_and_no_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change after the call does not count; names of tensors stay; no cause, no other group."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    groups = []
    for scale in (1, 2):
        with tachograph.start_run(
            config={"backend": url, "record": {"system": False}}, params={"depth": 1}
        ) as run:
            values = ARRAY * scale
            run.log_outcome({"token.weight": values})
            run.log_outcome(values, "weights")
            values[:] = 0
        groups.append(run.run_id)
    with tachograph.open(url) as store:
        records = [store.run(one) for one in groups]
        documents = [record.provenance["outcome.predictions"] for record in records]
        assert documents[0]["parts"] == {"token.weight": outcome(ARRAY)["digest"]}
        assert documents[0]["digest"] != documents[1]["digest"]
        assert records[0].provenance["outcome.weights"]["digest"] == outcome(ARRAY)["digest"]
        assert records[0].row["group_id"] == records[1].row["group_id"]
        changes = diff(store, *groups).changes
        assert not [path for path in changes["path"] if path.startswith("outcome")]


def test_inert_run_and_broken_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: Any
) -> None:
    """Where nothing is recorded nothing is read; what fails inside stays inside."""
    InertRun().log_outcome(ARRAY)
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    monkeypatch.setattr(outcomes, "outcome", lambda *_, **__: 1 / 0)
    with tachograph.start_run(config={"backend": url, "record": {"system": False}}) as run:
        run.log_outcome(ARRAY)
    assert "log_outcome" in str(recwarn.pop().message)
