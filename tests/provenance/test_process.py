"""What is told of the process is true, costs little, and changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tachograph import provenance

SHOW = "import json; from tachograph.provenance import collect; print(json.dumps(collect([{!r}])))"


def told(section: str, *command: str, folder: Path, **options: Any) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        **options,
    )
    document: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])[section]
    return document


def test_every_section_is_a_plain_document() -> None:
    """JSON as it stands, and none missing here."""
    documents = provenance.collect()
    assert list(documents) == list(provenance.SECTIONS)
    assert json.loads(json.dumps(documents, allow_nan=False)) == documents
    assert not {name for name, document in documents.items() if "missing" in document} - {"git"}


def test_a_section_that_fails_says_why_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that does not exist."""

    def fail() -> None:
        raise OSError("https://me:planted@host is down")

    monkeypatch.setattr("tachograph.provenance.environment.collect", fail)
    documents = provenance.collect(["environment", "nonsense"])
    assert documents["environment"]["missing"].startswith("OSError: https://[redacted]@host")
    assert "no section" in documents["nonsense"]["missing"]


def test_collecting_imports_the_standard_library_only(tmp_path: Path) -> None:
    """Whatever is installed."""
    script = (
        "import sys; from tachograph.provenance import collect, data; collect();"
        "data.fingerprint([1]);"
        "print([m for m in sys.modules if '.' not in m and m not in sys.stdlib_module_names"
        " and not m.startswith(('__editable__', '_sysconfigdata'))])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(eval(answer.stdout)) <= {"tachograph", "_distutils_hack", "__main__"}


def test_how_python_was_started_is_told(tmp_path: Path) -> None:
    """A script, a module, a command, standard input, and under pytest."""
    show = SHOW.format("argv")
    moving = "import os\nos.makedirs('out', exist_ok=True)\nos.chdir('out')\n" + show
    (tmp_path / "train.py").write_text(moving)
    script = told("argv", "train.py", "--token", "planted", "--lr=0.1", folder=tmp_path)
    assert (script["started_by"], script["entry"]) == ("script", str(tmp_path / "train.py"))
    assert script["argv"] == ["train.py", "--token", "[redacted]", "--lr=0.1"]
    assert "planted" not in str(script)
    started, moved = str(tmp_path), str(tmp_path / "out")
    assert (script["working_directory"], script["moved_to"]) == (started, moved)

    package = tmp_path / "model"
    package.mkdir()
    (package / "__main__.py").write_text(moving)
    module = told("argv", "-m", "model", folder=tmp_path)
    assert (module["working_directory"], module["moved_to"]) == (started, moved)
    assert (module["started_by"], module["entry"]) == ("module", "model")
    assert module["command"].endswith(" -m model")
    program = told("argv", "model/", folder=tmp_path)
    assert (program["working_directory"], program["moved_to"]) == (started, moved)
    assert (program["started_by"], program["entry"]) == ("script", f"{package}/__main__.py")
    assert told("argv", "-c", show, folder=tmp_path)["started_by"] == "command"
    assert told("argv", "-", input=show, folder=tmp_path)["started_by"] == "stdin"
    assert provenance.collect(["argv"])["argv"]["started_by"] == "pytest"


def test_what_belongs_to_the_start_is_quick() -> None:
    """Arguments and seeds are read while the training waits."""
    provenance.collect(["argv", "seeds"])
    times = []
    for _ in range(5):
        before = time.process_time()
        provenance.collect(["argv", "seeds"])
        times.append(time.process_time() - before)
    assert min(times) < 0.005, times
