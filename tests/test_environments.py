"""What is exported installs the same packages again, and holds no secret and no surprise."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tachograph
from tachograph.cli.app import run as command
from tachograph.errors import QueryError
from tachograph.provenance import collect
from tachograph.restoring.environments import FORMATS, export

HASH = "0123456789abcdef" * 4


def documents(**packages: Any) -> dict[str, Any]:
    """Documents of a run with two packages, one of which is replaced or added to."""
    known: dict[str, Any] = {
        "versions": {"numpy": "2.2.6", "six": "1.16.0"},
        "origins": {},
        "indexes": {},
        "conda": None,
    }
    python = {"version": "3.12.4", "implementation": "CPython", "system": "Linux"}
    return {"packages": known | packages, "python": python}


def requirements(**packages: Any) -> list[str]:
    """The lines that pip reads, without the comments."""
    lines = export(documents(**packages), "requirements").splitlines()
    return [line for line in lines if not line.startswith("#")]


def origin(name: str, **facts: Any) -> str:
    """The line on a package of version 1.0 with that origin, which may be a comment."""
    text = export(documents(versions={name: "1.0"}, origins={name: facts}), "requirements")
    return text.splitlines()[-1]


# ---------------------------------------------------------------------------- pip


def test_what_is_installed_here_is_exported_exactly() -> None:
    """Every package with its version, but pip itself and what is worked on."""
    found = collect(["packages", "python"])
    lines = export(found, "requirements").splitlines()
    parsed = [Requirement(line) for line in lines if line[0].isalnum()]
    pinned = {canonicalize_name(one.name): str(one.specifier) for one in parsed}
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name not in ("pip", "tachograph"):
            assert pinned.pop(name, f"=={distribution.version}") == f"=={distribution.version}"
    assert pinned == {}
    (ours,) = [line for line in lines if line.startswith("# tachograph")]
    assert "editable, from the folder" in ours


def test_a_commit_and_an_archive_are_named() -> None:
    """As pip understands them."""
    vcs = {"vcs": "git", "commit": "abc", "url": "https://host/x.git", "subdirectory": "py"}
    line = origin("x", **vcs)
    assert line == "x @ git+https://host/x.git@abc#subdirectory=py"
    assert Requirement(line).url == "git+https://host/x.git@abc#subdirectory=py"
    archive = {"url": "https://host/y-1.0.whl", "hashes": {"sha256": HASH}}
    assert origin("y", **archive) == f"y @ https://host/y-1.0.whl#sha256={HASH}"


def test_what_only_that_machine_had_is_a_comment() -> None:
    """Folders with the commit to take in their place, local archives, unusable addresses."""
    folder = {"url": "file:///code", "folder": "/code", "editable": True}
    git = {"commit": "abc", "remote": "git@host:me/x.git", "dirty": True, "in_repository": "py"}
    for facts, words in (
        (folder, "editable, from the folder /code"),
        (folder | git, "x @ git+ssh://git@host/me/x.git@abc#subdirectory=py, without the changes"),
        (folder | git | {"remote": None}, "commit abc, without the changes"),
        ({"url": "file:///x-1.0.whl"}, "on that machine"),
        ({"url": "file:///x", "vcs": "git", "commit": "abc"}, "on that machine"),
        ({"url": "https://host/x?token=[redacted]"}, "[redacted]"),
    ):
        line = origin("x", **facts)
        assert line.startswith("# x ")
        assert words in line


def test_indexes_are_named_that_others_can_reach() -> None:
    """And the one that has the builds of torch."""
    indexes = {
        "index-url": ["https://mirror/simple"],
        "extra-index-url": ["file:///opt/simple", "https://[redacted]@host/simple", "https://b/s"],
        "find-links": ["/opt/wheels"],
    }
    lines = requirements(indexes=indexes, versions={"torch": "2.9.0+cu128", "numpy": "2.2.6"})
    assert lines == [
        "--index-url https://mirror/simple",
        "--extra-index-url https://b/s",
        "--extra-index-url https://download.pytorch.org/whl/cu128",
        "numpy==2.2.6",
        "torch==2.9.0+cu128",
    ]


# ---------------------------------------------------------------------------- conda, uv, Docker


def test_conda_gets_its_own_builds_and_pip_the_rest() -> None:
    """With the channels that they came from; a run without conda gets the same Python."""
    packages = [
        {"name": name, "version": "1", "build": "h_0", "url": f"https://{place}/linux-64/x.conda"}
        for name, place in (
            ("openssl", "conda.anaconda.org/conda-forge"),
            ("python", "conda.anaconda.org/conda-forge"),
            ("numpy", "repo.anaconda.com/pkgs/main"),
        )
    ]
    conda = {"name": "lab", "packages": packages, "python": ["numpy"]}
    made = yaml.safe_load(export(documents(conda=conda), "conda"))
    assert made["name"] == "lab"
    assert made["channels"] == ["conda-forge", "https://repo.anaconda.com/pkgs/main"]
    assert made["dependencies"] == [
        *("openssl=1=h_0", "python=1=h_0", "numpy=1=h_0", "pip"),
        {"pip": ["six==1.16.0"]},
    ]
    plain = yaml.safe_load(export(documents(), "conda"))
    pip = {"pip": ["numpy==2.2.6", "six==1.16.0"]}
    assert plain["dependencies"] == ["python=3.12.4", "pip", pip]


def test_uv_gets_a_project_that_it_can_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The indexes as uv has them, and a lock file where the user asks for one."""
    torch = {"torch": "2.9.0+cpu", "numpy": "2.2.6"}
    indexes = {"index-url": ["https://mirror/simple"]}
    made = tomllib.loads(export(documents(versions=torch, indexes=indexes), "uv"))
    assert made["project"]["requires-python"] == "==3.12.*"
    assert made["project"]["dependencies"] == ["numpy==2.2.6", "torch==2.9.0+cpu"]
    mirror, pytorch = made["tool"]["uv"]["index"]
    assert mirror == {"url": "https://mirror/simple", "default": True}
    assert pytorch["url"].endswith("/whl/cpu")
    assert made["tool"]["uv"]["sources"] == {"torch": {"index": pytorch["name"]}}

    pytest.importorskip("uv")
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    with tachograph.start_run(config={"backend": url}) as run:
        run._recorder.flush()  # so that the next is the latest
        run.log_provenance("packages", {"versions": {}})  # nothing to download
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    file = tmp_path / "made/pyproject.toml"
    file.parent.mkdir()
    asked = ["export", run.run_id, "--environment", "uv", "--store", url]
    assert command([*asked, "--output", str(file), "--lock"]) == 0
    assert tomllib.loads((file.parent / "uv.lock").read_text())["package"]
    assert command([*asked, "--lock"]) == 1
    assert "--lock needs" in capsys.readouterr().err


def test_a_dockerfile_has_the_packages_the_settings_and_the_command() -> None:
    """Not what belongs to the machine, and nothing secret."""
    found = documents() | {
        "environment": {
            "variables": {
                "OMP_NUM_THREADS": "2",
                "XLA_FLAGS": '--a="$HOME"',
                "TF_CONFIG_FILE": "/root/x",
                "HOSTNAME": "vm",
                "CUDA_VISIBLE_DEVICES": "3",
                "KERAS_KEY": "[redacted]",
            },
            "redacted": ["HF_TOKEN", "KERAS_KEY"],
        },
        "argv": {
            "original_argv": ["/venv/bin/python3", "-u", "train.py", "--lr", "0.1"],
            "started_by": "script",
        },
        "source": {
            "working_directory": "project/sub",
            "python_path": ["project", "project/.venv/lib/python3.12/site-packages", "lib"],
        },
        "numerics": {"torch": {"cuda": "12.8"}},
        "hardware": {"driver": "570.1"},
    }
    lines = export(found, "docker").splitlines()
    assert "FROM python:3.12.4" in lines
    start = lines.index("COPY <<'END_OF_FILE' /tmp/requirements.txt")
    end = lines.index("END_OF_FILE")
    assert lines[start + 1 : end] == export(found, "requirements").splitlines()
    variables = [line for line in lines if line.startswith("ENV ")]
    assert variables == [
        'ENV OMP_NUM_THREADS="2"',
        r'ENV XLA_FLAGS="--a=\"\$HOME\""',
        'ENV PYTHONPATH="/run-again/project:/run-again/lib"',
    ]
    assert lines[-2:] == [
        "WORKDIR /run-again/project/sub",
        'CMD ["python", "-u", "train.py", "--lr", "0.1"]',
    ]
    assert "# Set when the run was recorded, and secret: HF_TOKEN, KERAS_KEY" in lines
    assert any("driver (it was 570.1)" in line for line in lines)
    found["container"] = {"image": "lab/train:3", "digest": "sha256:77"}
    assert "FROM lab/train:3@sha256:77" in export(found, "docker")
    conda = {"name": "lab", "packages": [], "python": []}
    assert "FROM condaforge/miniforge3" in export(found | documents(conda=conda), "docker")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ({"started_by": "notebook", "original_argv": ["p", "-m", "ipykernel"]}, "# CMD ["),
        (
            {"started_by": "script", "original_argv": ["p", "t.py", "--token", "[redacted]"]},
            "stands where the command had a secret",
        ),
        ({}, "an unknown command"),
    ],
)
def test_a_command_that_cannot_be_run_as_it_is_is_said(argv: dict[str, Any], words: str) -> None:
    """In a comment above it."""
    assert words in export(documents() | {"argv": argv}, "docker")


# ---------------------------------------------------------------------------- what must not be


@pytest.mark.parametrize("form", FORMATS)
def test_no_text_of_a_record_becomes_a_line_of_its_own(form: str) -> None:
    """What comes out of a store may have been made by anyone."""
    evil = "1\nRUN evil\r\u2028--index-url evil"
    found = documents(
        versions={"a\nRUN evil": "1", "b": evil, "--index-url=evil": "1"},
        origins={"b": {"url": f"https://host/{evil}", "commit": evil}},
        indexes={"extra-index-url": [f"https://host/{evil}"]},
        conda={
            "name": evil,
            "python": [],
            "packages": [{**dict.fromkeys(("name", "version", "build", "url"), evil)}],
        },
    )
    found |= {
        "python": {"version": evil, "distribution": evil},
        "environment": {"variables": {"OMP_X": evil}, "redacted": [evil]},
        "argv": {"original_argv": ["p", evil], "started_by": evil},
        "container": {"image": evil},
        "source": {"working_directory": evil, "python_path": [evil]},
    }
    lines = export(found, form).splitlines()
    assert any("RUN evil" in line for line in lines)
    assert not [line for line in lines if line.lstrip().startswith(("RUN evil", "--index-url"))]


def test_what_cannot_be_exported_is_an_error() -> None:
    """With the formats that there are, or with why the packages are not known."""
    with pytest.raises(QueryError, match="there is no format 'pip'; there are: requirements"):
        export(documents(), "pip")
    with pytest.raises(QueryError, match="not known: OSError"):
        export({"packages": {"missing": "OSError: gone"}}, "uv")
    with pytest.raises(QueryError, match="not known: they were not recorded"):
        export({}, "conda")


def test_the_command_prints_or_writes_and_never_over_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As any other export of the same run."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    with tachograph.start_run(config={"backend": url}) as run:
        pass
    asked = ["export", run.run_id, "-e", "requirements", "-s", url]
    assert command(asked) == 0
    text = capsys.readouterr().out
    with tachograph.open(url) as store:
        assert text == export(store.run(run.run_id).provenance, "requirements")
    file = tmp_path / "requirements.txt"
    assert command([*asked, "-o", str(file)]) == 0
    assert file.read_text() == text
    file.write_text("mine")
    assert command([*asked, "-o", str(file)]) == 1
    assert file.read_text() == "mine"
    assert "cannot be written: File exists" in capsys.readouterr().err


# ---------------------------------------------------------------------------- secrets

SECRET = "correcthorse77"


def gunzipped(content: bytes) -> bytes:
    """What an archive holds, as one piece."""
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


@pytest.mark.parametrize("store", ["sqlite:///{}/runs.sqlite", "parquet:///{}/runs"])
def test_planted_secrets_are_in_no_byte_and_no_export(store: str, tmp_path: Path) -> None:
    """In variables, arguments, addresses, indexes and config files; their names are listed."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "c.json").write_text(
        json.dumps({"lr": 0.1, "db": {"password": SECRET, "url": f"postgres://me:{SECRET}@host"}})
    )
    (folder / "d.json").write_text(f'{{"secrets":\n{{"first": "{SECRET}"}}, "width": 2}}')
    (folder / "c.toml").write_text(f'depth = 3 # api_key = "{SECRET}"\n')
    (folder / "train.py").write_text(
        "import argparse, sys, tachograph\n"
        "parser = argparse.ArgumentParser()\n"
        "for name in ('config', 'extra', 'more', 'url', 'password'):\n"
        "    parser.add_argument('--' + name)\n"
        "parser.add_argument('--api-key', dest='k')\n"
        "args = parser.parse_args()\n"
        f"with tachograph.start_run(config={{'backend': {store.format(tmp_path)!r}}}) as run:\n"
        "    print(run.run_id)\n"
    )
    arguments = ["--config", "c.json", "--extra=c.toml", "--more", "d.json", "--api-key", SECRET]
    arguments += [f"--password={SECRET}", "--url", f"https://me:{SECRET}@host/x"]
    variables = {
        "HF_TOKEN": SECRET,
        "OMP_PASSWORD": SECRET,
        "PIP_INDEX_URL": f"https://me:{SECRET}@pypi.lab/simple",
        "UV_INDEX": f"lab=https://me:{SECRET}@uv.lab/simple",
        "TACHOGRAPH_TOKEN": SECRET,
    }
    done = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    with tachograph.open(store.format(tmp_path)) as opened:
        record = opened.run(done.stdout.strip())
        found, artifacts = record.provenance, list(record.artifacts["path"])
        everything = [json.dumps(found), json.dumps(record.params), str(record.artifacts)]
    exports = [export(found, form) for form in FORMATS]
    kept = [file for file in tmp_path.rglob("*") if file.is_file() and folder not in file.parents]
    assert kept
    with tachograph.open(store.format(tmp_path)) as opened:
        for row in record.artifacts:
            with opened.open_artifact(row["sha256"]) as stream:
                exports.append(gunzipped(stream.read()).decode("latin-1"))
    for text in (*everything, *exports, *(file.read_bytes().decode("latin-1") for file in kept)):
        assert SECRET not in text
    assert {"HF_TOKEN", "OMP_PASSWORD", "PIP_INDEX_URL"} <= set(found["environment"]["redacted"])
    assert {f"config/{name}.json" for name in ("c.json", "c.toml", "d.json")} <= set(artifacts)
    assert "secrets cannot be taken out" in found["source"]["left_out"]["project/d.json"]
    assert record.params["lr"] == 0.1
    assert record.params["k"] == "[redacted]"
    assert "--index-url https://pypi.lab/simple" in exports[0]
