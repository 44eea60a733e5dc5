"""What in the record of a run can explain its results, as flat facts in order of likelihood.

Knows the sections of provenance; knows no store and no way to show things.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tachograph.provenance.grouping import is_cause, is_seed, without_seeds
from tachograph.values import flatten, json_text

AREAS: Mapping[str, tuple[str, ...]] = {
    "code": ("source", "notebook", "git"),
    "data": ("data", "splits"),
    "configuration": ("params", "argv", "arguments", "model"),
    "environment": ("packages", "python", "container", "numerics", "environment", "xgboost"),
    "seed": ("params", "argv", "seeding", "seeds"),
    "hardware": ("hardware",),
    "other": (),
}
"""Where a difference in results may come from, in the order in which to look, and the sections
of provenance that tell. Of a section's name the part in front of the first dot counts."""

Fact = tuple[str, ...]
"""Area and dotted path."""

PACKAGES = "packages.versions."
"""In front of the name of a package, in the path of a fact."""

_NO_CAUSE = re.compile(  # what does not run, what other facts tell better, where a thing lies
    r"hardware\.disk\.free_bytes|seeding\.runs_since"
    r"|arguments\.(parsed|hydra\.(output_(sub)?directory|working_directory))"
    r"|git\.(root|folder|branch|describe|upstream|ahead|remote|shallow|author|changed.*|untracked.*)"
    r"|git\.(submodules\..*\.(branch|remote)|line_ends\..*)"
    r"|splits\.(fold-\d+\.)?splits\..*\.(missing|role)"
    r"|source\.(archive\..*|digest|trees\..*\.(root|branch|upstream|ahead|remote|shallow))"
    r"|source\.trees\..*\.(patch|line_ends)(\..*)?"
    r"|source\.(files\..*\.(bytes|state|modified_since_start)|python_path)"
    r"|python\.(executable|prefix|base_prefix)|packages\.origins\.tachograph\..*"
    r"|environment\.variables\.(TACHOGRAPH_.*|PYTHON(PATH|HASHSEED)|VIRTUAL_ENV|HOSTNAME)"
    r"|environment\.variables\.MASTER_(ADDR|PORT)"
    r"|environment\.variables\.(TORCHELASTIC_(ERROR_FILE|RUN_ID)|SLURM_JOB.*|PBS_JOBID|LSB_JOBID)"
    r"|environment\.redacted"
    r"|model\.(sha256|bytes|importance(\..*)?)|learned(\..*)?"  # what training made
    r"|(outcome|pipeline|reproduction)(\..*)?"
)
_FILE = re.compile(r"^diff --git a/.* b/(.*)$", re.MULTILINE)
_NOTHING: tuple[Any, ...] = ({}, [])  # that there is none is told in no other way elsewhere
_LONG = 200  # characters; a longer text is named by its digest


def facts_of(documents: Mapping[str, Any]) -> dict[Fact, Any]:
    """The facts in documents (section to document) that can be a cause."""
    facts: dict[Fact, Any] = {}
    for section, document in documents.items():
        flat = _FLAT.get(section, _flat)(section, document)
        for path, value in flat.items():
            if not (_NO_CAUSE.fullmatch(path) or value in _NOTHING):
                facts[_area(path), path] = value
    return facts


def facts_of_params(params: Mapping[str, Any]) -> dict[Fact, Any]:
    """The same of parameters; one that is a seed stands among the seeds."""
    facts: dict[Fact, Any] = {}
    for path, value in params.items():
        area = "seed" if is_seed(path) else "configuration" if is_cause(path) else "other"
        facts[area, f"params.{path}"] = value
    return facts


def sorted_out(columns: Sequence[Mapping[Fact, Any]]) -> list[dict[Fact, Any]]:
    """The facts of several runs, where what cannot explain that they differ counts as 'other'.

    Where the code that ran is the same file by file, neither the commit nor what else changed in
    the repository has changed it.
    """
    code = [
        {path: value for (_, path), value in facts.items() if path.startswith(_RAN)}
        for facts in columns
    ]
    same = any(code) and all(found == code[0] for found in code)
    return [
        {
            ("other" if same and area == "code" else area, path): value
            for (area, path), value in facts.items()
        }
        for facts in columns
    ]


_RAN = ("source.files.", "notebook.cells")


def place(fact: Fact, *, is_lacking: bool = False) -> tuple[Any, ...]:
    """Where a fact stands: by its area, by its section in the order of the area, digests first.

    A package that one of the runs is lacking stands behind all that may be a cause: what a program
    needs it has in both, and two environments may differ in hundreds that it does not use.
    """
    area, path = fact
    sections, head = AREAS[area], path.partition(".")[0]
    known = sections.index(head) if head in sections else len(sections)
    first = not (is_lacking and path.startswith(PACKAGES))
    areas = list(AREAS).index(area if first else "other")
    return areas, first, known, not path.endswith((".digest", ".sha256")), path


def _area(path: str) -> str:
    if path.startswith(("argv.seeds", "optuna.random_state")):
        return "seed"
    head = path.partition(".")[0]
    return next((area for area, sections in AREAS.items() if head in sections), "other")


# ---------------------------------------------------------------------------- flat documents


def _argv(section: str, document: Any) -> dict[str, Any]:
    """What the program was given; how Python was called is no cause where it comes to the same."""
    if not isinstance(document, Mapping) or "missing" in document:
        return _flat(section, document)
    by_text = document.get("started_by") == "command"  # the code is in the command
    words = list(document.get("original_argv" if by_text else "argv") or [])[1:]
    given = list(without_seeds(words))
    facts = {"arguments": given, "seeds": None if given == words else words}
    facts |= {name: document.get(name) for name in ("started_by", "entry", "working_directory")}
    return {f"{section}.{name}": value for name, value in facts.items() if value is not None}


def _arguments(section: str, document: Any) -> dict[str, Any]:
    """What parsers made of them; a file that was given by what is in it, not by where it lay."""
    files = document.get("files") if isinstance(document, Mapping) else None
    if not isinstance(files, list):
        return _flat(section, document)
    found = {
        str(file.get("artifact") or file.get("path")): file.get("sha256")
        for file in files
        if isinstance(file, Mapping)
    }
    return _flat(section, {**document, "files": found})


def _flat(section: str, document: Any) -> dict[str, Any]:
    """Dotted path to value; long texts by their digest, a diff file by file."""
    values = _with_short_sketches(document) if section.startswith("data") else document
    values = dict(values) if isinstance(values, Mapping) else {"value": values}
    diff = values.pop("diff", None) if section == "git" else None
    changes = diff.get("text") if isinstance(diff, Mapping) else None
    flat = flatten(values, section)
    if isinstance(changes, str):
        flat |= {f"git.uncommitted.{file}": text for file, text in _files(changes)}
    return {path: _short(value) for path, value in flat.items()}


def _with_short_sketches(value: Any) -> Any:
    """A document on data, with each sketch of a column in one line."""
    if not isinstance(value, Mapping):
        return value
    return {key: _short_sketches(key, item) for key, item in value.items()}


def _short_sketches(key: str, item: Any) -> Any:
    if key == "sketch" and isinstance(item, Mapping):
        return _in_line(item)
    if key == "column_sketches" and isinstance(item, Mapping):
        return {name: _in_line(sketch) for name, sketch in item.items()}
    return _with_short_sketches(item)


def _in_line(sketch: Any) -> Any:
    if not isinstance(sketch, Mapping):
        return sketch
    numbers = {name: v for name, v in sketch.items() if isinstance(v, int | float)}
    rest = {name: v for name, v in sketch.items() if name not in numbers}
    words = [f"{name} {value:.6g}" for name, value in numbers.items()]
    if counts := rest.pop("values", None):
        words.append(f"values {json_text(counts)}")
    line = ", ".join(words)
    return f"{line} ({_digest(json_text(rest))})" if rest else line


def _files(changes: str) -> Iterable[tuple[str, str]]:
    """The files of a unified diff, each with how many lines changed and a digest of how."""
    starts = list(_FILE.finditer(changes))
    ends = [*(found.start() for found in starts[1:]), len(changes)]
    for found, end in zip(starts, ends, strict=False):
        lines = changes[found.end() : end].splitlines()
        added = sum(line.startswith("+") and not line.startswith("+++") for line in lines)
        removed = sum(line.startswith("-") and not line.startswith("---") for line in lines)
        yield found[1], f"+{added} -{removed} ({_digest(changes[found.start() : end])})"


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONG:
        return f"{value[:40]}… {len(value)} characters ({_digest(value)})"
    return value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]


_FLAT = {"argv": _argv, "arguments": _arguments}
