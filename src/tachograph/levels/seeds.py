"""What is missing for a run to draw the same random numbers and to compute in the same order.

A generator counts as seeded where the record shows it. That it was not is never known for certain:
numbers may have been drawn since, and a program that draws none needs no seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tachograph.levels.pieces import STATISTICAL, Documents, Finding, listed, uses_gpu
from tachograph.provenance.grouping import is_seed
from tachograph.values import mapping

_SEED_BITS = 32  # no person chooses a longer one; torch draws 64 bits where it was given none
_ENTROPY = 2**31  # the first word of a Mersenne twister that was seeded from the system
_LIBRARIES = ("torch", "tensorflow", "keras", "numpy", "random")
_TRAINS = {  # framework to the generators that its trainings draw from
    "lightning": ("torch",),
    "keras": ("keras",),
    "scikit-learn": (),
    "xgboost": (),
    "optuna": (),
}
_REMEDY = "call tachograph.seed_everything(seed) before the model and the data are made"


def seeds(
    documents: Documents, params: Mapping[str, Any], frameworks: Sequence[str]
) -> Iterator[Finding]:
    """Random numbers that may differ the next time, and settings that let results differ.

    Parameters
    ----------
    documents, params : mapping
    frameworks : sequence of str
        Of the run and of its parts.
    """
    if "hash_randomization" not in documents.get("seeds", {}):
        why = documents.get("seeds", {}).get("missing") or "not recorded"
        yield _limit(f"the random generators are not known: {why}", _REMEDY)
        return
    yield from _generators(documents, params, frameworks)
    yield from _estimators(documents, params)
    yield from sampler(documents, params)
    yield from _determinism(documents)
    yield from _workers(documents)
    yield from _hashes(documents)


def _limit(what: str, remedy: str) -> Finding:
    return Finding("seed", STATISTICAL, what, remedy)


def _note(what: str, remedy: str) -> Finding:
    return Finding("seed", None, what, remedy)


# ---------------------------------------------------------------------------- generators


def _generators(
    documents: Documents, params: Mapping[str, Any], frameworks: Sequence[str]
) -> Iterator[Finding]:
    """Generators that are not known to be seeded; they limit where the training draws from them."""
    found = documents["seeds"]
    unknown = [name for name in _LIBRARIES if name in found and not _is_seeded(name, documents)]
    deciding = {name for framework in frameworks for name in _deciding(found, framework)}
    given = [path for path, value in params.items() if is_seed(path) and value is not None]
    given += ["main"] if _has_own(found) else []
    # A library's own seed is exact knowledge; of the others a given seed is at least a hint.
    unseeded = [
        name for name in unknown if name in deciding and not (given and name in ("numpy", "random"))
    ]
    if unseeded:
        yield _limit(f"{_and(unseeded)} {_is(unseeded)} not known to be seeded", _REMEDY)
    rest = [name for name in unknown if name not in unseeded]
    if rest:
        yield _note(
            f"{_and(rest)} {_is(rest)} not known to be seeded, which matters where the program"
            " draws from there",
            _REMEDY,
        )


def _deciding(found: Mapping[str, Any], framework: str) -> tuple[str, ...]:
    """The generators that decide what a training of that framework gives."""
    library = framework.partition(" ")[0].lower()
    if library in _TRAINS:
        return _TRAINS[library]
    loaded = tuple(name for name in ("torch", "tensorflow", "keras") if name in found)
    return loaded or (("numpy",) if "numpy" in found else ("random",))


def _is_seeded(name: str, documents: Documents) -> bool:
    facts = mapping(documents["seeds"].get(name))
    if name in mapping(documents.get("seeding")).get("seeded", ()):
        return True
    if name == "torch":
        seed = facts.get("initial_seed")
        return isinstance(seed, int) and 0 <= seed < 1 << _SEED_BITS
    return facts.get("seed") is not None


def _has_own(found: Mapping[str, Any]) -> bool:
    """Whether the user's code holds generators or keys of its own."""
    held = mapping(found.get("generators")).values()
    return any(mapping(facts).get("kind") != "torch.DataLoader" for facts in held)


def _estimators(documents: Documents, params: Mapping[str, Any]) -> Iterator[Finding]:
    """Estimators that draw from numpy's global generator because they were given no seed."""
    unset = [
        path
        for path, value in params.items()
        if value is None and path.replace("__", ".").rpartition(".")[2] == "random_state"
    ]
    if unset and not _is_seeded("numpy", documents):
        yield _limit(
            f"{listed(unset)} {'is' if len(unset) == 1 else 'are'} not set, and numpy is not known"
            " to be seeded",
            "give each random_state a number",
        )


def sampler(documents: Documents, params: Mapping[str, Any]) -> Iterator[Finding]:
    """What a study proposes, to itself, to a run inside it or to one around it."""
    if "sampler.class" not in params or "directions" not in params:
        return
    state = mapping(documents.get("optuna.random_state"))
    if state.get("first_word") in (None, _ENTROPY):
        yield _limit(
            "the study's sampler is not known to be seeded", "give it a seed: TPESampler(seed=7)"
        )
    jobs = params.get("optimize.n_jobs")
    if isinstance(jobs, int) and jobs not in (0, 1):
        yield _limit(
            f"trials ran at the same time (n_jobs={jobs}): the order in which they ended decided"
            " what was tried next",
            "run the trials one after the other",
        )

    if url := params.get("storage.url"):
        yield Finding(
            "data",
            None,
            f"the study is kept in {url}: where that is there, it goes on with its trials",
            "give it another storage when it is run again",
        )


def processes(count: int) -> Iterator[Finding]:
    """That a study was worked on by several processes."""
    if count > 1:
        yield _limit(
            f"trials were recorded by {count} processes: the order in which they ended decided what"
            " was tried next",
            "run all trials in one process",
        )


# ---------------------------------------------------------------------------- determinism


def _determinism(documents: Documents) -> Iterator[Finding]:
    """Settings of a GPU under which the same program gives other results."""
    if not uses_gpu(documents):
        return
    torch = mapping(documents["seeds"].get("torch"))
    if torch and not torch.get("deterministic_algorithms"):
        yield _limit(
            "a GPU was used without deterministic algorithms",
            "call tachograph.seed_everything(seed, deterministic=True), or"
            " torch.use_deterministic_algorithms(True)",
        )
    elif torch.get("deterministic_warn_only"):
        yield _note(
            "torch was to warn only where an algorithm is not deterministic",
            "read the warnings, or leave warn_only out",
        )
    if torch.get("cudnn_benchmark"):
        yield _limit(
            "cudnn_benchmark is on: the fastest kernel of the moment is taken",
            "set torch.backends.cudnn.benchmark = False",
        )
    late = mapping(documents.get("seeding")).get("late")
    if late:
        yield _note(
            f"{listed(late)} came too late for that process",
            "set them in the shell, before Python starts",
        )


def _workers(documents: Documents) -> Iterator[Finding]:
    """Loaders whose workers had numpy's generator in the same state, before torch 1.9."""
    torch = str(mapping(mapping(documents.get("packages")).get("versions")).get("torch") or "")
    release = tuple(map(int, re.findall(r"\d+", torch)[:2]))
    if not release or release >= (1, 9):
        return
    for name, facts in mapping(documents["seeds"].get("generators")).items():
        if mapping(facts).get("workers") and not facts.get("worker_init_fn"):
            yield _limit(
                f"the workers of {name} do not seed numpy (torch {torch})",
                "give the DataLoader a worker_init_fn that seeds numpy, or use a newer torch",
            )


def _hashes(documents: Documents) -> Iterator[Finding]:
    found = documents["seeds"]
    if found.get("hash_randomization") and "PYTHONHASHSEED" not in mapping(
        found.get("environment")
    ):
        yield _note(
            "hashes of texts differ from process to process: matters where sets of texts are"
            " gone through",
            "start Python with PYTHONHASHSEED=0, or sort what comes out of sets",
        )


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
