"""A project with one training per framework, which tests record, change, and run again."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tachograph
from tachograph.reproduction.reproduce import Wishes, prepare, run_again
from tachograph.reproduction.verdict import Verdict

PROJECT = Path(__file__).parent / "project"

GIT = ("git", "-c", "user.name=Ada", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")


class Laboratory:
    """A project in a repository, a store, and two versions of a package."""

    def __init__(self, folder: Path, project: Path | None = None) -> None:
        self.folder = folder
        self.project = folder / "lab"
        self.url = f"sqlite:///{folder}/runs.sqlite"
        self._copies = 0
        if project is not None:
            shutil.copytree(project, self.project)
        else:
            self.project.mkdir()

    def write(self, name: str, text: str) -> Path:
        """Write a file of the project."""
        file = self.project / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def commit(self) -> None:
        """Make a commit of everything."""
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
            subprocess.run([*GIT, *words], cwd=self.project, check=True, capture_output=True)

    def package(self, version: str, source: str) -> Path:
        """Make a folder in which a version of the package `helper` is installed."""
        site = self.folder / version / "site-packages"
        info = site / f"helper-{version}.dist-info"
        info.mkdir(parents=True)
        (site / "helper.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: helper\nVersion: {version}\n")
        return site

    def run(self, *words: str, python: str = sys.executable, **variables: str) -> str:
        """Run ``python <words>`` in the project, and give the id of the last run it started."""
        done = subprocess.run(
            [python, *words],
            check=False,
            cwd=self.project,
            env=environment(self.url) | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        with tachograph.open(self.url) as store:
            return str(store.runs(limit=1)["run_id"][0])

    def changed(self, name: str, old: str, new: str) -> Path:
        """A copy of the project in which a text in a file is another."""
        self._copies += 1
        copy = self.folder / f"changed {self._copies}"
        shutil.copytree(self.project, copy)
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new, 1))
        return copy

    def reproduce(self, run: str, **wishes: Any) -> Verdict:
        """Run a run again with the present interpreter, in a new folder."""
        self._copies += 1
        chosen: Mapping[str, Any] = {
            "folder": self.folder / f"again {self._copies}",
            "python": Path(sys.executable),
        }
        with tachograph.open(self.url) as store:
            prepared = prepare(store, run, Wishes(**{**chosen, **wishes}))
        return run_again(prepared)


def environment(url: str) -> dict[str, str]:
    """The present variables but for what this process has recorded, and that store."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("TACHOGRAPH_", "PYTEST_"))}
    return own | {
        "TACHOGRAPH_BACKEND": url,
        "TACHOGRAPH_RECORD_SYSTEM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "KERAS_BACKEND": "torch",
        "OMP_NUM_THREADS": "2",
    }


def rows(count: int = 200) -> list[str]:
    """Lines of the data file, always the same."""
    source = random.Random(1)
    lines = []
    for _ in range(count):
        values = [round(source.gauss(0, 1), 3) for _ in range(4)]
        label = int(sum(values) + source.gauss(0, 1) > 0)
        lines.append(",".join(map(str, [*values, label])))
    return lines
