"""The machine, the interpreter and the settings that results can depend on are told truly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from tachograph import provenance
from tachograph.provenance import container, numerics, python


def told(section: str) -> dict[str, Any]:
    return provenance.collect([section])[section]


# ---------------------------------------------------------------------------- variables


def test_the_environment_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither under a secret name nor by its shape; the names of all secrets are listed."""
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "planted")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:planted@host/simple")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MY_OWN", "planted")
    monkeypatch.setenv("MY_PASSWORD", "planted")
    document = told("environment")
    assert document["variables"]["OMP_NUM_THREADS"] == "3"
    assert document["variables"]["TACHOGRAPH_TOKEN"] == "[redacted]"
    assert "PIP_INDEX_URL" not in document["variables"]  # see the indexes of packages
    assert {"TACHOGRAPH_TOKEN", "PIP_INDEX_URL", "MY_PASSWORD"} <= set(document["redacted"])
    assert "MY_OWN" not in str(document)
    assert "planted" not in str(document)


# ---------------------------------------------------------------------------- hardware


def test_the_hardware_is_that_of_the_machine() -> None:
    """As far as the standard library can check it."""
    document = told("hardware")
    assert document["cpu"]["logical"] == os.cpu_count()
    assert document["memory"]["bytes"] > 1 << 28
    assert 0 < document["disk"]["free_bytes"] <= document["disk"]["bytes"]
    assert isinstance(document["gpus"], list)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells it there")
def test_of_the_processor_the_flags_are_told_that_change_results() -> None:
    """Not the many others."""
    flags = set(told("hardware")["cpu"]["flags"])
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert flags == {flag for flag in flags if flag in words}
    assert ("avx2" in flags) == ("avx2" in words)
    assert not flags & {"smep", "smap", "vme"}


def test_nvidia_smi_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One device per line, by the fields that were asked for; a failing one is passed over."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, GPU-1, 143771, 570.1, 9.0, 00:1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (device,) = told("hardware")["gpus"]
    assert (device["name"], device["memory.total"]) == ("NVIDIA H200", "143771")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert told("hardware")["gpus"] == []


# ---------------------------------------------------------------------------- numerics


def test_threads_are_those_that_are_used_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they are changed in the middle of a process."""
    torch = pytest.importorskip("torch")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    import numpy  # noqa: F401  # has a BLAS with threads

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("HF_TOKEN", "planted")
    before = torch.get_num_threads()
    first = told("numerics")["pools"]
    try:
        torch.set_num_threads(1)
        with threadpoolctl.threadpool_limits(1):
            one = told("numerics")
    finally:
        torch.set_num_threads(before)
    assert one["variables"] == {"OMP_NUM_THREADS": "2", "MKL_CBWR": "COMPATIBLE"}
    assert one["torch"]["threads"] == 1
    assert {pool["num_threads"] for pool in one["pools"].values()} == {1}
    assert told("numerics")["torch"]["threads"] == before
    assert told("numerics")["pools"] == first
    assert one["numpy"]["blas"]["name"]
    assert one["torch"]["cudnn"] is None or torch.cuda.is_initialized()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells it there")
def test_libraries_in_memory_are_named() -> None:
    """The BLAS that numpy has brought with it, by its file."""
    pytest.importorskip("numpy")
    numerics._libraries.cache_clear()
    names = told("numerics")["libraries"]
    maps = Path("/proc/self/maps").read_text()
    assert any("blas" in name or "mkl" in name for name in names)
    assert all(name in maps for name in names)
    assert not [name for name in names if name.startswith(("libc.", "libpython"))]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("libscipy_openblas64_-32a4b2a6.so", True),
        ("libmkl_rt.so.2", True),
        ("libcudnn_ops.so.9", True),
        ("libcublasLt.so.12", True),
        ("libomp.dylib", True),
        ("libiomp5.so", True),
        ("libgomp-a34b3233.so.1.0.0", True),
        ("libstdc++.so.6", False),
        ("libcompat.so", False),
    ],
)
def test_numeric_libraries_are_known_by_name(name: str, expected: bool) -> None:
    """Whatever a wheel has put into their names."""
    assert (numerics._LIBRARY.fullmatch(name) is not None) is expected


# ---------------------------------------------------------------------------- Python


def test_what_has_made_the_interpreter_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment of venv, virtualenv, uv or conda, or none."""
    venv.create(tmp_path / "made", symlinks=True)
    show = "from tachograph.provenance import python; print(python.collect()['kind'])"
    path = os.pathsep.join([str(Path(provenance.__file__).parents[2])])
    answer = subprocess.run(
        [tmp_path / "made/bin/python", "-c", show],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "venv"
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for line, kind in (("uv = 0.9\n", "uv"), ("virtualenv = 20.1\n", "virtualenv")):
        (tmp_path / "pyvenv.cfg").write_text(f"home = /usr/bin\n{line}")
        assert python.collect()["kind"] == kind
    (tmp_path / "conda-meta").mkdir()
    assert python.collect()["kind"] == "conda"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "executable", "/usr/bin/nothing")
    assert python.collect()["kind"] == "system"


# ---------------------------------------------------------------------------- containers

ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("files", "variables", "expected"),
    [
        ({}, {}, {"runtime": None, "id": None, "image": None, "digest": None}),
        (
            {".dockerenv": "", "proc/self/mountinfo": f"1 2 /docker/containers/{ID}/hostname x"},
            {"CONTAINER_IMAGE": "lab/train:3"},
            {"runtime": "docker", "id": ID, "image": "lab/train:3", "digest": None},
        ),
        (
            {
                "run/.containerenv": f'engine="podman-5"\nid="{ID}"\n'
                'image="quay.io/lab/train:1"\nimageid="sha256:77"\n'
            },
            {},
            {"runtime": "podman", "id": ID, "image": "quay.io/lab/train:1", "digest": "sha256:77"},
        ),
        (
            {"proc/self/cgroup": f"0::/kubepods/pod1/cri-containerd-{ID}.scope"},
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "IMAGE_DIGEST": "sha256:88"},
            {"runtime": "kubernetes", "id": ID, "image": None, "digest": "sha256:88"},
        ),
        (
            {},
            {"APPTAINER_CONTAINER": "/images/train.sif"},
            {"runtime": "apptainer", "id": None, "image": "/images/train.sif", "digest": None},
        ),
        (
            {},
            {"container": "lxc"},
            {"runtime": "lxc", "id": None, "image": None, "digest": None},
        ),
    ],
)
def test_a_container_is_known_by_its_marks(
    tmp_path: Path, files: dict[str, str], variables: dict[str, str], expected: dict[str, Any]
) -> None:
    """Its image as far as it can be seen from inside."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container.collect(tmp_path, variables) == expected | {"build": {}}


def test_an_image_is_told_without_credentials(tmp_path: Path) -> None:
    """A registry's address may hold a password."""
    found = container.collect(tmp_path, {"IMAGE": "https://me:planted@registry/x"})
    assert "planted" not in json.dumps(found)
