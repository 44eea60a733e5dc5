"""Secrets that a user lets slip into a record, looked for in every byte of the stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tachograph
from tachograph import recorder

TOKEN = "ghp_Zq8vN3xK7mT2wR5yB9cD4fG6hJ1kL0pQsUaE"
PASSWORD = "correcthorse77"


def record(url: str) -> None:
    """A run with a secret in every place that takes text."""
    with tachograph.start_run(
        project=f"with {TOKEN}",
        name=f"run {TOKEN}",
        description=f"use {TOKEN}",
        hypothesis=f"{TOKEN} works",
        tags={"password": PASSWORD, "token is": TOKEN},
        params={
            "api_key": PASSWORD,
            "db": {"password": PASSWORD},
            "url": f"https://u:{PASSWORD}@h",
        },
        notes=f"the token {TOKEN}",
        config={"backend": url, "record": {"console": True}},
    ) as run:
        run.log({"loss": 0.5}, context={"phase": "train", "note": TOKEN})
        run.update(verdict=f"{TOKEN} worked")
        run.event("warning", f"{TOKEN} is old", data={"password": PASSWORD, "text": TOKEN})
        run.log_provenance("mine", {"secret": PASSWORD, "list": [TOKEN]})
        run.set_tags(more=TOKEN)
        run.set_tags([f"is {TOKEN}"])
        run.log_params({f"of {TOKEN}": 1})
        run.log_artifact(__file__, name=f"{TOKEN}.py", copy=False)
        run.log_data([1.0, 2.0], name=TOKEN)
        run.event("note", "quoted", data={"text": 'password=ab"cd', "token": TOKEN})
        print(f"connecting with {TOKEN}")
        with run.child("trial", name=f"trial {TOKEN}") as child:
            child.finish("failed", ValueError(f"{TOKEN} was refused"))


@pytest.mark.parametrize("store", ["sqlite:///{}/runs.sqlite", "parquet:///{}/runs"])
def test_no_secret_is_in_any_byte(store: str, tmp_path: Path) -> None:
    """No place that takes a name, a value or a text lets a known secret through to the disk."""
    url = store.format(tmp_path)
    record(url)
    with tachograph.open(url) as opened:
        assert "[redacted]" in opened.row("latest")["name"]
        opened.tag("latest", password=PASSWORD)
        opened.note("latest", TOKEN)
        opened.update("latest", verdict=TOKEN)
        for row in opened.sql("select data from events where data is not null"):
            json.loads(row["data"])
        rows = [str(opened.sql(f"select * from {table}").to_pylist()) for table in TEXTS]
    recorder.close_all()
    content = b"\0".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    for secret in (TOKEN, PASSWORD):
        assert secret.encode() not in content
        assert all(secret not in text for text in rows)  # Parquet compresses what it keeps


TEXTS = ("runs", "params", "tags", "metrics", "events", "provenance", "attempts", "summaries")


@pytest.mark.parametrize("fill", [1960, 1985, 19_940, 19_985])
def test_a_secret_is_taken_out_before_a_text_is_cut(fill: int) -> None:
    """Half a token at the edge of a long error would not be known for one."""
    from tachograph.recording.endings import error_data, error_line

    token = "ghp_" + "Zk3" * 12
    line = error_line(ValueError("x" * fill + f" {token}")) or ""
    assert "Zk3Zk3" not in line
    for size in range(fill, fill + 60, 10):
        assert "Zk3Zk3" not in str(error_data(ValueError(f"{token} " + "x " * (size // 2))))
