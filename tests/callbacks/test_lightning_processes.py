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
    from torch.utils.data import DataLoader, TensorDataset
    from tachograph import start_run
    from tachograph.callbacks import LightningCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = json.loads(sys.argv[1])

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 1)

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
        callback = LightningCallback(config=options["config"])
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", devices=2, strategy=options["strategy"],
            callbacks=[callback] if options.get("callback", True) else [], logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )
        net = Net()
        trainer.fit(net, data, data)
        if trainer.is_global_zero and "weights" in options:
            torch.save(net.state_dict(), options["weights"])

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


def test_weights_are_unchanged(config: dict[str, Any], tmp_path: Path) -> None:
    """Two ranks end with the same bits with and without the callback."""
    import torch

    weights = []
    for callback in (False, True):
        path = str(tmp_path / f"{callback}.pt")
        options = {"callback": callback, "weights": path, "strategy": "ddp"}
        assert launch(tmp_path, config=config, **options) == 0
        weights.append(torch.load(path)["net.weight"].numpy().tobytes())
    assert weights[0] == weights[1]
