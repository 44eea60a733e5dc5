"""What the pages claim about names, against the code that owns the names."""

from __future__ import annotations

import importlib.util
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import tachograph
from tachograph import callbacks
from tachograph.callbacks.base import Keywords
from tachograph.cli.app import app
from tachograph.config import load_config
from tachograph.query import Store
from tachograph.records import TABLES
from tachograph.run import Run
from tachograph.settings import SETTINGS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
_TABLE_HEAD = "| column | type | meaning |"


def load(name: str, path: Path) -> ModuleType:
    """A module from a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load("docs_generate", DOCS / "generate.py")
run_page = load("docs_run_page", Path(__file__).with_name("run_page.py"))


def text_of(page: str) -> str:
    """The text of a page in docs/."""
    return (DOCS / page).read_text(encoding="utf-8")


# ---------------------------------------------------------------------------- tables


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Heading and body of each section."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def documented_tables() -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
    """Key and columns, with their types, of each section that has a table of columns."""
    found = {}
    for heading, body in sections(text_of("reference/tables.md")):
        if _TABLE_HEAD in body:
            stated = re.search(r"Key: ([^.]*)\.", body)
            key = tuple(re.findall(r"`(\w+)`", stated[1])) if stated else ()
            rows = re.findall(r"^\| `(\w+)` \| (\w*) \| (.+) \|$", body, re.MULTILINE)
            lines = body.split(_TABLE_HEAD)[1].split("\n\n")[0].count("\n") - 1
            assert len(rows) == lines, f"{heading}: a row of the table is not understood"
            assert len({name for name, _, _ in rows}) == len(rows), f"{heading}: a column twice"
            found[heading] = key, {name: kind for name, kind, _ in rows}
    return found


def test_tables_page_is_the_tables() -> None:
    """Tables, keys, columns, their order and types are documented as they are, and no others."""
    documented = documented_tables()
    assert list(documented) == list(TABLES)
    for name, spec in TABLES.items():
        key, columns = documented[name]
        assert (key, list(columns.items())) == (spec.key, list(spec.columns.items())), name


# ---------------------------------------------------------------------------- generated parts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_fresh(page: Path) -> None:
    """What follows from the code is what the code says; `python docs/generate.py` makes it so."""
    text = page.read_text(encoding="utf-8")
    assert generate.refresh(text) == text


def test_every_part_is_on_a_page() -> None:
    """No generated part is forgotten, and none is named that nothing generates."""
    named = [name for page in PAGES for name in re.findall(r"<!-- begin: (\w+)", page.read_text())]
    assert sorted(named) == sorted(generate.PARTS)


def test_settings_are_documented() -> None:
    """Each setting has its row, with variable, default and every choice."""
    page = text_of("reference/config.md")
    for setting in SETTINGS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{setting.key}` |"))
        assert setting.variable in row
        assert all(choice in row for choice in setting.choices)
        if setting.default not in (None, {}):
            assert str(setting.default).lower() in row.lower()


def test_variables_are_documented() -> None:
    """Each environment variable that the code names has its place among the settings."""
    page = text_of("reference/config.md")
    for folder in ("src/tachograph", "callbacks", "backends"):
        for file in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"\bTACHOGRAPH_[A-Z]+(?:_[A-Z]+)*\b", file.read_text("utf-8")):
                assert f"`{name}`" in page, f"{file.name} names {name}"


def test_commands_are_documented() -> None:
    """Each command has its section, and each of its options a row."""
    documented = dict(sections(text_of("reference/cli.md")))
    functions = dict(generate.named_commands(app))
    assert set(functions) == set(documented)
    for name, function in functions.items():
        for written, info in generate.command_parameters(function):
            assert f"| `{written}` | " in documented[name], (name, written)
            assert info.help, f"{name} {written} has no help"
            is_flag = written.split()[-1].startswith("-")
            assert info.metavar or is_flag, f"{name} {written}: --help would show a Python type"


def test_python_names_are_documented() -> None:
    """Each public name of the package, and each public method of Run and Store, has its place."""
    page = text_of("reference/python.md")
    for name in tachograph.__all__:
        assert f"tachograph.{name}" in page
    for variable, owner in (("run", Run), ("store", Store)):
        hidden = generate._INTERNAL if owner is Run else ()
        for name, value in generate.public(owner, hidden).items():
            assert f"### `{variable}.{name}" in page
            assert inspect.getdoc(value), f"{owner.__name__}.{name} says nothing"
    assert set(generate._INTERNAL) <= set(dir(Run)), "an internal method that is no more"


def test_callbacks_are_documented() -> None:
    """Each callback has a section, a how-to page, and a mention in the README; so do keywords."""
    page = text_of("reference/callbacks.md")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in callbacks.__all__:
        assert f"`{name}`" in page
        assert name in readme
        home = callbacks._HOMES[name].rpartition(".")[2]
        assert (DOCS / f"how-to/{home}.md").exists()
        assert f"docs/how-to/{home}.md" in readme
    documented = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page.partition("## Keywords")[2], re.M)
    keywords = [name for row in documented for name in re.findall(r"\w+", row)]
    assert sorted(keywords) == sorted(Keywords.__annotations__)


# ---------------------------------------------------------------------------- pages


def anchor(heading: str) -> str:
    """The anchor that a heading gets."""
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower()
    return plain.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each link to a file of the project, and to a heading in one, finds it."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), target


def test_every_page_can_be_reached() -> None:
    """From the README, by links, each page of docs/ is found."""
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
            waiting += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert set(PAGES) <= seen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_examples_load(page: Path, tmp_path: Path) -> None:
    """Each example of a config file is one that Tachograph takes."""
    for block in run_page.blocks(page):
        if block.language == "toml" and "[project" not in block.text:
            document = tomllib.loads(block.text)
            document = document.get("tool", {}).get("tachograph", document)
            load_config(document, environ={}, cwd=tmp_path)


def test_readme_is_short() -> None:
    """The README stays under 700 words beside its examples."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.sub(r"```.*?```", "", readme, flags=re.DOTALL).split()) < 700


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_machine(page: Path) -> None:
    """No page shows a path or the user of the machine that it was written on."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/(?:work|opt|root|tmp)/|\broot on\b", text)
