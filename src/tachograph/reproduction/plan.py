"""What is to be run so that a run happens again: words, folder, variables.

Works on the recorded documents; runs nothing.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tachograph.identity import LAUNCH_VARIABLE, PARENT_VARIABLE, RUN_VARIABLE
from tachograph.reading.documents import Documents
from tachograph.reproduction.places import Places
from tachograph.restoring.restore import Command
from tachograph.security.redaction import redact_environment
from tachograph.security.texts import REDACTED

_OF_THE_PLACE = re.compile(  # what says where a process runs, and not how it computes
    r"TACHOGRAPH_(BACKEND|JOURNAL|CONFIG|TOKEN|REPRODUCES|DISABLED)|PYTHON(PATH|HOME|EXECUTABLE)"
    r"|VIRTUAL_ENV|CONDA_.*|HOSTNAME|CI|CONTAINER|LC_.*|LANG|SLURM_.*|PBS_.*|LSB_.*|KUBERNETES_.*"
    r"|OMPI_COMM_WORLD_.*|PMI_.*|TORCHELASTIC_.*|MASTER_(ADDR|PORT)|TORCH_NCCL_.*"
    r"|(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|LD_(PRELOAD|LIBRARY_PATH)|DYLD_.*"
)

_SET_BY_LIGHTNING = {"PL_GLOBAL_SEED", "PL_SEED_WORKERS"}
_NO_TEXT = re.compile(r"\\u(dc[89a-f][0-9a-f])")


@dataclass(frozen=True, slots=True)
class Plan:
    """A command that is ready to be run.

    Attributes
    ----------
    words : list of str
        The interpreter and its arguments.
    folder : Path
        Where it stands.
    environment : dict of str to str
        All variables that it gets.
    changed : dict of str to str or None
        Those of them that differ from the present ones; None for what is taken away.
    places : Places
    notes : list of str
        What is not as it was, or has to be seen to.
    """

    words: list[str]
    folder: Path
    environment: dict[str, str]
    changed: dict[str, str | None]
    places: Places
    notes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The command as one line for a shell."""
        return shlex.join(self.words)


def make_plan(
    documents: Documents,
    command: Command,
    places: Places,
    python: str,
    *,
    arguments: Sequence[str] | None = None,
    variables: Mapping[str, str | None] | None = None,
) -> Plan:
    """Make a run's command ready for this machine.

    Parameters
    ----------
    documents : mapping
        Section to document, of the recorded run.
    command : Command
        As `restoring.command_of` gives it.
    places : Places
        Where the run's folders are now.
    python : str
        The interpreter.
    arguments : sequence of str, optional
        In place of what stood behind the script or module.
    variables : mapping, optional
        Environment variables to set, or to take away (None), whatever was recorded.
    """
    argv = documents.get("argv", {})
    notes = list(command.notes)
    stood = str(argv.get("working_directory") or "")
    program, own = _split(command.words, argv)
    if arguments is not None:
        notes = [note for note in notes if REDACTED not in note]
    else:
        own = [_argument(word, stood, places) for word in own]
    if launcher := _launcher(documents, notes):
        program = _without_options(program)
    program = [places.now(word) for word in program]
    given = [_as_given(word) for word in own] if arguments is None else arguments
    words = [*launcher, *map(_as_given, program), *given]
    changed, missing = _variables(documents)
    changed["PYTHONPATH"] = _python_path(documents, command, words, places)
    changed |= variables or {}
    notes += [f"the variable {name} held a secret; set it" for name in missing]
    environment = {**os.environ, **{k: v for k, v in changed.items() if v is not None}}
    for name in (name for name, value in changed.items() if value is None):
        environment.pop(name, None)
    differs = {k: v for k, v in changed.items() if os.environ.get(k) != v}
    return Plan([python, *words], command.folder, environment, differs, places, notes)


# ---------------------------------------------------------------------------- words


def _split(words: list[str], argv: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What names the program, and the program's own arguments, which stand behind it."""
    own = list(argv.get("argv") or [""])[1:]
    place = len(words) - len(own)
    return (words[:place], own) if words[place:] == own else (words, [])


def _argument(word: str, stood: str, places: Places) -> str:
    """An argument whose path leads to the same file as then.

    A relative path that led out of the code leads to where it led, if something is there.
    """
    name, equals, value = word.partition("=")
    if equals and name.startswith("-"):
        return f"{name}={_argument(value, stood, places)}"
    path = os.path.normpath(os.path.join(stood, word))
    if os.path.isabs(word) or not stood:
        return places.now(word)
    if places.has(path):
        return places.now(word if places.has(stood) else path)
    leads_out = os.sep in word or not places.has(stood)
    return path if leads_out and os.path.exists(path) else places.now(word)


def _as_given(word: str) -> str:
    """A word with the bytes that are no text, which the record has as escapes."""
    return _NO_TEXT.sub(lambda found: chr(int(found[1], 16)), word)


def _without_options(program: Sequence[str]) -> list[str]:
    """The script, or ``-m module``, without what stood in front for the interpreter itself."""
    words = list(program)
    while words and words[0].startswith("-") and words[0] not in ("-m", "-c"):
        del words[: 2 if words[0] in ("-X", "-W") else 1]
    return words


def _launcher(documents: Documents, notes: list[str]) -> list[str]:
    """What starts the ranks of a training that torchrun had started."""
    variables = documents.get("environment", {}).get("variables", {})
    ranks = str(variables.get("LOCAL_WORLD_SIZE") or "")
    if "TORCHELASTIC_RUN_ID" not in variables or not ranks.isdecimal() or int(ranks) < 1:
        return []
    if str(variables.get("GROUP_WORLD_SIZE") or "1") != "1":
        notes.append("it ran on several machines; only the ranks of one are started here")
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]


# ---------------------------------------------------------------------------- variables


def _variables(documents: Documents) -> tuple[dict[str, str | None], list[str]]:
    """Variables that make the environment what it was, and names of what cannot be had again."""
    known = documents.get("environment", {}).get("variables")
    recorded = dict(known or {})
    seeds = documents.get("seeds", {})
    if seeds.get("hash_randomization"):
        recorded.pop("PYTHONHASHSEED", None)  # set by the program itself, too late for its own hash
    if "environment" in seeds:
        for name in _SET_BY_LIGHTNING - seeds["environment"].keys():
            recorded.pop(name, None)  # after the run had begun
    now = redact_environment(dict(os.environ))
    if known is None:
        now = {}  # what was set then is not known, so what is set now stays
    changed: dict[str, str | None] = {
        name: None for name in now if name not in recorded and not _OF_THE_PLACE.fullmatch(name)
    }
    missing = []
    for name, value in recorded.items():
        if _OF_THE_PLACE.fullmatch(name):
            continue
        if REDACTED in value:
            missing += [] if name in os.environ else [name]
        else:
            changed[name] = value
    return changed | dict.fromkeys((LAUNCH_VARIABLE, PARENT_VARIABLE, RUN_VARIABLE)), missing


def _python_path(
    documents: Documents, command: Command, words: Sequence[str], places: Places
) -> str | None:
    """Folders that were given and are there, and those that code was imported from."""
    scripts = [command.folder / word for word in words if word.endswith(".py")]
    own = {os.path.normpath(script.parent) for script in scripts}  # Python adds it by itself
    stood = str(documents.get("argv", {}).get("working_directory") or "")
    recorded = documents.get("environment", {}).get("variables") or {}
    given = filter(None, recorded.get("PYTHONPATH", "").split(os.pathsep))
    path = [places.now(os.path.normpath(os.path.join(stood, folder))) for folder in given]
    path = [folder for folder in path if os.path.isdir(folder)]
    path += [str(folder) for folder in command.python_path if os.path.normpath(folder) not in own]
    return os.pathsep.join(dict.fromkeys(path)) or None
