"""What the program was given, as its parsers have understood it, and its config files.

The variables of the user's code are looked at while the run starts, for the training will change
them; files are read later. See `parsers` for where is looked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tachograph.provenance import Document
from tachograph.provenance.argv import working_directory
from tachograph.provenance.parsers import Parsed, find_parsed, hydra_job
from tachograph.provenance.shell import shell_kind
from tachograph.security.redaction import secret_arguments
from tachograph.security.texts import REDACTED
from tachograph.values import flatten, plain

if TYPE_CHECKING:
    from tachograph.provenance.configs import ConfigFile

MAX_FILES = 20
_SUFFIXES = (".yaml", ".yml", ".toml", ".json", ".ini", ".cfg")


class Arguments(NamedTuple):
    """What can be seen of a program's arguments; holds copies only.

    Attributes
    ----------
    parsed : list of Parsed
    hydra : dict or None
        How Hydra started the job.
    files : list of Path
        Config files that an argument names.
    written : list of Path
        Those that Hydra has written of the job; their values are among the parsed ones.
    """

    parsed: list[Parsed]
    hydra: dict[str, Any] | None
    files: list[Path]
    written: list[Path]


def collect() -> Document:
    """What parsers have made of the arguments, config files, and how Hydra was started."""
    from tachograph.provenance.configs import read

    arguments = look()
    return describe(arguments, [read(path) for path in arguments.files + arguments.written])


def look() -> Arguments:
    """Look at the arguments now; quick, and reads no file."""
    parsed = [_without_secrets(one) for one in find_parsed()]
    try:
        job = hydra_job()
    except Exception:  # where Hydra keeps it elsewhere than where it was looked for
        job = None
    return Arguments(parsed, job, _existing(_named(parsed)), _existing(_written(job)))


def describe(arguments: Arguments, files: Sequence[ConfigFile]) -> Document:
    """The document on arguments and on the config files that were read."""
    return {
        "parsed": [_parsed(one) for one in arguments.parsed],
        "files": [file.document for file in files],
        "hydra": plain(arguments.hydra),
    }


def _parsed(one: Parsed) -> Document:
    found: Document = {"parser": one.parser, "name": one.name, "values": one.values}
    return found if one.problem is None else found | {"missing": one.problem}


def _without_secrets(one: Parsed) -> Parsed:
    """What stood behind ``--api-key`` is a secret under whatever name a parser keeps it."""
    secrets = secret_arguments(sys.orig_argv)

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [cleaned(item) for item in value]
        return REDACTED if str(value) in secrets else value

    return one._replace(values=cleaned(one.values)) if secrets else one


def _named(parsed: Sequence[Parsed]) -> Iterator[str]:
    """Words of the command line, and values that parsers have made of it or have by default."""
    for argument in () if shell_kind() == "notebook" else sys.argv[1:]:  # those are the kernel's
        yield from (argument, argument.partition("=")[2])
    for one in parsed:
        yield from _texts(list(flatten(one.values).values()))


def _written(job: dict[str, Any] | None) -> Iterator[str]:
    if job is not None and job["output_subdirectory"]:
        for name in ("config.yaml", "overrides.yaml"):
            yield os.path.join(job["output_directory"], job["output_subdirectory"], name)


def _existing(words: Iterable[str]) -> list[Path]:
    """The config files among words; not those that hold secrets by their name."""
    try:
        paths = dict.fromkeys(_located(word) for word in words if _is_config(word))
    except OSError:  # the working directory is gone
        return []
    if not paths:
        return []
    from tachograph.security.secret_files import is_secret_file  # most starts do without

    found = (path for path in paths if os.path.isfile(path) and not is_secret_file(path))
    return [Path(path) for path in found][:MAX_FILES]


def _located(word: str) -> str:
    """A path from where the program was started, or else from where it stands."""
    there = os.path.normpath(os.path.join(working_directory() or "", word))
    return there if os.path.isfile(there) else os.path.abspath(word)


def _is_config(text: str) -> bool:
    return text.lower().endswith(_SUFFIXES) and "\n" not in text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
