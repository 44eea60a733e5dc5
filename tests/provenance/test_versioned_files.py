"""What DVC and Git LFS say of a file is recorded, and whether the file is still that."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tachograph.provenance import versioned_files
from tachograph.provenance.data import fingerprint
from tachograph.provenance.versioned_files import outputs

CONTENT = b"a,b\r\n1,2\r\n"
MD5 = hashlib.md5(CONTENT).hexdigest()

# As DVC 3 writes them.
FILE = f"outs:\n- md5: {MD5}\n  size: 10\n  hash: md5\n  path: train.csv\n"
LOCK = f"""\
schema: '2.0'
stages:
  prepare:
    cmd: mkdir -p out; cp data/train.csv out/result.csv; echo a command that is so long that it
      outs:
    deps:
    - path: data/train.csv
      hash: md5
      md5: 00000000000000000000000000000000
      size: 10
    params:
      params.yaml:
        outs:
        - path: out/result.csv
    outs:
    - path: out/many
      hash: md5
      md5: 6f0e3546bb18a39a887faf4fcda01336.dir
      size: 16
      nfiles: 2
    - path: out/result.csv
      hash: md5
      md5: {MD5}
      size: 10
"""
CONFIG = """\
[core]
    remote = store
['remote "store"']
    url = https://me:planted@host/bucket?token=planted
['remote "other"']
    url = s3://bucket/path
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for folder in ("data/raw", "out/many", ".dvc"):
        (tmp_path / folder).mkdir(parents=True)
    files = ("data/train.csv", "data/raw/x.csv", "out/many/x.csv", "out/result.csv", "data/no.csv")
    for file in files:
        (tmp_path / file).write_bytes(CONTENT)
    (tmp_path / "data/train.csv.dvc").write_text(FILE)
    raw = "outs:\n- md5: 0f.dir\n  size: 10\n  nfiles: 1\n  remote: other\n  path: raw\n"
    (tmp_path / "data/raw.dvc").write_text(raw)
    (tmp_path / "dvc.lock").write_text(LOCK)
    (tmp_path / ".dvc/config").write_text(CONFIG)
    return tmp_path


def test_a_file_that_dvc_tracks_is_told_with_its_version(project: Path) -> None:
    """By the file beside it; and where the content is kept, without credentials."""
    document = fingerprint(project / "data/train.csv")
    assert document["dvc"] == {
        "file": str(project / "data/train.csv.dvc"),
        "path": "train.csv",
        "md5": MD5,
        "bytes": 10,
        "files": None,
        "remote": {"name": "store", "url": "https://host/bucket?token=[redacted]"},
        "matches": True,
    }
    assert document["digest"] == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def test_a_file_that_was_changed_since_does_not_match(project: Path) -> None:
    """Neither with another length nor with the same."""
    for content in (CONTENT + b"3,4\n", CONTENT.replace(b"1", b"9")):
        (project / "data/train.csv").write_bytes(content)
        assert fingerprint(project / "data/train.csv")["dvc"]["matches"] is False


def test_the_content_of_large_files_is_not_compared(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their length is."""
    monkeypatch.setattr(versioned_files, "EXACT_BYTES", 9)
    assert fingerprint(project / "data/train.csv")["dvc"]["matches"] is None
    (project / "data/train.csv").write_bytes(CONTENT + b"more")
    assert fingerprint(project / "data/train.csv")["dvc"]["matches"] is False


def test_dvc_before_3_hashed_texts_with_the_ends_of_lines_of_unix(project: Path) -> None:
    """Where the file does not say how it was hashed."""
    unix = hashlib.md5(CONTENT.replace(b"\r\n", b"\n")).hexdigest()
    for hashed, matches in (("  hash: md5\n", False), ("", True)):
        text = f"outs:\n- md5: {unix}\n  size: 10\n{hashed}  path: train.csv\n"
        (project / "data/train.csv.dvc").write_text(text)
        assert fingerprint(project / "data/train.csv")["dvc"]["matches"] is matches


def test_what_lies_in_a_tracked_folder_has_the_version_of_that(project: Path) -> None:
    """By a file beside the folder, or a stage of a pipeline; relative paths too."""
    raw = fingerprint(project / "data/raw")["dvc"]
    assert (raw["md5"], raw["files"], raw["remote"]["name"]) == ("0f.dir", 1, "other")
    assert fingerprint(project / "data/raw/x.csv")["dvc"] == raw
    many = fingerprint(project / "out/many/x.csv")["dvc"]
    assert (many["file"], many["path"]) == (str(project / "dvc.lock"), "out/many")
    assert many["matches"] is None
    result = fingerprint(os.path.relpath(project / "out/result.csv"))["dvc"]
    assert (result["md5"], result["matches"]) == (MD5, True)
    assert "dvc" not in fingerprint(project / "data/no.csv")
    assert "dvc" not in fingerprint(project / "data")


def test_the_search_ends_at_the_top_of_the_repository(project: Path) -> None:
    """What a folder further up tracks is another's."""
    (project / "data/.git").touch()
    (project / "data/train.csv.dvc").unlink()
    (project / "data.dvc").write_text("outs:\n- md5: 1\n  path: data\n")
    assert "dvc" not in fingerprint(project / "data/train.csv")
    (project / "data/.git").unlink()
    assert fingerprint(project / "data/train.csv")["dvc"]["path"] == "data"


def test_files_of_dvc_that_cannot_be_read_say_so(project: Path) -> None:
    """The file itself is described all the same."""
    (project / "data/train.csv.dvc").write_bytes(b"\xff\xfe outs")
    document = fingerprint(project / "data/train.csv")
    assert document["dvc"] == {"failed": "UnicodeDecodeError"}
    assert document["digest"]
    (project / "data/train.csv.dvc").write_text("outs: [{path: train.csv}]\n")
    assert "dvc" not in fingerprint(project / "data/train.csv")


def test_a_pointer_of_git_lfs_tells_what_it_stands_for(tmp_path: Path) -> None:
    """Its content is not here."""
    oid = f"sha256:{'0f' * 32}"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid {oid}\nsize 123456789\n"
    (tmp_path / "model.bin").write_text(pointer)
    document = fingerprint(tmp_path / "model.bin")
    assert document["lfs"] == {"oid": oid, "bytes": 123456789}
    (tmp_path / "model.bin").write_text(f"# see {pointer}")
    assert "lfs" not in fingerprint(tmp_path / "model.bin")


# ---------------------------------------------------------------------------- YAML

TEXT = st.text(min_size=1, max_size=100)
SCALAR = TEXT | st.integers() | st.booleans() | st.none()
OTHER = st.recursive(
    SCALAR,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(["outs", "path", "x"]), inside, max_size=3)
    ),
    max_leaves=6,
)
ITEM = st.fixed_dictionaries(
    {"path": TEXT}, optional={"md5": TEXT, "size": st.integers(0), "files": OTHER, "meta": OTHER}
)


@example([{"path": "\x85    "}], None, None, False, 80)
@settings(max_examples=80, deadline=None)
@given(st.lists(ITEM, max_size=3), OTHER, OTHER, st.booleans(), st.sampled_from([20, 80, 10_000]))
def test_outputs_are_what_yaml_says_or_left_out(
    items: list[Any], before: Any, after: Any, escapes: bool, width: int
) -> None:
    """Whatever stands around them, however the values are written."""
    document = {"cmd": before, "outs": items, "meta": after}
    for data, indents in ((document, (0,)), ({"stages": {"prepare": document}}, (4,))):
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=not escapes, width=width)
        found = list(outputs(text, indents))
        assert len(found) == len(items)
        for one, item in zip(found, items, strict=True):
            told = {name: str(item[name]) for name in one if name in ("path", "md5", "size")}
            assert told == {name: value for name, value in one.items() if name in told}
            short = isinstance(item["path"], str) and item["path"].isalnum() and width > 100
            assert "path" in one or not short
