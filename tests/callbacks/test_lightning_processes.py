"""A training in two processes is one run: no collective of ours, no deadlock, nothing twice."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tachograph

pytest.importorskip("lightning")

from tachograph.testing.callback_contract import Record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="orphans are reaped through prctl"),
]
Read = Callable[[], Record]
SECONDS = 120

SCRIPT = textwrap.dedent(
    """
    import ctypes, json, logging, os, signal, sys, warnings
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # no orphan outlives what started it
    warnings.filterwarnings("ignore")
    import torch, lightning.pytorch as pl
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.utils.data import DataLoader, TensorDataset
    from tachograph import start_run
    from tachograph.callbacks import LightningCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = json.loads(sys.argv[1])

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 1))

        def configure_model(self):
            if options["strategy"] == "shard":
                from torch.distributed.fsdp import fully_shard

                for part in (*self.net, self.net):
                    fully_shard(part, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch, batch_idx):
            if options.get("fail") == self.global_rank and batch_idx == 2:
                raise ZeroDivisionError("planted")
            loss = self.net(batch[0]).mean() ** 2
            self.log("synced", loss, on_step=True, on_epoch=True, sync_dist=True)
            self.log("local", float(self.global_rank), on_step=True)
            return loss

        def on_train_epoch_end(self):
            ranks = self.all_gather(torch.tensor(float(self.global_rank)))
            self.log("ranks", ranks.sum(), rank_zero_only=False)
            self.log("synced_late", torch.tensor(float(self.global_rank)), sync_dist=True)

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.net(batch[0]).mean(), sync_dist=True)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def fit():
        pl.seed_everything(3, verbose=False)
        x = torch.rand(32, 4)
        data = DataLoader(TensorDataset(x), batch_size=4)
        callback = LightningCallback(config=options["config"], **options.get("keywords", {}))
        strategy = options["strategy"]
        if strategy == "shard":
            strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", devices=2, strategy=strategy,
            callbacks=[callback] if options.get("callback", True) else [], logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )
        net = Net()
        trainer.fit(net, data, data)
        if trainer.is_global_zero and "weights" in options:
            own = {n: getattr(t, "to_local", lambda t=t: t)() for n, t in net.state_dict().items()}
            torch.save(own, options["weights"])

    if __name__ == "__main__":
        for _ in range(options.get("fits", 1)):
            if options.get("in_run"):
                with start_run(config=options["config"], name="mine"):
                    fit()
            else:
                fit()
    """
)


def launch(folder: Path, **options: Any) -> int:
    """Run the script with these options; kill it with all its ranks after too long a time."""
    import json

    script = folder / "train.py"
    script.write_text(SCRIPT)
    quiet = {"OMP_NUM_THREADS": "1", "TACHOGRAPH_LAUNCH_ID": "", "TACHOGRAPH_PARENT_RUN_ID": ""}
    unset = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    environ = {key: value for key, value in os.environ.items() if key not in (*unset, *quiet)}
    process = subprocess.Popen(
        [sys.executable, "train.py", json.dumps(options)],
        cwd=folder,
        env=environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509
    )
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end after {SECONDS} s: a deadlock")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_ranks_of_a_fit_are_one_run(
    config: dict[str, Any], record: Read, tmp_path: Path, strategy: str
) -> None:
    """Ranks agree on the run of each fit; each has its own values, what is the same only once.

    The module reduces a metric in `on_train_epoch_end`, where reading metrics on one rank hangs.
    """
    assert launch(tmp_path, config=config, strategy=strategy, fits=2) == 0
    read = record()
    runs = read.runs()
    assert [run["status"] for run in runs] == ["finished", "finished"]
    assert len(read.rows("attempts")) == 2
    for run in runs:
        check_ranks(read, run["run_id"])


def check_ranks(read: Record, run_id: str) -> None:
    """One run holds what both ranks know alone, and once what both know."""
    ranks: dict[str, set[int]] = {}
    for row in read.rows("metrics", run_id=run_id):
        ranks.setdefault(row["name"], set()).add(row["rank"])
    for name in ("time/step_seconds", "time/data_seconds", "time/epoch_seconds", "local", "ranks"):
        assert ranks[name] == {0, 1}, name
    for name in ("synced_step", "synced_epoch", "synced_late", "val_loss", "lr"):
        assert ranks[name] == {0}, name
    local = read.rows("metrics", run_id=run_id, name="local", rank=1)
    assert [(row["step"], row["value"]) for row in local] == [(step, 1.0) for step in range(1, 9)]
    assert read.params(run_id)["trainer.world_size"] == 2
    assert len(read.rows("events", run_id=run_id, kind="status")) == 1


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_ranks_record_into_a_users_run(
    config: dict[str, Any], record: Read, tmp_path: Path, strategy: str
) -> None:
    """A run that the script started is the run of all ranks, and ends once."""
    assert launch(tmp_path, config=config, strategy=strategy, in_run=True) == 0
    read = record()
    runs = read.runs()
    assert [(run["name"], run["status"]) for run in runs] == [("mine", "finished")]
    assert {row["rank"] for row in read.rows("metrics", name="local")} == {0, 1}


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_failure_of_a_rank(
    config: dict[str, Any], record: Read, tmp_path: Path, strategy: str
) -> None:
    """A run of which a rank fails is failed; where Lightning tells its callbacks, it says why."""
    assert launch(tmp_path, config=config, strategy=strategy, fail=0) != 0
    read = record()
    assert read.run()["status"] == "failed"
    if strategy == "ddp":
        assert any("planted" in row["message"] for row in read.rows("events", kind="error"))


EACH_STEP = {"every": 1, "weights": "full"}


@pytest.mark.parametrize("strategy", ["ddp", "shard"])
def test_weights_are_unchanged(config: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    """Two ranks end with the same bits with and without the callback, and all it records."""
    import torch

    weights = []
    for callback in (False, True):
        path = str(tmp_path / f"{callback}.pt")
        options = {"callback": callback, "weights": path, "strategy": strategy}
        assert launch(tmp_path, config=config, keywords=EACH_STEP, **options) == 0
        state = torch.load(path, weights_only=True)
        weights.append([tensor.numpy().tobytes() for tensor in state.values()])
    assert weights[0] == weights[1]


def test_tensors_of_ranks_that_hold_the_same(
    config: dict[str, Any], record: Read, tmp_path: Path
) -> None:
    """What all ranks hold alike is recorded once, by rank 0: gradients as they are reduced."""
    assert launch(tmp_path, config=config, strategy="ddp", keywords=EACH_STEP) == 0
    rows = record().rows("tensors")
    assert len(rows) == 8 * 3 * 4  # steps, kinds, parameters
    assert {row["rank"] for row in rows} == {0}
    assert {row["context"] for row in rows} == {"{}"}


def test_tensors_of_ranks_that_hold_parts(
    config: dict[str, Any], record: Read, tmp_path: Path
) -> None:
    """Each rank records its part, and the query puts the parts together."""
    assert launch(tmp_path, config=config, strategy="shard", keywords=EACH_STEP) == 0
    read = record()
    rows = read.rows("tensors", step=8, kind="weight")
    assert {row["context"] for row in rows} == {'{"scope":"rank"}'}
    assert {row["rank"]: row["shape"] for row in rows if row["name"] == "net.0.weight"} == {
        0: "[3,4]",
        1: "[2,4]",
    }
    assert {row["logical_shape"] for row in rows if row["name"] == "net.0.weight"} == {"[5,4]"}
    check_whole(read, rows)


def check_whole(read: Record, rows: list[Any]) -> None:
    """What the query says of whole weights is so of the snapshots that the ranks left of them."""
    import numpy as np
    from safetensors.numpy import load

    store = tachograph.open(read.url)
    run_id = rows[0]["run_id"]
    parts = []
    for artifact in store.artifacts(run_id).to_pylist():
        if artifact["step"] != rows[0]["step"]:
            continue
        with store.open_artifact(artifact["sha256"]) as file:
            parts.append(load(file.read()))
    assert len(parts) == 2
    whole = store.tensors(run_id, kind="weight", step=8).to_pylist()
    assert len(whole) == 4
    for row in whole:
        values = np.concatenate(
            [part[row["name"]].ravel() for part in parts if row["name"] in part]
        )
        values = values.astype(np.float64)
        assert row["size"] == values.size
        assert (row["min"], row["max"]) == (values.min(), values.max())
        for name, value in (
            ("mean", values.mean()),
            ("std", values.std()),
            ("l2", np.linalg.norm(values)),
        ):
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
