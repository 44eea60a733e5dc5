"""A training of each framework is reproduced exactly; what was changed is named as the cause.

Each change is tried with a training that takes little time; with ``TACHOGRAPH_TEST_ALL=1`` all are
tried with all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laboratory import PROJECT, Laboratory, rows

from tachograph.reproduction.verdict import DIFFERENT, EXACT, Change, Verdict

FRAMEWORKS = ("xgboost", "sklearn", "optuna", "lightning", "keras")
CHOSEN = {
    "optuna": ("code", "data", "seed", "package", "threads"),
    "xgboost": ("seed",),
    "sklearn": ("data",),
    "lightning": ("threads",),
    "keras": (),
}
"""The changes that are tried, unless all are."""

ALL = os.environ.get("TACHOGRAPH_TEST_ALL") == "1"

pytestmark = pytest.mark.slow


class Recorded:
    """The laboratory, with one run of each training that was asked for."""

    def __init__(self, folder: Path) -> None:
        self.laboratory = Laboratory(folder, PROJECT)
        self.laboratory.write("rows.csv", "\n".join(rows()) + "\n")
        self.laboratory.commit()
        self.versions = [
            self.laboratory.package("1.0", "FACTOR = 1.0\n"),
            self.laboratory.package("2.0", "FACTOR = 1.01\n"),
        ]
        self._runs: dict[str, str] = {}

    def run(self, framework: str) -> str:
        """The run of a framework's training."""
        if framework not in self._runs:
            pytest.importorskip(framework)
            self._runs[framework] = self.laboratory.run(
                f"with_{framework}.py", PYTHONPATH=str(self.versions[0])
            )
        return self._runs[framework]

    def reproduce(self, framework: str, **wishes: Any) -> Verdict:
        """Its verdict; no difference is small enough."""
        return self.laboratory.reproduce(self.run(framework), tolerance=0.0, **wishes)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("laboratory"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_training_is_reproduced_bit_for_bit(recorded: Recorded, framework: str) -> None:
    """In a new folder: each point, and what the training has made."""
    verdict = recorded.reproduce(framework)
    assert verdict.verdict == EXACT, verdict
    assert verdict.evidence.points > 5
    assert "same" in verdict.evidence.outcomes.values()
    assert verdict.cause is None
    counting = [change for change in verdict.changes if change.area not in ("seed", "other")]
    assert not counting


def _code(recorded: Recorded) -> dict[str, Any]:
    return {"code": recorded.laboratory.changed("settings.py", "RATE = 0.1", "RATE = 0.11")}


def _data(recorded: Recorded) -> dict[str, Any]:
    row = rows()[3]
    return {"code": recorded.laboratory.changed("rows.csv", row, f"7{row.lstrip('-')}")}


def _seed(_: Recorded) -> dict[str, Any]:
    return {"arguments": ["--seed", "1"]}


def _package(recorded: Recorded) -> dict[str, Any]:
    return {"variables": {"PYTHONPATH": str(recorded.versions[1])}}


def _threads(_: Recorded) -> dict[str, Any]:
    return {"variables": {"OMP_NUM_THREADS": "1"}}


CHANGES: dict[str, tuple[Callable[[Recorded], dict[str, Any]], str]] = {
    "code": (_code, "source.files.project/settings.py.sha256"),
    "data": (_data, "data."),
    "seed": (_seed, "argv.seeds"),
    "package": (_package, "packages.versions.helper"),
    "threads": (_threads, "numerics."),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_was_changed_is_the_first_cause(
    recorded: Recorded, framework: str, change: str
) -> None:
    """And the results differ; threads matter where they share sums, as in the network's loss."""
    if not (ALL or change in CHOSEN[framework]):
        pytest.skip("takes long; TACHOGRAPH_TEST_ALL=1 runs it")
    make, cause = CHANGES[change]
    verdict = recorded.reproduce(framework, **make(recorded))
    if change == "threads" and framework != "lightning":
        assert verdict.verdict == EXACT
        assert any("OMP_NUM_THREADS" in changed.path for changed in verdict.changes)
        return
    assert verdict.verdict == DIFFERENT, verdict
    assert isinstance(verdict.cause, Change)
    assert verdict.cause.path.startswith(cause)
    assert verdict.departure is not None
    if change == "code":
        line = "project/settings.py, line 3: 'RATE = 0.1' -> 'RATE = 0.11'"
        assert verdict.changed_line == line
