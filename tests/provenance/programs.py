"""Programs that record a run in a process of their own, and the repositories they stand in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tachograph
from tachograph.query import Store
from tachograph.restoring.sources import Restored, restore

RECORD = "import tachograph\ntachograph.start_run().finish()\n"
"""What a program does that records a run and nothing else."""


def git(folder: Path, *arguments: str) -> str:
    """The answer of git, whatever is configured on this machine."""
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    options = ["-c", "user.name=Ada", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    answer = subprocess.run(
        ["git", *options, *arguments], cwd=folder, env=environment, check=True, capture_output=True
    )
    return answer.stdout.decode(errors="replace").strip()


def make_repository(folder: Path) -> Path:
    """A repository with one commit: `train.py`, `weights.bin`."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "Ada")
    (folder / "train.py").write_text("print(1)\n")
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


class Program:
    """Runs Python programs that record into one store, and reads what the last run recorded."""

    def __init__(self, store: Path) -> None:
        self.url = f"sqlite:///{store}"

    def run(self, folder: Path, *command: str, input: str | None = None, **variables: str) -> Run:
        """Run ``python <command>`` in a folder, with more environment variables."""
        environment = os.environ | {
            "TACHOGRAPH_BACKEND": self.url,
            "TACHOGRAPH_RECORD_SYSTEM": "false",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name in ("PYTEST_CURRENT_TEST", "TACHOGRAPH_PARENT_RUN_ID", "TACHOGRAPH_LAUNCH_ID"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environment | variables,
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return self.last()

    def last(self) -> Run:
        """What the last run recorded."""
        return Run(tachograph.open(self.url))


class Run:
    """What the last run of a store recorded of its code."""

    def __init__(self, store: Store) -> None:
        self.store = store
        record = store.run("latest")
        self.documents: dict[str, Any] = record.provenance
        self.artifacts = {row["path"]: row for row in record.artifacts}

    @property
    def source(self) -> dict[str, Any]:
        """The document on the code."""
        document: dict[str, Any] = self.documents["source"]
        return document

    def states(self) -> dict[str, str]:
        """State of each file by its key."""
        return {key: entry["state"] for key, entry in self.source["files"].items()}

    def restore(self, folder: Path) -> Restored:
        """Write its code into a folder."""
        with self.store.open_artifact(self.source["archive"]["sha256"]) as archive:
            return restore(self.source, archive, folder)
