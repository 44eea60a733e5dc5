"""What a notebook ran is recorded in the order in which it ran, and whether that was its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import Program, Run

from tachograph.provenance.notebook import Cell, as_script, collect, order

TOKEN = "ghp_Zq8vN3xK7mT2wR5yB9cD4fG6hJ1kL0pQsUaE"


def ran(*sources: str) -> list[Cell]:
    """Cells as they were run, numbered from 1."""
    return [Cell(number, source, source, None) for number, source in enumerate(sources, 1)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A notebook with the code cells a, b, c, and a text between."""
    file = tmp_path / "work.ipynb"
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "source": ["a\n"]},
        {"cell_type": "markdown", "source": ["b"]},
        {"cell_type": "code", "source": "b"},
        {"cell_type": "code", "source": ["c\n", "c"]},
        {"cell_type": "code", "source": []},
    ]
    file.write_text(json.dumps({"cells": cells}))
    return file


def test_from_top_to_bottom_is_in_order(saved: Path) -> None:
    """Also where the last cells were not run yet."""
    assert order(ran("a", "b", "c\nc"), saved)["in_order"] is True
    assert order(ran("a", "b"), saved)["in_order"] is True


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        (("b", "a", "c\nc"), {"out_of_order": [2]}),
        (("a", "b", "b"), {"repeated": [3]}),
        (("a", "b", "a", "c\nc"), {"out_of_order": [3], "repeated": [3]}),
        (("a", "b changed"), {"not_in_file": [2]}),
        (("a", "c\nc"), {"skipped": [2]}),
    ],
)
def test_any_other_order_names_the_cells(
    sources: tuple[str, ...], told: dict[str, list[int]], saved: Path
) -> None:
    """By their numbers; what was left out by its place in the notebook."""
    found = order(ran(*sources), saved)
    nothing: dict[str, list[int]] = {
        "out_of_order": [],
        "repeated": [],
        "not_in_file": [],
        "skipped": [],
    }
    assert found == {"in_order": False} | nothing | told


def test_cells_with_one_text_are_told_apart_by_their_place(tmp_path: Path) -> None:
    """`fit()` twice in a notebook, and run twice, is in order."""
    file = tmp_path / "work.ipynb"
    cells = [{"cell_type": "code", "source": text} for text in ("fit()", "show()", "fit()")]
    file.write_text(json.dumps({"cells": cells}))
    assert order(ran("fit()", "show()", "fit()"), file)["in_order"] is True
    assert order(ran("fit()", "fit()", "show()"), file)["out_of_order"] == [3]


def test_without_the_file_the_order_is_not_known(tmp_path: Path) -> None:
    """Only that something ran twice is."""
    assert order(ran("a", "b"), None)["in_order"] is None
    assert order(ran("a", "a"), None) == {
        "in_order": False,
        "repeated": [2],
        "missing": "it is not known where the notebook is saved",
    }
    (tmp_path / "broken.ipynb").write_text("{")
    assert "cannot be read" in order(ran("a"), tmp_path / "broken.ipynb")["missing"]


def test_the_script_has_what_failed_as_comments() -> None:
    """It would end there."""
    script = as_script([Cell(1, "a", "a", None), Cell(3, "b\nc", "b\nc", "ValueError")])
    assert script == "# %% [1]\na\n\n# %% [3] failed: ValueError\n# b\n# c\n"


def test_outside_a_notebook_it_is_missing() -> None:
    """And said to be."""
    assert "no notebook" in collect()["missing"]


# ---------------------------------------------------------------------------- real shells

_CELLS = (
    "import tachograph, helper",
    "x = 1",
    "%precision 3",
    "run = tachograph.start_run()",
    f"1 / 0  # with {TOKEN}",
    "x = 1",
    "run.finish()",
)


def check(run: Run) -> None:
    """What either kind of shell has to have recorded of these cells."""
    document = run.documents["notebook"]
    assert document["count"] == len(_CELLS)
    assert [cell["number"] for cell in document["cells"]] == list(range(1, 8))
    assert [cell["source"] for cell in document["cells"]][3:4] == [_CELLS[3]]
    assert document["cells"][4]["redacted"] == 1
    assert document["cells"][4].get("error") in ("ZeroDivisionError", None)
    assert document["needs_ipython"]
    assert document["order"]["repeated"] == [6]
    with run.store.open_artifact(document["script"]["sha256"]) as stream:
        script = stream.read().decode()
    assert "get_ipython().run_line_magic('precision', '3')" in script
    assert script.index("[3]") < script.index("[4]")
    assert TOKEN not in script + str(run.documents)
    assert run.source["entry"]["missing"] == "see notebook"
    assert run.states() == {"project/helper.py": "no git"}


def test_a_shell_of_ipython_is_read(tmp_path: Path, program: Program) -> None:
    """As in a terminal."""
    pytest.importorskip("IPython")
    (tmp_path / "helper.py").write_text("")
    script = (
        "import sys; sys.path.insert(0, '')\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        f"for cell in {_CELLS!r}:\n"
        "    shell.run_cell(cell, store_history=True)\n"
    )
    run = program.run(tmp_path, "-c", script, IPYTHONDIR=str(tmp_path))
    check(run)
    assert run.documents["notebook"]["shell"] == "ipython"
    assert run.documents["argv"]["started_by"] == "ipython"


_CLIENT = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read("work.ipynb", 4)
NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
"""


@pytest.mark.slow
def test_a_notebook_is_read(tmp_path: Path, program: Program) -> None:
    """With the order of its cells in the file, and nothing of how its kernel is reached."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    (tmp_path / "helper.py").write_text("")
    cells = [nbformat.v4.new_code_cell(source) for source in _CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "work.ipynb")
    variables = {"JPY_SESSION_NAME": str(tmp_path / "work.ipynb"), "IPYTHONDIR": str(tmp_path)}
    run = program.run(tmp_path, "-c", _CLIENT, **variables)
    document = run.documents["notebook"]
    assert (document["shell"], document["file"]) == ("notebook", str(tmp_path / "work.ipynb"))
    assert document["order"]["out_of_order"] == []
    assert run.documents["argv"]["started_by"] == "notebook"
    assert run.documents["arguments"]["files"] == []


def test_a_process_that_only_has_ipython_installed_is_no_notebook(
    tmp_path: Path, program: Program
) -> None:
    """Some libraries import it everywhere."""
    pytest.importorskip("IPython")
    (tmp_path / "train.py").write_text(
        "import IPython, tachograph\ntachograph.start_run().finish()\n"
    )
    run = program.run(tmp_path, "train.py")
    assert run.documents["argv"]["started_by"] == "script"
    assert "notebook" not in run.documents
