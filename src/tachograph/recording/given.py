"""What a program was given, into the record of its run: parameters, and its config files.

Runs on the recorder's thread. What the user or a framework says of a parameter counts for more,
whenever it is said: these are recorded as if at the start of the run, before all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tachograph.provenance.arguments import Arguments, describe
from tachograph.provenance.configs import ConfigFile, read
from tachograph.recording.artifacts import log_content
from tachograph.security.redaction import redact_value
from tachograph.values import flatten, json_text

if TYPE_CHECKING:
    from tachograph.run import Run

Param = tuple[str, Any, str]
"""Path, value, source."""


def record_given(run: Run, arguments: Arguments, changed_at: int) -> None:
    """Record the document on arguments, their values as parameters, and the config files.

    Parameters
    ----------
    run : Run
    arguments : Arguments
        As they were at the start of the run.
    changed_at : int
        When that was (µs).
    """
    files = [read(path) for path in arguments.files]
    written = [read(path) for path in arguments.written]
    for file, name in _kept(files + written):
        file.document["artifact"] = name
        log_content(run, name, file.content or b"", kind="config")
    run.log_provenance("arguments", describe(arguments, files + written))
    rows = [
        {"path": path, "value": json_text(redact_value(path, value)), "source": source}
        for path, value, source in params(arguments, files)
    ]
    run.record_rows("params", *(row | {"changed_at": changed_at} for row in rows))


def params(arguments: Arguments, files: Sequence[ConfigFile]) -> list[Param]:
    """Path, value and source of everything that the program was given.

    The command line goes before config files. Where two of them say different things under one
    name, the later one stands under the name of its variable, command or file.
    """
    found: dict[str, tuple[Any, str]] = {}
    for name, values, sources in _given(arguments, files):
        for path, value in flatten(values).items():
            source = sources.get(path, sources[""])
            if path in found and found[path][0] != value:
                found.setdefault(f"{name}.{path}", (value, source))
            else:
                found.setdefault(path, (value, source))
    return [(path, value, source) for path, (value, source) in found.items()]


def _given(
    arguments: Arguments, files: Sequence[ConfigFile]
) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Name, values and sources by path, with that of all others under ''."""
    for one in arguments.parsed:
        yield one.name, one.values, {"": "argv", **one.given}
    for file in files:
        yield file.path.stem, file.values, {"": "config file"}


# ---------------------------------------------------------------------------- files


def _kept(files: Sequence[ConfigFile]) -> Iterator[tuple[ConfigFile, str]]:
    """The files whose content is kept, with names that tell them apart."""
    names: set[str] = set()
    for file in files:
        if file.content is None:
            continue
        name = file.path.name + (".json" if file.document["redacted"] else "")
        number = 1
        while (label := name if number == 1 else f"{number}-{name}") in names:
            number += 1
        names.add(label)
        yield file, f"config/{label}"
