"""The environment of a run as files that make it again: for pip, conda, uv and Docker.

Works on the documents that were recorded; knows no store, and runs nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tachograph.errors import QueryError
from tachograph.reading.documents import Documents
from tachograph.restoring.dockerfiles import dockerfile
from tachograph.security.texts import REDACTED

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9A-Za-z.!+_-]+")
_WHEELS = "https://download.pytorch.org/whl/"
_BUILDS = re.compile(r"cpu|cu\d+|rocm[\d.]+|xpu")  # in the version of torch and its like
_TORCHES = ("torch", "torchvision", "torchaudio", "triton")
_OPTIONS = {"index-url": "--index-url", "extra-index-url": "--extra-index-url"}
_SCP = re.compile(r"(?P<host>[\w.-]+@[\w.-]+):(?P<path>(?!//).+)")


def export(documents: Documents, format: str) -> str:
    """The environment of a run as the text of a file.

    Parameters
    ----------
    documents : mapping
        Section to document; see `RunRecord.provenance`.
    format : {'requirements', 'conda', 'docker', 'uv'}
        ``requirements.txt`` for pip, ``environment.yml`` for conda, a ``Dockerfile``, or a
        ``pyproject.toml`` that uv makes a lock file from.

    Returns
    -------
    str
        Exact versions; what cannot be had again from where it came is a comment that says so.
        No secrets: where one was, the names of what to set are in a comment.

    Raises
    ------
    QueryError
        There is no such format, or the run has no list of packages.
    """
    if format not in FORMATS:
        raise QueryError(f"there is no format {format!r}; there are: {', '.join(FORMATS)}")
    if "versions" not in documents.get("packages", {}):
        why = documents.get("packages", {}).get("missing", "they were not recorded")
        raise QueryError(f"the packages of this run are not known: {why}")
    return FORMATS[format](_single_lines(documents))


def _single_lines(value: Any) -> Any:
    """Documents in which no text has a second line, which could hold a command of its own."""
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else " " for letter in value)
    if isinstance(value, Mapping):
        return {_single_lines(key): _single_lines(item) for key, item in value.items()}
    return [_single_lines(item) for item in value] if isinstance(value, list) else value


def requirements(documents: Documents) -> str:
    """The text of a ``requirements.txt``."""
    lines = [f"# {line}" for line in _about(documents)]
    return "\n".join([*lines, *_indexes(documents), *_packages(documents), ""])


def conda(documents: Documents) -> str:
    """The text of an ``environment.yml``: conda's own packages as builds, the others with pip."""
    environment = documents["packages"].get("conda")
    python = documents.get("python", {}).get("version")
    if environment is None:
        name, channels = "tachograph", ["conda-forge"]
        packages = [f"python={python}"] if python else ["python"]
    else:
        name, channels = str(environment["name"]), _channels(environment["packages"])
        packages = [
            "=".join(filter(None, (one["name"], one["version"], one["build"])))
            for one in environment["packages"]
        ]
    lines = [f"# {line}" for line in _about(documents)]
    lines += [f"name: {json.dumps(name)}", "channels:", *(f"  - {json.dumps(c)}" for c in channels)]
    lines += ["dependencies:", *(f"  - {json.dumps(package)}" for package in packages)]
    own = [*_indexes(documents), *_packages(documents)]
    if any(not line.startswith("#") for line in own):
        if "pip" not in (package.partition("=")[0] for package in packages):
            lines.append('  - "pip"')
        lines += ["  - pip:"]
    lines += [
        f"    {line}" if line.startswith("#") else f"    - {json.dumps(line)}" for line in own
    ]
    return "\n".join([*lines, ""])


def pyproject(documents: Documents) -> str:
    """The text of a ``pyproject.toml`` from which ``uv lock`` makes a lock file."""
    python = documents.get("python", {}).get("version", "")
    minor = ".".join(python.split(".")[:2])
    lines = [f"# {line}" for line in _about(documents)]
    lines += ["[project]", 'name = "environment"', 'version = "0"']
    if minor:
        lines.append(f'requires-python = "=={minor}.*"')
    lines.append("dependencies = [")
    for line in _packages(documents):
        lines.append(f"    {line}" if line.startswith("#") else f"    {json.dumps(line)},")
    lines.append("]")
    for option, url in _urls(documents):
        lines += ["", "[[tool.uv.index]]", f"url = {json.dumps(url)}"]
        lines += ["default = true"] if option == "--index-url" else []
    if wheels := _torch_wheels(documents):
        lines += ["", "[[tool.uv.index]]", 'name = "pytorch"', f"url = {json.dumps(wheels)}"]
        lines += ["explicit = true", "", "[tool.uv.sources]"]
        names = [
            name for name in _TORCHES if "+" in documents["packages"]["versions"].get(name, "")
        ]
        lines += [f'{name} = {{ index = "pytorch" }}' for name in names]
    return "\n".join([*lines, ""])


FORMATS: dict[str, Callable[[Documents], str]] = {
    "requirements": requirements,
    "conda": conda,
    "docker": lambda documents: dockerfile(documents, requirements, conda),
    "uv": pyproject,
}
"""Format to what writes it."""


# ---------------------------------------------------------------------------- lines


def _about(documents: Documents) -> Iterator[str]:
    python = documents.get("python", {})
    words = ("implementation", "version", "system", "machine")
    known = [str(python[word]) for word in words if python.get(word)]
    yield f"as recorded on {' '.join(known)}" if known else "as recorded"
    if distribution := python.get("distribution"):
        yield str(distribution)


def _indexes(documents: Documents) -> list[str]:
    """Options of pip, one a line."""
    found = [f"{option} {url}" for option, url in _urls(documents)]
    wheels = _torch_wheels(documents)
    return [*found, f"--extra-index-url {wheels}"] if wheels else found


def _urls(documents: Documents) -> list[tuple[str, str]]:
    """Options and addresses of indexes; of those on that machine alone nobody else has any use."""
    known = documents["packages"].get("indexes", {})
    return [
        (option, url)
        for setting, option in _OPTIONS.items()
        for url in known.get(setting, ())
        if url.startswith(("http://", "https://")) and REDACTED not in url and _WHEELS not in url
    ]


def _torch_wheels(documents: Documents) -> str | None:
    """The index that has builds of torch such as ``2.9.0+cu128``; None for those of PyPI."""
    versions = documents["packages"]["versions"]
    builds = (str(versions.get(name, "")).partition("+")[2] for name in _TORCHES)
    return next((f"{_WHEELS}{build}" for build in builds if _BUILDS.fullmatch(build)), None)


def _packages(documents: Documents) -> list[str]:
    """A requirement a line; a comment for what cannot be installed from what is known."""
    packages = documents["packages"]
    by_conda = set((packages.get("conda") or {}).get("python", ()))
    return [
        _requirement(name, str(version), packages.get("origins", {}).get(name))
        for name, version in sorted(packages["versions"].items(), key=lambda item: item[0].lower())
        if name not in by_conda and name != "pip"
    ]


def _requirement(name: str, version: str, origin: Mapping[str, Any] | None) -> str:
    if not (_NAME.fullmatch(name) and _VERSION.fullmatch(version)):
        return f"# {name} {version}: no name and version of a package"
    return f"{name}=={version}" if origin is None else _from_origin(name, version, origin)


def _from_origin(name: str, version: str, origin: Mapping[str, Any]) -> str:
    if "folder" in origin:
        return f"# {name} {version}: {_worked_on(name, origin)}"
    url = str(origin["url"])
    there = url.startswith("file:")
    if origin.get("commit"):
        url = f"{origin.get('vcs') or 'git'}+{url}@{origin['commit']}"
    where = [f"{kind}={digest}" for kind, digest in (origin.get("hashes") or {}).items()][:1]
    where += [f"subdirectory={origin['subdirectory']}"] if origin.get("subdirectory") else []
    line = f"{name} @ {url}{'#' if where else ''}{'&'.join(where)}"
    if REDACTED in line:
        return f"# {line}"
    return f"# {line} (on that machine)" if there else line


def _worked_on(name: str, origin: Mapping[str, Any]) -> str:
    """What to install in place of a folder, as far as that is known."""
    kind = "editable, from" if origin.get("editable") else "from"
    text = f"{kind} the folder {origin['folder']}"
    if not origin.get("commit"):
        return text
    if not origin.get("remote"):
        return f"{text}, commit {origin['commit']}" + _dirty(origin)
    inside = origin.get("in_repository", ".")
    fragment = "" if inside == "." else f"#subdirectory={inside}"
    place = f"git+{_as_url(origin['remote'])}@{origin['commit']}{fragment}"
    return f"{text}; the same commit is {name} @ {place}" + _dirty(origin)


def _dirty(origin: Mapping[str, Any]) -> str:
    return ", without the changes that were not committed" if origin.get("dirty") else ""


def _as_url(remote: str) -> str:
    """``git@host:path`` as a URL, which pip needs."""
    short = _SCP.fullmatch(remote)
    return f"ssh://{short['host']}/{short['path']}" if short else remote


def _channels(packages: list[Mapping[str, Any]]) -> list[str]:
    """Channels of conda, the most used first, by the addresses of its archives."""
    counts: dict[str, int] = {}
    for package in packages:
        channel = _channel(str(package.get("url") or ""))
        if channel:
            counts[channel] = counts.get(channel, 0) + 1
    return sorted(counts, key=lambda channel: -counts[channel]) or ["conda-forge"]


def _channel(url: str) -> str:
    """Of ``…/conda-forge/linux-64/x.conda`` the name; of another host the whole address."""
    place = "/".join(url.split("/")[:-2])
    return place.removeprefix("https://conda.anaconda.org/")
