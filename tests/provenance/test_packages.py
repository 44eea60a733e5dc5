"""The packages of a run are told exactly, with what is needed to get the same ones again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import tachograph
from tachograph.provenance import collect, conda, indexes, packages
from tachograph.recording import origin

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package into the path: its metadata, and what PEP 610 says of its origin."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def add(name: str, origin: Any = None, installer: str = "pip") -> Path:
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n\nx: y")
        (info / "INSTALLER").write_text(f"{installer}\n")
        if origin is not None:
            (info / "direct_url.json").write_text(json.dumps(origin))
        return info

    packages._installed.cache_clear()
    yield add
    packages._installed.cache_clear()


def origins() -> dict[str, Any]:
    found: dict[str, Any] = packages.collect()["origins"]
    return found


def test_packages_are_those_that_are_installed() -> None:
    """The same names and versions as the standard library's slow way."""
    document = collect(["packages"])["packages"]
    expected = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    assert document["versions"] == expected
    here = document["origins"]["tachograph"]
    assert here["editable"] is True
    assert (Path(here["folder"]) / "pyproject.toml").exists()


def test_a_package_from_version_control_names_its_commit(install: Install) -> None:
    """And no credentials; broken metadata is passed over."""
    vcs = {"vcs": "git", "commit_id": "abc", "requested_revision": "main"}
    install("thing", {"url": "https://me:planted@host/x", "vcs_info": vcs, "subdirectory": "py"})
    broken = install("broken")
    (broken / "METADATA").unlink()
    (broken / "direct_url.json").write_text("{")
    assert packages.collect()["versions"]["thing"] == "1.0"
    assert origins()["thing"] == {
        "url": "https://host/x",
        "editable": False,
        "vcs": "git",
        "commit": "abc",
        "revision": "main",
        "subdirectory": "py",
    }
    assert "broken" not in origins()


def test_broken_metadata_is_passed_over_beside_the_newer_library(install: Install) -> None:
    """Once `importlib_metadata` is loaded, it finds the packages, and raises for broken ones."""
    pytest.importorskip("importlib_metadata")
    (install("broken") / "METADATA").unlink()
    assert "tachograph" in packages.collect()["versions"]


def test_a_package_that_is_worked_on_names_the_commit_of_its_folder(
    install: Install, tmp_path: Path
) -> None:
    """And whether there is more than the commit; a folder outside git has none."""
    repository = tmp_path / "my code"
    (repository / "package").mkdir(parents=True)
    (repository / "package/a.py").write_text("a = 1\n")
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@host", "-C", str(repository)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    url = (repository / "package").as_uri()
    install("worked", {"url": url, "dir_info": {"editable": True}})
    install("copied", {"url": tmp_path.as_uri(), "dir_info": {}})
    worked = origins()["worked"]
    assert worked["commit"] == head.stdout.strip()
    assert (worked["editable"], worked["dirty"], worked["in_repository"]) == (
        True,
        False,
        "package",
    )
    assert worked["folder"] == str(repository / "package")
    assert set(worked) == {
        "url",
        "editable",
        "folder",
        "commit",
        "remote",
        "dirty",
        "in_repository",
    }
    assert origins()["copied"]["commit"] is None
    assert origins()["copied"]["editable"] is False
    (repository / "package/a.py").write_text("a = 2\n")
    packages._installed.cache_clear()
    assert origins()["worked"]["dirty"] is True


def test_an_archive_keeps_its_hash(install: Install) -> None:
    """In the present form and in the older one."""
    url = "https://host/x-1.0.whl?token=planted"
    install("new", {"url": url, "archive_info": {"hashes": {"sha256": "abc"}}})
    install("old", {"url": url, "archive_info": {"hash": "sha256=def"}})
    assert origins()["new"]["hashes"] == {"sha256": "abc"}
    assert origins()["old"]["hashes"] == {"sha256": "def"}
    assert "planted" not in str(origins())


def test_indexes_are_told_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From variables of pip and uv, and from pip's files; a variable counts for more."""
    for name in indexes._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://me:planted@file/simple\n"
        "extra-index-url =\n  https://a/simple\n  https://planted@b/simple\n"
    )
    monkeypatch.setattr(indexes, "_files", lambda: iter([file, tmp_path / "none"]))
    assert indexes.collect() == {
        "index-url": ["https://file/simple"],
        "extra-index-url": ["https://a/simple", "https://b/simple"],
    }
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:planted@variable/simple")
    monkeypatch.setenv("UV_INDEX", "mine=https://c/simple https://a/simple")
    assert indexes.collect() == {
        "index-url": ["https://variable/simple"],
        "extra-index-url": ["https://c/simple", "https://a/simple", "https://b/simple"],
    }
    file.write_text("no ini")
    assert indexes.collect()["index-url"] == ["https://variable/simple"]


def test_a_conda_environment_is_read_from_its_files(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact packages with their channels, and which Python packages are conda's; nothing is run."""
    assert conda.collect() is None
    meta = tmp_path / "conda-meta"
    meta.mkdir()
    url = "https://me:planted@conda.host/conda-forge/linux-64/openssl-3.3.0-h1_0.conda"
    package = {"name": "openssl", "version": "3.3.0", "build": "h1_0", "url": url, "md5": "abc"}
    (meta / "openssl-3.3.0-h1_0.json").write_text(json.dumps(package))
    (meta / "broken.json").write_text("[]")
    (meta / "history").write_text("")
    install("by-conda", installer="conda")
    install("by-pip")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "lab")
    found = packages.collect()["conda"]
    assert found["name"] == "lab"
    (openssl,) = found["packages"]
    assert openssl == package | {"url": url.replace("me:planted@", "")}
    assert found["python"] == ["by-conda"]


def test_packages_are_listed_beside_the_training_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the recorder's thread, however many runs a process has."""
    threads = []

    def listing() -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return {"versions": {"x": "1"}}

    monkeypatch.setattr(packages, "collect", listing)
    monkeypatch.setattr(origin, "_known", {})
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    for _ in range(3):
        with tachograph.start_run(config={"backend": url}):
            pass
    assert threads == ["tachograph"]
    with tachograph.open(url) as store:
        found = store.sql("select document from provenance where section = 'packages'")
    assert list(found["document"]) == ['{"versions":{"x":"1"}}'] * 3
