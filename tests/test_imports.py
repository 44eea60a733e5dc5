"""Who may import whom, as a table; new files fall under it by where they stand."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

from tachograph.registry import BUILTIN

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "": ROOT / "src/tachograph",
    "callbacks.": ROOT / "callbacks",
    "backends.": ROOT / "backends",
}

# First row that fits counts. Names are without 'tachograph.'; '!' takes away from what is before.
# '{family}' is the part of a file's name before the first '_': sqlite_schema belongs to sqlite.
GROUND = "errors records tensors.records values table merge host filesystems batches content"
CORE = "* !callbacks* !backends.* backends.base !cli* !server* !testing*"
READERS = f"{CORE} !start !recorder !journal* !recording* !delivery*"
TABLE = {
    "errors": "",
    "records": "errors",
    "generators": "",
    "values": "errors generators",
    "table": "errors",
    "filesystems": "",
    "host": "",
    "backends": "",
    "backends.base": GROUND,
    "backends.remote*": (
        f"{GROUND} wire.encoding wire.tables addresses security.credentials"
        " backends.base backends.{family}*"
    ),
    "backends.*": f"{GROUND} backends.base backends.{{family}}* backends.{{shared}}",
    "callbacks": "callbacks.*",
    "callbacks.base": (
        "run start current identity warning config recording.cost errors values records"
        " callbacks.tensors*"
    ),
    "callbacks.tensors*": "run errors values tensors.histograms tensors.records callbacks.tensors*",
    "callbacks.*": (
        "tachograph run start current warning identity errors values records"
        " tensors.histograms tensors.records"
        " callbacks callbacks.base callbacks.{family}* callbacks.{shared}"
    ),
    "testing*": "* !callbacks* !backends.* backends.base !cli*",
    "__main__": "cli",
    "server*": "* !callbacks* !backends.* backends.base !cli* !testing*",
    "cli*": "* !callbacks* !backends.* backends.base !testing* !recorder !journal",
    "security*": "errors host security*",
    "provenance*": "generators host records values security* provenance*",
    "wire*": "errors records tensors* values table batches backends.base wire*",
    "reading*": READERS,
    "tensors*": READERS,
    "comparing*": READERS,
    "levels*": READERS,
    "restoring*": READERS,
    "reproduction*": READERS,
    "*": CORE,
}

# A library belongs to one family of files. What several may touch, always inside a function:
CONVERSIONS = {"table": {"pyarrow", "pandas", "polars"}, "wire.tables": {"pyarrow"}}
EVERYWHERE = {"numpy"}
TEST_LIBRARIES = {"pytest", "hypothesis"}


@dataclass(frozen=True)
class Import:
    """One import statement: what it names, where, and when it runs."""

    target: str
    line: int
    when: str  # "start", "call" (inside a function) or "never" (for type checkers)


@cache
def modules() -> dict[str, Path]:
    """Files of the package by module name without 'tachograph.'; its own is 'tachograph'."""
    found: dict[str, Path] = {}
    for prefix, folder in FOLDERS.items():
        for here, _, files in os.walk(folder):  # does not follow the links to the two folders
            for file in files:
                if file.endswith(".py"):
                    path = Path(here, file)
                    parts = path.relative_to(folder).with_suffix("").parts
                    name = prefix + ".".join(parts)
                    found[name.removesuffix("__init__").rstrip(".") or "tachograph"] = path
    return found


@cache
def imports(module: str) -> tuple[Import, ...]:
    """The imports of a module."""
    return tuple(_walk(ast.parse(modules()[module].read_text()), "start"))


def _walk(node: ast.AST, when: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            is_module = whole.removeprefix("tachograph.") in modules()
            yield Import(whole if is_module else str(node.module), node.lineno, when)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        when = "call"
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, "never" if _for_type_checkers(node, child) else when)


def _for_type_checkers(node: ast.AST, child: ast.AST) -> bool:
    return (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body
    )


def ours(module: str) -> Iterator[Import]:
    """Imports of the package itself, by names without 'tachograph.'."""
    for found in imports(module):
        if found.target.partition(".")[0] == "tachograph":
            yield Import(found.target.removeprefix("tachograph."), found.line, found.when)


def libraries(module: str) -> Iterator[Import]:
    """Imports of third-party libraries, by their top-level names."""
    for found in imports(module):
        top = found.target.partition(".")[0]
        if top != "tachograph" and top not in sys.stdlib_module_names:
            yield Import(top, found.line, found.when)


def family(module: str) -> str:
    """What a file belongs to: 'backends.sqlite' for 'backends.sqlite_schema'; packages whole."""
    package, _, name = module.rpartition(".")
    if package in ("backends", "callbacks"):
        return f"{package}.{name.partition('_')[0]}"
    return module.partition(".")[0]


@cache
def specific() -> frozenset[str]:
    """Families of one store or framework; other files in those folders are shared."""
    frameworks = {family(found.target) for found in ours("callbacks")}
    stores = {target.partition(":")[0].removeprefix("tachograph.") for target in BUILTIN.values()}
    return frozenset(frameworks | stores)


def may_import(module: str, target: str) -> bool:
    """Whether the table allows it."""
    row = next(row for pattern, row in TABLE.items() if fnmatchcase(module, pattern))
    allowed = False
    for word in row.split():
        pattern = word.removeprefix("!")
        package, _, name = pattern.partition(".")
        if name == "{shared}":
            fits = target.startswith(f"{package}.") and family(target) not in specific()
        elif name == "{family}*":
            fits = family(target) == family(module)
        else:
            fits = fnmatchcase(target, pattern)
        if fits:
            allowed = not word.startswith("!")
    return allowed


def _place(module: str, found: Import) -> str:
    return f"{modules()[module].relative_to(ROOT)}:{found.line} imports {found.target}"


# ---------------------------------------------------------------------------- the laws


def test_table_of_imports_holds() -> None:
    """Data flows one way: no module knows what stands above it, types included."""
    broken = [
        _place(module, found)
        for module in modules()
        for found in ours(module)
        if not may_import(module, found.target)
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("records", "values", False),
        ("run", "callbacks.base", False),
        ("new_core_file", "backends.sqlite", False),
        ("new_core_file", "backends.base", True),
        ("new_core_file", "testing.contract", False),
        ("provenance.new", "cli", False),
        ("provenance.new", "run", False),
        ("reading.new", "recorder", False),
        ("reading.new", "query", True),
        ("backends.sqlite_new", "backends.sqlite_schema", True),
        ("backends.sqlite_new", "backends.parquet_files", False),
        ("backends.new", "backends.sqlite", False),
        ("backends.parquet", "backends.content", True),
        ("backends.parquet", "config", False),
        ("backends.parquet", "run", False),
        ("callbacks.keras", "callbacks.keras_models", True),
        ("callbacks.keras", "callbacks.lightning", False),
        ("callbacks.keras", "callbacks.base", True),
        ("callbacks.keras", "config", False),
        ("callbacks.new", "backends.base", False),
        ("cli.runs", "backends.sqlite", False),
        ("cli.runs", "query", True),
    ],
)
def test_table_catches(module: str, target: str, allowed: bool) -> None:
    """The table says no where the design does, also to files that do not exist yet."""
    assert may_import(module, target) is allowed


def test_no_circle_at_import_time() -> None:
    """Modules load in one order, whichever is asked for first."""
    edges = {
        module: {found.target for found in ours(module) if found.when == "start"} & set(modules())
        for module in modules()
    }
    while free := [module for module, targets in edges.items() if not targets & set(edges)]:
        for module in free:
            del edges[module]
    assert edges == {}


def test_each_library_has_one_home() -> None:
    """A library is named by one family of files, so it can be replaced or left out there."""
    homes: dict[str, set[str]] = {}
    for module in modules():
        for found in libraries(module):
            converts = found.when == "call" and found.target in CONVERSIONS.get(module, ())
            if found.when != "never" and not converts and found.target not in EVERYWHERE:
                homes.setdefault(found.target, set()).add(family(module))
    assert {name: home for name, home in homes.items() if len(home) > 1} == {}
    for name in TEST_LIBRARIES & set(homes):
        assert homes[name] == {"testing"}


def test_core_names_no_library_at_its_top() -> None:
    """The core depends on nothing; what it can use more of is imported where it is used."""
    outside = ("backends.", "callbacks.", "cli", "testing", "server")
    broken = [
        _place(module, found)
        for module in modules()
        if not module.startswith(outside)
        for found in libraries(module)
        if found.when == "start"
    ]
    assert broken == []


def test_every_module_says_what_it_owns() -> None:
    """A sentence at the top of each file, and postponed annotations."""
    for module, path in modules().items():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path} has no docstring"
        futures = [found.target for found in imports(module) if found.target == "__future__"]
        assert futures or len(tree.body) == 1, f"{path} has no future import"


# ---------------------------------------------------------------------------- weight

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition('.')[0]
        if top != 'tachograph' and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
"""


SLOW = {
    "dataclasses",
    "datetime",
    "importlib.metadata",
    "inspect",
    "sqlite3",
    "subprocess",
    "tachograph.delivery.drain",
    "tachograph.journal_reader",
    "tachograph.provenance.configs",
    "tachograph.provenance.git",
    "tachograph.provenance.packages",
    "tempfile",
    "tomllib",
}


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["tachograph", "tachograph.callbacks", "tachograph.backends"])
def test_import_loads_the_standard_library_only(name: str) -> None:
    """Importing the package, or the folder of callbacks, costs no framework and no library."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"import {name}\n"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(tops - sys.stdlib_module_names))"
    )
    assert _run(code) == "tachograph"


def test_core_and_sqlite_load_where_nothing_is_installed() -> None:
    """Every file of the core, and the default store, needs Python alone."""
    names = [
        f"tachograph.{module}".replace("tachograph.tachograph", "tachograph")
        for module in modules()
        if not module.startswith(("backends.", "callbacks.", "cli", "testing", "server"))
        or family(module) in ("backends.base", "backends.sqlite", "backends.memory")
        or module == "callbacks.base"
    ]
    _run(f"{BLOCKER}\nsys.meta_path.insert(0, Blocker())\nimport {', '.join(names)}")


def test_import_is_quick() -> None:
    """`import tachograph` takes at most 50 ms of CPU time."""
    code = (
        "import time\n"
        "started = time.process_time()\n"
        "import tachograph\n"
        "print(time.process_time() - started)"
    )
    assert min(float(_run(code)) for _ in range(3)) <= 0.050


def test_a_start_loads_little(tmp_path: Path) -> None:
    """What is slow to load comes later, on the recorder's thread, or where it is used."""
    code = (
        "import os, sys\n"
        "import tachograph\n"
        "print(*({'typing', 'hashlib'} & set(sys.modules)))\n"
        f"tachograph.start_run(config={{'backend': 'sqlite:///{tmp_path}/runs.sqlite'}})\n"
        f"print(*sorted({SLOW!r} & set(sys.modules)), flush=True)\n"
        "os._exit(0)"  # before the recorder's thread has loaded them
    )
    assert _run(code) == ""
