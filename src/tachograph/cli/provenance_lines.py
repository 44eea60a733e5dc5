"""What the documents on a run say of code, configuration, environment, seeds and hardware.

Gives labels and short texts for a person; prints nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tachograph.cli.render import shown, size
from tachograph.levels.pieces import listed
from tachograph.provenance.grouping import is_seed
from tachograph.reading.documents import Documents, is_of_splits
from tachograph.values import mapping

Lines = Iterator[tuple[str, str]]
"""Label and text."""

_MAIN_PACKAGES = (
    *("torch", "lightning", "pytorch-lightning", "keras", "tensorflow", "jax", "jaxlib", "flax"),
    *("xgboost", "scikit-learn", "lightgbm", "catboost", "optuna", "transformers", "datasets"),
    *("numpy", "scipy", "pandas", "polars", "pyarrow", "tachograph"),
)
_FEW = 8  # of several things in one line

_SEED_WORDS = ("deterministic_algorithms", "deterministic_operations", "cudnn_benchmark")


# ---------------------------------------------------------------------------- code


def code(documents: Documents) -> Lines:
    source, argv = get(documents, "source"), get(documents, "argv")
    entry = get(source, "entry")
    yield "command", str(argv.get("command") or argv.get("missing") or "not recorded")
    if place := argv.get("working_directory"):
        moved = f", then in {argv['moved_to']}" if argv.get("moved_to") else ""
        yield "stood in", f"{place}{moved}"
    if program := entry.get("module") or entry.get("file") or entry.get("missing"):
        yield "program", str(program)
    if why := source.get("missing"):
        yield "files", str(why)
    trees = get(source, "trees") or {"project": get(documents, "git")}
    for name, tree in trees.items():
        yield name, _tree(tree)
    yield from _uncommitted(get(documents, "git"))
    yield from _files(source)
    yield from _cells(get(documents, "notebook"))


def _tree(tree: Mapping[str, Any]) -> str:
    if not tree.get("commit"):
        return str(tree.get("missing") or "nothing was committed")
    text = f"commit {str(tree['commit'])[:12]} on {tree.get('branch') or 'no branch'}"
    if tree.get("remote"):
        text += f", of {tree['remote']}"
    if tree.get("ahead"):
        text += f", {tree['ahead']} not pushed"
    return text + (", with uncommitted work" if tree.get("dirty") else ", nothing uncommitted")


def _uncommitted(git: Mapping[str, Any]) -> Lines:
    if changed := get(git, "changed"):
        yield "changed", _some(f"{status} {file}" for file, status in changed.items())
    untracked = get(git, "untracked").get("files") or ()
    if untracked:
        yield "untracked", _some(str(file.get("path")) for file in untracked)
    for path, state in get(git, "submodules").items():
        dirty = ", with uncommitted work" if state.get("dirty") else ""
        yield "submodule", f"{path}: commit {str(state.get('commit'))[:12]}{dirty}"


def _files(source: Mapping[str, Any]) -> Lines:
    files, archive = get(source, "files"), get(source, "archive")
    if files:
        words = {"no git": "outside git", "linked": "by a link"}
        found = (str(file.get("state")) for file in files.values())
        states = Counter(words.get(state, state) for state in found)
        kept = f", kept in {size(archive['bytes'])}" if "bytes" in archive else ", not kept"
        yield "files", ", ".join(f"{n} {state}" for state, n in states.most_common()) + kept
    loose = [key for key, file in files.items() if file.get("state") != "committed"]
    if loose:
        yield "", _some(loose)
    if left_out := get(source, "left_out"):
        yield "left out", _some(f"{key} ({why})" for key, why in left_out.items())


def _cells(notebook: Mapping[str, Any]) -> Lines:
    if "cells" in notebook:
        in_order = get(notebook, "order").get("in_order")
        how = "from top to bottom" if in_order else "not in the order in which they stand"
        how = "it is not known whether in order" if in_order is None else how
        yield "notebook", f"{notebook.get('count')} cells, {how}; notebook.py has them as they ran"


# ---------------------------------------------------------------------------- data


def data(documents: Documents) -> Lines:
    """What is known beside the table of digests: rows that splits have in common."""
    if not any(name.startswith("data.") for name in documents):
        yield "", "nothing was fingerprinted"
    for name, document in documents.items():
        if name.startswith("data.") and isinstance(document, Mapping):
            yield from _said(name.removeprefix("data."), document)
    for found in _overlaps(documents):
        about = "about " if found.get("counted") == "estimated" else ""
        rows = f"{about}{found['rows']} of {found['of']} rows" if found.get("rows") else "no row"
        finding = found.get("finding")
        why = f" ({finding})" if finding in ("chance", "prediction", "same data") else ""
        place = " of another run" if "train_run" in found else ""
        yield "in common", f"{rows} of {found['evaluation']} among {found['train']}{place}{why}"


def _overlaps(documents: Documents) -> Iterator[Mapping[str, Any]]:
    """Of the whole run, then of its folds by their number."""
    names = filter(is_of_splits, documents)
    for name in sorted(names, key=lambda name: (len(name), name)):
        splits = get(documents, name)
        yield from [*(splits.get("overlaps") or ()), *(splits.get("across_runs") or ())]


def _said(name: str, document: Documents) -> Lines:
    """What data says of itself: name, version, where it lies, what DVC and Git LFS know."""
    inner = get(document, "dataset")
    for kind in ("source", "dvc", "lfs"):
        facts = get(document, kind) or get(inner, kind)
        words = (f"{key} {shown(value)}" for key, value in facts.items())
        if facts:
            yield kind, f"{name}: {_some(words)}"
    if document.get("path"):
        yield "path", f"{name}: {document['path']}"


# ---------------------------------------------------------------------------- configuration


def configuration(documents: Documents, params: Mapping[str, Any]) -> Lines:
    arguments = get(documents, "arguments")
    yield "parameters", f"{len(params)}; `tachograph show` lists them"
    for one in arguments.get("parsed") or ():
        why = f": {one['missing']}" if "missing" in one else ""
        yield "parsed by", f"{one.get('parser')} ({one.get('name')}){why}"
    hydra = arguments.get("hydra")
    if isinstance(hydra, Mapping):
        yield (
            "hydra",
            f"{hydra.get('config_name')} {' '.join(hydra.get('overrides') or ())}".strip(),
        )
    yield from _steps(get(documents, "pipeline"), ".", "")
    for file in arguments.get("files") or ():
        kept = file.get("artifact") or f"not kept: {file.get('missing')}"
        yield "config file", f"{file.get('path')} ({kept})"
    if redacted := get(documents, "environment").get("redacted"):
        yield "secrets", f"set and not kept: {_some(redacted)}"


def _steps(pipeline: Documents, path: str, indent: str) -> Lines:
    """A pipeline as a tree: class, parameters that were given, and what its fitting gave."""
    step = get(pipeline, path)
    if not step:
        return
    params = ", ".join(f"{name}={shown(value)}" for name, value in get(step, "params").items())
    name = "" if path == "." else f"{path.rpartition('.')[2]}: "
    fitted = str(step.get("fitted") or "").removeprefix("sha256:")[:8]
    text = f"{indent}{name}{str(step.get('class')).rpartition('.')[2]}({params})"
    yield "" if indent else "pipeline", text + (f" fitted {fitted}" if fitted else "")
    for inner in filter(lambda inner: inner != ".", step.get("steps") or ()):
        yield from _steps(pipeline, inner if path == "." else f"{path}.{inner}", f"{indent}  ")


# ---------------------------------------------------------------------------- environment


def environment(documents: Documents) -> Lines:
    python, packages = get(documents, "python"), get(documents, "packages")
    if version := python.get("version"):
        kind = f", {python['kind']}" if python.get("kind") else ""
        yield "python", f"{python.get('implementation')} {str(version).split(' ')[0]}{kind}"
        words = ("distribution", "kernel", "machine", "libc")
        yield "system", ", ".join(str(python[word]) for word in words if python.get(word))
    else:
        yield "python", str(python.get("missing") or "not recorded")
    container = get(documents, "container")
    if runtime := container.get("runtime"):
        image = container.get("image") or container.get("digest") or "image not known"
        yield "container", f"{runtime}, {image}"
    versions = get(packages, "versions")
    if not versions:
        yield "packages", str(packages.get("missing") or "not recorded")
        return
    main = [f"{name} {versions[name]}" for name in _MAIN_PACKAGES if name in versions]
    yield (
        "packages",
        f"{len(versions)}: {', '.join(main[:_FEW])}, …" if main else f"{len(versions)}",
    )
    for name, origin in get(packages, "origins").items():
        yield "installed", f"{name} from {_origin(origin)}"
    if conda := get(packages, "conda"):
        yield "conda", f"{conda.get('name')}, {len(conda.get('packages') or ())} packages"
    variables = get(get(documents, "environment"), "variables")
    if variables:
        yield "variables", _some(f"{name}={value}" for name, value in variables.items())


def _origin(origin: Mapping[str, Any]) -> str:
    place = str(origin.get("folder") or origin.get("url") or "")
    if commit := origin.get("commit"):
        place += f" at {str(commit)[:12]}"
    return place + (", with uncommitted work" if origin.get("dirty") else "")


# ---------------------------------------------------------------------------- seeds


def seeds(documents: Documents, params: Mapping[str, Any]) -> Lines:
    found, seeding = get(documents, "seeds"), get(documents, "seeding")
    if why := found.get("missing"):
        yield "", str(why)
    given = [f"{path}={shown(value)}" for path, value in params.items() if is_seed(path)]
    if given:
        yield "given", _some(given)
    if "seed" in seeding:
        yield "set", f"seed_everything({seeding['seed']}): {_some(seeding.get('seeded') or ())}"
    for library in ("random", "numpy", "torch", "keras", "tensorflow", "jax"):
        if library in found:
            yield library, _generator(get(found, library))
    for name, facts in get(found, "generators").items():
        words = [
            f"{key} {shown(facts[key])}" for key in ("workers", "initial_seed") if key in facts
        ]
        yield name, ", ".join([str(facts.get("kind")), *words, *_state(facts)])
    if state := get(documents, "optuna.random_state"):
        sampler = str(params.get("sampler.class") or "").rpartition(".")[2]
        known = [sampler, str(state.get("algorithm")), *_state({"state": state.get("sha256")})]
        yield "sampler", ", ".join(filter(None, known))
    if "hash_randomization" in found:
        seed = get(found, "environment").get("PYTHONHASHSEED")
        yield "hashes", f"PYTHONHASHSEED={seed}" if seed else "differ from process to process"


def _generator(facts: Mapping[str, Any]) -> str:
    seed = facts.get("seed", facts.get("initial_seed"))
    is_chosen = isinstance(seed, int) and 0 <= seed < 1 << 32
    words = [f"seed {seed}" if is_chosen else "seed not known", *_state(facts)]
    if "default_prng_impl" in facts:  # jax has keys, and no generator of its own
        words = ["keys are given by the program"]
    on = [name.replace("_", " ") for name in _SEED_WORDS if facts.get(name)]
    return ", ".join([*words, *on])


def _state(facts: Mapping[str, Any]) -> list[str]:
    return [f"state {str(facts['state'])[:8]}"] if facts.get("state") else []


# ---------------------------------------------------------------------------- hardware


def hardware(documents: Documents) -> Lines:
    found, numerics = get(documents, "hardware"), get(documents, "numerics")
    if why := found.get("missing"):
        yield "", str(why)
    if cpu := get(found, "cpu"):
        yield "processor", f"{cpu.get('model')}, {cpu.get('usable')} of {cpu.get('logical')} usable"
    if memory := get(found, "memory").get("bytes"):
        yield "memory", size(memory)
    for gpu in found.get("gpus") or ():
        yield "gpu", ", ".join(str(gpu[k]) for k in ("name", "memory.total") if gpu.get(k))
    if driver := found.get("driver"):
        yield "driver", str(driver)
    threads = [
        f"{library.partition('-')[0]} {pool.get('num_threads')}"
        for library, pool in get(numerics, "pools").items()
        if isinstance(pool, Mapping)
    ]
    if torch := get(numerics, "torch"):
        threads.append(f"torch {torch.get('threads')}")
    if threads:
        yield "threads", _some(dict.fromkeys(threads))
    if blas := get(get(numerics, "numpy"), "blas"):
        yield "blas", f"{blas.get('name')} {blas.get('version')}"


# ---------------------------------------------------------------------------- helpers


def get(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return mapping(document.get(key))


def _some(items: Iterable[Any]) -> str:
    return listed(map(str, items), _FEW)
