"""What is missing in the record of a run's data, configuration, environment and hardware.

Each function gives findings: what is missing, to which level that limits, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tachograph.security.texts import REDACTED
from tachograph.values import mapping

Documents = Mapping[str, Mapping[str, Any]]
"""Section to document, as `RunRecord.provenance` has them."""

STATISTICAL, METHODOLOGICAL, CONCEPTUAL = "statistical", "methodological", "conceptual"

_NAMED = 3  # of several things of one kind
_NO_PARTS = ("sketch", "column_sketches", "source", "dvc", "lfs")  # what is said beside the data


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a record lacks, or that a person should know before a reproduction.

    Attributes
    ----------
    area : str
        code, data, configuration, environment, seed, hardware, or reproduction.
    limits_to : str or None
        The strongest level that remains; None for what limits nothing by itself.
    what : str
        What is missing.
    remedy : str
        What to do about it.
    """

    area: str
    limits_to: str | None
    what: str
    remedy: str


def listed(names: Iterable[str], most: int = _NAMED) -> str:
    """The first names of several: ``a, b, c and 2 more``."""
    found = list(names)
    more = len(found) - most
    return ", ".join(found[:most]) + (f" and {more} more" if more > 0 else "")


def gap(documents: Documents, section: str, *, needs: str) -> str | None:
    """Why a section lacks what is needed of it; None where it is there."""
    document = documents.get(section, {})
    return None if document.get(needs) else str(document.get("missing") or "not recorded")


# ---------------------------------------------------------------------------- data


def data(documents: Documents) -> Iterator[Finding]:
    """Data that cannot be recognised again, or not for certain."""
    sections = {name: doc for name, doc in documents.items() if name.startswith("data.")}
    if not sections:
        yield Finding(
            "data",
            METHODOLOGICAL,
            "it is not known what data the run used",
            'call run.log_data(data, "train"), or give the callback data=',
        )
    for name in sorted(sections):
        yield from _one(name.removeprefix("data."), sections[name])


def _one(label: str, document: Mapping[str, Any]) -> Iterator[Finding]:
    unread = list(_unread(document, None))
    unknown = [why for why, version in unread if not version]
    reasons = dict.fromkeys(unknown or [why for why, _ in unread])
    covers = {kind for kinds in map(_covers, _nodes(document)) for kind in kinds}
    if reasons or not covers:
        named = (_version(node) for node in _nodes(document))
        version = None if unknown else next(filter(None, named), None)
        why = listed(reasons) if reasons else "its content was not read"
        yield Finding(
            "data",
            None if version else METHODOLOGICAL,
            f"the data {label!r} has no digest: {why}" + (f"; it is {version}" if version else ""),
            f"call run.log_data(path, {label!r}) with the files that it is read from",
        )
    elif part := covers - {"content"}:
        what = listed(sorted("a sample" if kind == "sample" else kind for kind in part))
        yield Finding(
            "data",
            None,
            f"the digest of the data {label!r} covers only {what}: other changes are not seen",
            "keep the data where nobody changes it, or hash the files yourself",
        )


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """A document on data and those on its parts."""
    if isinstance(value, Mapping):
        yield value
        for key, item in value.items():
            if key not in _NO_PARTS:
                yield from _nodes(item)


def _unread(value: Any, version: str | None) -> Iterator[tuple[str, str | None]]:
    """Why parts of the data have no digest, and the version that they or what holds them name."""
    if not isinstance(value, Mapping):
        return
    version = _version(value) or version
    if value.get("digest") is None and isinstance(value.get("missing"), str):
        yield value["missing"], version
    elif "digest" in value and value["digest"] is None:
        yield "its content was not read", version
    if value.get("more_parts"):
        yield f"{value['more_parts']} parts of it were not looked at", version
    for key, item in value.items():
        if key not in _NO_PARTS:
            yield from _unread(item, version)


def _covers(node: Mapping[str, Any]) -> set[str]:
    """What a digest covers: 'content', 'sample', 'names and sizes', …; empty without one."""
    return {str(node.get("digest_of") or "content")} if node.get("digest") else set()


def _version(node: Mapping[str, Any]) -> str | None:
    """The version that data says it is, where that names its content."""
    source, dvc, lfs = (mapping(node.get(name)) for name in ("source", "dvc", "lfs"))
    for kind, value in (
        ("DVC's", dvc.get("md5") or dvc.get("etag") or dvc.get("checksum")),
        ("Git LFS's", lfs.get("oid")),
        ("revision", source.get("revision") or source.get("fingerprint")),
        ("version", source.get("version")),
    ):
        if value:
            return " ".join(filter(None, (source.get("name"), kind, str(value)[:40])))
    return None


# ---------------------------------------------------------------------------- configuration


def configuration(documents: Documents) -> Iterator[Finding]:
    """Arguments and config files that are not known as they were."""
    if why := gap(documents, "argv", needs="argv"):
        yield Finding(
            "configuration",
            METHODOLOGICAL,
            f"the command is not known: {why}",
            "start the run in the process that trains",
        )
    elif any(REDACTED in str(word) for word in documents["argv"].get("original_argv") or ()):
        yield Finding(
            "configuration",
            None,
            "secrets were taken out of the command",
            "give them again, or read them from environment variables",
        )
    for file in mapping(documents.get("arguments")).get("files") or ():
        if "artifact" not in file and not _in_source(documents, str(file.get("path"))):
            yield Finding(
                "configuration",
                METHODOLOGICAL,
                f"the config file {file.get('path')} was not kept: {file.get('missing')}",
                "commit it, or record it with run.log_artifact(path)",
            )
    if names := mapping(documents.get("environment")).get("redacted"):
        yield Finding(
            "configuration",
            None,
            f"environment variables with secrets were set, and not kept: {listed(names)}",
            "set them again where the program needs them",
        )


def _in_source(documents: Documents, path: str) -> bool:
    source = mapping(documents.get("source"))
    kept = mapping(source.get("files")).keys() - mapping(source.get("left_out")).keys()
    archived = "sha256" in mapping(source.get("archive"))
    return archived and any(path.endswith(f"/{key.partition('/')[2]}") for key in kept)


# ---------------------------------------------------------------------------- environment


def environment(documents: Documents) -> Iterator[Finding]:
    """Packages and interpreters that cannot be had again as they were."""
    if why := gap(documents, "packages", needs="versions"):
        yield Finding(
            "environment",
            STATISTICAL,
            f"the packages are not known: {why}",
            "let the run last for a second, or keep a lock file with the code",
        )
    if why := gap(documents, "python", needs="version"):
        yield Finding(
            "environment",
            STATISTICAL,
            f"the version of Python is not known: {why}",
            "let the run last for a second",
        )
    for name, origin in sorted(_worked_on(documents)):
        yield Finding(
            "environment",
            STATISTICAL,
            f"the package {name} is installed from {origin.get('folder')}, {_state(origin)}",
            "commit the changes and install it from the commit, or build a wheel and install that",
        )
    container = mapping(documents.get("container"))
    if container.get("runtime") and not (container.get("image") or container.get("digest")):
        yield Finding(
            "environment",
            None,
            f"it ran in a container ({container['runtime']}) whose image is not known",
            "set CONTAINER_IMAGE and CONTAINER_IMAGE_DIGEST in the image, or where it is started",
        )


def _worked_on(documents: Documents) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Packages from folders in a state that nothing holds: no commit, and no archive."""
    source = mapping(documents.get("source"))
    archived = "sha256" in mapping(source.get("archive"))
    kept = {mapping(tree).get("root") for tree in mapping(source.get("trees")).values()}
    for name, origin in mapping(mapping(documents.get("packages")).get("origins")).items():
        folder = mapping(origin).get("folder")
        if folder is None or name == "tachograph":
            continue
        is_kept = archived and origin.get("editable") and any(_holds(tree, folder) for tree in kept)
        if not is_kept and (origin.get("dirty") or not origin.get("commit")):
            yield name, origin


def _holds(tree: Any, folder: str) -> bool:
    return folder == tree or folder.startswith(f"{tree}/")


def _state(origin: Mapping[str, Any]) -> str:
    return (
        "whose changes are not committed" if origin.get("dirty") else "of which no commit is known"
    )


# ---------------------------------------------------------------------------- hardware


def hardware(documents: Documents) -> Iterator[Finding]:
    """What another machine may compute differently."""
    if why := gap(documents, "hardware", needs="cpu"):
        yield Finding(
            "hardware", None, f"the machine is not known: {why}", "let the run last for a second"
        )
    names = {str(gpu.get("name")) for gpu in documents.get("hardware", {}).get("gpus") or ()}
    if names and uses_gpu(documents):
        yield Finding(
            "hardware",
            None,
            f"kernels of a GPU were used ({listed(sorted(names))}): other models and drivers round"
            " differently",
            "reproduce it on the same model, with the same driver",
        )
    numerics = documents.get("numerics", {})
    threads = {
        str(mapping(pool).get("num_threads")) for pool in mapping(numerics.get("pools")).values()
    }
    if threads and not any("THREADS" in name for name in mapping(numerics.get("variables"))):
        yield Finding(
            "hardware",
            None,
            f"the number of threads followed the machine ({' and '.join(sorted(threads))}):"
            " sums of another number may round differently",
            "set OMP_NUM_THREADS to the number that was used",
        )


def uses_gpu(documents: Documents) -> bool:
    """Whether a library had a GPU in use, as far as that was seen."""
    torch = mapping(documents.get("seeds", {}).get("torch"))
    numerics = documents.get("numerics", {})
    platforms = mapping(numerics.get("jax")).get("platforms") or ()
    return bool(
        torch.get("cuda")
        or torch.get("xpu")
        or mapping(numerics.get("torch")).get("cudnn")
        or any("cuda" in str(name) or "gpu" in str(name) for name in platforms)
    )
