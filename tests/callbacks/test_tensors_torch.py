"""Statistics of torch tensors: those taken on a device are those of numpy, and wait for nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from tachograph.callbacks import tensors_host, tensors_torch  # noqa: E402
from tachograph.tensors import histograms  # noqa: E402

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique2", "equal", "is_nonzero"}
WAITS |= {"item", "bincount", "repeat_interleave"}


class Waits(TorchDispatchMode):
    """Notes what would make the host wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.partition("::")[2]
        if name in WAITS or (name == "_to_copy" and "cpu" in str((kwargs or {}).get("device"))):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def normal(*shape: int, scale: float = 1.0, dtype: Any = torch.float32) -> Any:
    draw = np.random.RandomState(len(shape))
    return torch.from_numpy(draw.standard_normal(shape) * scale).to(dtype)


TENSORS: dict[str, Any] = {
    "matrix": normal(300, 70),
    "scalar": torch.tensor(-3.25),
    "one": torch.tensor([0.5]),
    "empty": torch.empty(0, 4),
    "ones": torch.ones(1000),
    "nearly one": 1 + normal(1000, scale=1e-6),
    "zeros": torch.zeros(7),
    "signed zeros": torch.tensor([0.0, -0.0, 1.0]),
    "not finite": torch.tensor([1.0, math.nan, math.inf, -math.inf, -2.0, 0.0]),
    "all nan": torch.full((5,), math.nan),
    "all infinite": torch.full((5,), -math.inf),
    "huge": normal(1000, scale=1e37),
    "tiny": normal(1000, scale=1e-30),
    "denormal": normal(1000, scale=1e-42),
    "float64": normal(1000, dtype=torch.float64),
    "huge float64": normal(1000, scale=1e300, dtype=torch.float64),
    "float16": normal(1000, scale=1000.0, dtype=torch.float16),
    "bfloat16": normal(1000, dtype=torch.bfloat16),
    "strided": normal(60, 40)[::3, 1::2],
    "transposed": normal(30, 50).T,
    "many": normal(200_000) + 0.1,
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("where", ["host", "device"])
def test_statistics_are_those_of_numpy(name: str, where: str) -> None:
    """Moments of the finite values, counts of the others, exact histograms; on both ways."""
    tensor = TENSORS[name]
    if where == "host":
        measured = tensors_torch.TorchMeter().measure([tensor], histograms=True)
    else:
        measured = tensors_torch._on_device([tensor], True)
    mean, std, low, high, l2, zeros, nan, inf = measured.numbers()[0].tolist()
    values = tensor.double().numpy()
    finite = values[np.isfinite(values)]
    assert (zeros, nan, inf) == (
        (values == 0).sum(),
        np.isnan(values).sum(),
        np.isinf(values).sum(),
    )
    if finite.size:
        scale = abs(finite).max() or 1.0
        scaled = finite / scale
        assert (low, high) == (finite.min(), finite.max())
        assert l2 / scale == pytest.approx(np.linalg.norm(scaled), rel=1e-5)
        assert std / scale == pytest.approx(scaled.std(), rel=1e-4, abs=1e-9)
        assert mean / scale == pytest.approx(scaled.mean(), rel=1e-5, abs=1e-5 * scaled.std())
    else:
        assert all(math.isnan(value) for value in (mean, std, low, high, l2))
    found = measured.histograms()
    assert found is not None
    assert found[0] is not None
    counted: dict[int, int] = {}
    for value in finite.ravel():
        bin_ = histograms.bin_of(float(value))
        counted[bin_] = counted.get(bin_, 0) + 1
    assert dict(found[0]) == counted


def test_a_device_is_not_waited_for() -> None:
    """Taking statistics and histograms asks for no value, makes no copy to the host."""
    tensors = [normal(30, 20), torch.zeros(3), normal(5, dtype=torch.bfloat16)]
    with Waits() as waits:
        for tensor in tensors:
            tensors_torch.device_statistics(tensor)
            tensors_torch.device_histogram(tensor)
        torch._foreach_sub(tensors[:2], tensors[:2])
    assert waits.found == []
    with Waits() as waits:
        float(tensors[0].sum())
    assert waits.found  # or the mode above sees nothing


def test_updates_are_differences() -> None:
    """The update is new - old; a second copy of the weights is not changed by that."""
    old = [normal(40, 30), normal(9, dtype=torch.bfloat16)]
    new = [tensor + 0.5 for tensor in old]
    kept = [tensor.clone() for tensor in (*old, *new)]
    weights, updates = tensors_torch.TorchMeter().measure_changes(new, old)
    meter = tensors_host.Meter()
    for row, after, before in zip(updates.numbers(), new, old, strict=True):
        wanted = meter.measure((after.float() - before.float()).numpy())
        assert row.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert weights.numbers().shape == (2, 8)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*old, *new), strict=True))


def test_what_cannot_be_measured_is_left_out() -> None:
    """Missing, integer, meta and lazy tensors; sparse ones are measured by their values."""
    part = tensors_torch.local_part
    assert part(None) is None
    assert part(torch.arange(3)) is None
    assert part(torch.empty(3, device="meta")) is None
    assert part(torch.nn.LazyLinear(3).weight) is None
    sparse = torch.sparse_coo_tensor([[1, 1]], [[1.0, 2.0], [3.0, 4.0]], (5, 2))
    assert part(sparse).tolist() == [[4.0, 6.0]]
    key = tensors_torch.key("table", "gradient", sparse, part(sparse), "{}")
    assert (key.shape, key.logical_shape) == ((1, 2), (5, 2))
    assert part(torch.tensor([1 + 2j])).tolist() == [[1.0, 2.0]]
