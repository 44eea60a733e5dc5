"""Runs the examples of one page in the working directory, in order, as a reader would.

``python run_page.py PAGE [--fresh]``. Python blocks share their names unless `--fresh`; one that
begins with the name of a file, as a comment, is that file; lines of
console blocks run where they begin with a command that is there; SQL runs on the SQLite store of
the page and, through DuckDB, on a Parquet copy of it, and both give the same rows.
"""

from __future__ import annotations

import linecache
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tachograph import recorder

STORE = Path(".tachograph/runs.sqlite")
COMMANDS = ("tachograph", "sqlite3", "python")
_FENCE = re.compile(r"^([ ]*)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

_FILE = re.compile(r"# (\w+\.py)\n")


class Block(NamedTuple):
    """A fenced block of a page: its language, text and first line."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        body = re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE)
        yield Block(found[2], body, text.count("\n", 0, found.start()) + 2)


def run(page: Path, *, fresh: bool) -> None:
    """Run every block of a page."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if file := _FILE.match(block.text):
            Path(file[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            run_python(block.text, where, {"__name__": "__main__"} if fresh else names)
        elif block.language in ("console", "sh"):
            for command in commands(block):
                subprocess.run(["bash", "-ec", command], check=True)
        elif block.language == "sql":
            run_sql(block.text, where)


def run_python(text: str, where: str, names: dict[str, Any]) -> None:
    """Run one block as if it were a script of its own, to the end of its recording."""
    linecache.cache[where] = (len(text), None, text.splitlines(keepends=True), where)
    try:
        exec(compile(text, where, "exec"), names)
    finally:
        recorder.close_all()


def commands(block: Block) -> Iterator[str]:
    """The lines of a block that are commands which can be run here."""
    for line in block.text.splitlines():
        prompt = line.startswith("$ ")
        if block.language == "console" and not prompt:
            continue
        command = line.removeprefix("$ ")
        first = command.partition(" ")[0]
        if first in COMMANDS and shutil.which(first):
            yield command


def run_sql(text: str, where: str) -> None:
    """Run one query on both stores, and compare."""
    import duckdb

    if not Path("sql-copy").exists():
        subprocess.run(["tachograph", "copy", str(STORE), "parquet:///sql-copy"], check=True)
    with sqlite3.connect(STORE) as connection:
        expected = connection.execute(text).fetchall()
    home = Path.cwd()
    os.chdir("sql-copy")
    try:
        with duckdb.connect() as engine:
            engine.execute(Path("views.sql").read_text(encoding="utf-8"))
            found = engine.execute(text).fetchall()
    finally:
        os.chdir(home)
    assert found, f"{where}: no rows"
    assert sorted(map(repr, found)) == sorted(map(repr, expected)), f"{where}: {expected} {found}"


if __name__ == "__main__":
    run(Path(sys.argv[1]), fresh="--fresh" in sys.argv)
