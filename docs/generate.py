"""Writes the parts of the reference that follow from the code: `python docs/generate.py`.

A part stands between ``<!-- begin: name -->`` and ``<!-- end: name -->``. A test fails where a part
is not what this writes.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo

import tachograph
from tachograph import errors
from tachograph.callbacks import base
from tachograph.cli.app import app
from tachograph.query import Store
from tachograph.run import Run
from tachograph.settings import SETTINGS
from tachograph.table import Table

FOLDER = Path(__file__).parent
_PART = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
_SECTIONS = ("Parameters", "Attributes", "Returns", "Raises", "Examples", "Notes")
_INTERNAL = {  # methods of Run that callbacks and the core use, not users
    *("begin", "set_rank", "set_elsewhere", "rebind", "report_problem", "next_child"),
    *("log_usage", "in_background", "record_rows", "started_here", "log_derived"),
    *("log_cost", "watch_cost", "end_cost", "first_step", "last_step"),
    *("compare_rows", "compare_folds"),
}


def main() -> None:
    """Rewrite every page."""
    for page in FOLDER.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        if (fresh := refresh(text)) != text:
            page.write_text(fresh, encoding="utf-8")
            print(page.relative_to(FOLDER.parent))


def refresh(text: str) -> str:
    """The text of a page with every generated part made anew."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n\n{part[3]}", text)


# ---------------------------------------------------------------------------- Markdown


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(value: Any) -> str:
    if value is None or value == {}:
        return ""
    text = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    return f"`{text}`"


def _marked(text: str) -> str:
    """Prose of a docstring: ``code`` as Markdown has it."""
    return re.sub(r"``([^`]+)``", r"`\1`", text)


# ---------------------------------------------------------------------------- docstrings


def described(title: str, documented: Any, level: str = "###") -> str:
    """A heading, what the docstring says, and its parameters as a table."""
    parts = dict(_sections(inspect.getdoc(documented) or ""))
    lines = [f"{level} {title}", "", _marked(parts.pop("", ""))]
    if inspect.isclass(documented):  # users get them from functions
        parts.pop("Parameters", None)
    for name in ("Parameters", "Attributes", "Raises"):
        if name in parts:
            heads = ("error", "where") if name == "Raises" else ("name", "type", "meaning")
            lines += ["", table(heads, (row[: len(heads)] for row in _entries(parts[name], name)))]
    if "Returns" in parts:
        lines += ["", f"Returns: {_marked(' '.join(parts['Returns'].split()))}"]
    if "Notes" in parts:
        lines += ["", _marked(parts["Notes"])]
    return "\n".join(lines)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Names and texts of the sections of a NumPy docstring; the first is without a name."""
    pieces = re.split(rf"^({'|'.join(_SECTIONS)})\n-+\n", text, flags=re.MULTILINE)
    yield "", pieces[0].strip()
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        yield name, body.strip("\n")


def _entries(text: str, section: str) -> Iterator[tuple[str, ...]]:
    """Name, type and meaning of each entry of a section."""
    for head, body in re.findall(r"^(\S.*)\n((?:[ \t].*\n?|\n)*)", text + "\n", re.MULTILINE):
        meaning = _marked(" ".join(textwrap.dedent(body).split()))
        name, _, kind = head.partition(" : ")
        names = ", ".join(f"`{one.strip()}`" for one in name.split(","))
        yield (names, meaning) if section == "Raises" else (names, kind, meaning)


def signature(name: str, function: Any) -> str:
    """The signature without types, as a person would write it."""
    found = inspect.signature(function)
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in found.parameters.values()
        if parameter.name != "self"
    ]
    short = found.replace(parameters=plain, return_annotation=inspect.Signature.empty)
    return f"`{name}{short}`"


# ---------------------------------------------------------------------------- the parts


def settings() -> str:
    """The table of all settings."""
    rows = ((_code(s.key), _code(s.variable), s.type, _code(s.default), s.help) for s in SETTINGS)
    return table(("key", "environment variable", "value", "default", "meaning"), rows)


def commands() -> str:
    """Each command with its arguments and options."""
    functions = dict(named_commands(app))
    return "\n\n".join(_command(name, functions[name]) for name in sorted(functions))


def named_commands(group: typer.Typer, before: str = "") -> Iterator[tuple[str, Any]]:
    """Names and functions of the commands of a group, and of the groups in it."""
    for info in group.registered_commands:
        yield f"{before}{info.name or info.callback.__name__}", info.callback
    for inner in group.registered_groups:
        yield from named_commands(
            inner.typer_instance, f"{before}{inner.typer_instance.info.name} "
        )


def command_parameters(function: Any) -> Iterator[tuple[str, Any]]:
    """How each argument and option is written, and what it says of itself."""
    for name, found in inspect.signature(function, eval_str=True).parameters.items():
        (info,) = found.annotation.__metadata__
        if isinstance(info, ArgumentInfo):
            yield info.metavar or name.upper(), info
            continue
        # In Annotated, Typer keeps the first declaration of an option as its default.
        declared = (info.default, *(info.param_decls or ()))
        names = (
            ", ".join(one for one in declared if isinstance(one, str))
            or f"--{name.replace('_', '-')}"
        )
        is_flag = bool in (found.annotation.__origin__, *get_args(found.annotation.__origin__))
        yield names if is_flag else f"{names} {info.metavar or name.upper()}", info


def _command(name: str, function: Any) -> str:
    found = list(command_parameters(function))
    arguments = [written for written, info in found if isinstance(info, ArgumentInfo)]
    usage = " ".join(["tachograph", name, "[OPTIONS]", *arguments])
    rows = [(f"`{written}`", info.help) for written, info in found]
    help_text = inspect.getdoc(function) or ""
    lines = [f"## {name}", "", help_text, "", f"```text\n{usage}\n```", ""]
    return "\n".join([*lines, table(("argument or option", "meaning"), rows)])


def functions() -> str:
    """What `import tachograph` offers besides classes."""
    parts = []
    for name in tachograph.__all__:
        value = getattr(tachograph, name)
        if inspect.isfunction(value):
            parts.append(described(signature(f"tachograph.{name}", value), value))
    return "\n\n".join(parts)


def public(owner: type, hidden: Iterable[str] = ()) -> dict[str, Any]:
    """Public methods and properties of a class and its bases, in the order of their source."""
    return {
        name: value
        for kind in owner.__mro__
        if kind.__module__.startswith("tachograph.")
        for name, value in vars(kind).items()
        if not name.startswith("_")
        and name not in hidden
        and (inspect.isfunction(value) or isinstance(value, property))
    }


def _methods(owner: type, variable: str, hidden: Iterable[str] = ()) -> str:
    parts = [f"{_intro(owner)}"]
    for name, value in public(owner, hidden).items():
        full = f"{variable}.{name}"
        title = f"`{full}`" if isinstance(value, property) else signature(full, value)
        parts.append(described(title, value))
    return "\n\n".join(parts)


def _intro(owner: type) -> str:
    return described("", owner, "").removeprefix(" \n\n")


def run_methods() -> str:
    """The class Run."""
    return _methods(Run, "run", _INTERNAL)


def store_methods() -> str:
    """The class Store."""
    return _methods(Store, "store")


def table_methods() -> str:
    """The class Table."""
    return _methods(Table, "table")


def error_tree() -> str:
    """The tree of errors."""
    tree = (inspect.getdoc(errors) or "").partition("::")[2]
    return f"```text\n{textwrap.dedent(tree).strip()}\n```"


def keywords() -> str:
    """The keywords of every callback."""
    text = dict(_sections(inspect.cleandoc(base.KEYWORDS)))["Parameters"]
    return table(("keyword", "value", "meaning"), _entries(text, "Parameters"))


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "commands": commands,
    "functions": functions,
    "run": run_methods,
    "store": store_methods,
    "table": table_methods,
    "errors": error_tree,
    "keywords": keywords,
}

if __name__ == "__main__":
    main()
