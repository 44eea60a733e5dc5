"""What is told of the process is true, costs little, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import metadata
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


def test_packages_are_those_that_are_installed() -> None:
    """The same names and versions as the standard library's slow way."""
    document = provenance.collect(["packages"])["packages"]
    expected = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    assert document["versions"] == expected
    assert document["origins"]["tachograph"]["editable"] is True


def test_packages_name_the_commit_and_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what came from a version control system; broken metadata is passed over."""
    info = tmp_path / "thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    origin = {"url": "https://me:planted@host/x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    (info / "direct_url.json").write_text(json.dumps(origin))
    (tmp_path / "broken-2.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    from tachograph.provenance import packages

    packages._installed.cache_clear()
    document = provenance.collect(["packages"])["packages"]
    packages._installed.cache_clear()
    assert document["versions"]["thing"] == "1.0"
    assert document["origins"]["thing"] == {
        "url": "https://host/x",
        "editable": False,
        "commit": "abc",
    }


def test_how_python_was_started_is_told(tmp_path: Path) -> None:
    """A script, a module, a command, standard input, and under pytest."""
    show = SHOW.format("argv")
    (tmp_path / "train.py").write_text(show)
    script = told("argv", "train.py", "--token", "planted", "--lr=0.1", folder=tmp_path)
    assert (script["started_by"], script["entry"]) == ("script", str(tmp_path / "train.py"))
    assert script["argv"] == ["train.py", "--token", "[redacted]", "--lr=0.1"]
    assert "planted" not in str(script)
    assert script["working_directory"] == str(tmp_path)

    package = tmp_path / "model"
    package.mkdir()
    (package / "__main__.py").write_text(show)
    module = told("argv", "-m", "model", folder=tmp_path)
    assert (module["started_by"], module["entry"]) == ("module", "model")
    assert module["command"].endswith(" -m model")
    assert told("argv", "-c", show, folder=tmp_path)["started_by"] == "command"
    assert told("argv", "-", input=show, folder=tmp_path)["started_by"] == "stdin"
    assert provenance.collect(["argv"])["argv"]["started_by"] == "pytest"


def test_the_environment_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither under a secret name nor by its shape."""
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "planted")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MY_OWN", "planted")
    document = provenance.collect(["environment"])["environment"]
    assert document["OMP_NUM_THREADS"] == "3"
    assert document["TACHOGRAPH_TOKEN"] == "[redacted]"
    assert "planted" not in str(document)


def test_the_hardware_is_that_of_the_machine() -> None:
    """As far as the standard library can check it."""
    document = provenance.collect(["hardware"])["hardware"]
    assert document["cpu"]["logical"] == os.cpu_count()
    assert document["memory"]["bytes"] > 1 << 28
    assert 0 < document["disk"]["free_bytes"] <= document["disk"]["bytes"]
    assert isinstance(document["gpus"], list)


def test_nvidia_smi_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One device per line, by the fields that were asked for; a failing one is passed over."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, GPU-1, 143771, 570.1, 9.0, 00:1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (device,) = provenance.collect(["hardware"])["hardware"]["gpus"]
    assert (device["name"], device["memory.total"]) == ("NVIDIA H200", "143771")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert provenance.collect(["hardware"])["hardware"]["gpus"] == []


def test_what_belongs_to_the_start_is_quick() -> None:
    """Arguments and seeds are read while the training waits."""
    provenance.collect(["argv", "seeds"])
    times = []
    for _ in range(5):
        before = time.process_time()
        provenance.collect(["argv", "seeds"])
        times.append(time.process_time() - before)
    assert min(times) < 0.005, times
