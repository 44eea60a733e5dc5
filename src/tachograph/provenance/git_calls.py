"""Calls of git.

`GIT_OPTIONAL_LOCKS=0` keeps git from refreshing its index where it is only asked. No hook, external
diff, converter of text or file system monitor that the repository configures is started. Its
filters are: without them it is not known what is committed of a file (of LFS a pointer).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tachograph.security.texts import redact_text

TIMEOUT = 30.0
"""Seconds that one call may take."""

_CHUNK = 1 << 18
_COMMAND = (
    "git",
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.quotePath=true"),
    *("-c", f"core.hooksPath={os.devnull}"),
)
_LOCAL = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_EXTERNAL_DIFF")


class GitError(Exception):
    """Git could not say; the text is its reason."""


def is_installed() -> bool:
    """Whether there is a git to ask."""
    return shutil.which("git") is not None


def ask(folder: Path, *arguments: str, given: bytes = b"", timeout: float = TIMEOUT) -> str:
    """The answer of git as text; bytes that are not UTF-8 as surrogates.

    Parameters
    ----------
    folder : Path
    *arguments : str
    given : bytes, optional
        What it reads from standard input.
    timeout : float, default TIMEOUT
        Seconds.

    Raises
    ------
    GitError
        It failed, could not be started, or took too long.
    """
    try:
        answer = subprocess.run(
            [*_COMMAND, *arguments],
            cwd=folder,
            env=_environment(),
            input=given,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"git {' '.join(arguments)[:80]} took longer than {timeout:g} s") from None
    except OSError as error:
        raise GitError(f"git cannot be started in {folder}: {error.strerror}") from None
    if answer.returncode != 0:
        raise GitError(os.fsdecode(answer.stderr).strip()[:500] or "git failed")
    return os.fsdecode(answer.stdout)


def reason_of(error: GitError) -> str:
    """Why git could not say, as a document may have it."""
    if not is_installed():
        return "git is not installed"
    if "not a git repository" in str(error):
        return "not a git repository"  # without git's words on where it has looked
    return redact_text(str(error))


def stream(folder: Path, *arguments: str) -> Iterator[bytes]:
    """The answer of git in chunks, for it may be larger than memory; GitError as `ask`."""
    process = subprocess.Popen(
        [*_COMMAND, *arguments],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    late = threading.Timer(TIMEOUT, process.kill)
    late.daemon = True
    late.start()
    try:
        assert process.stdout is not None
        while chunk := process.stdout.read(_CHUNK):
            yield chunk
        if process.wait() != 0:
            raise GitError(f"git {arguments[0]} failed or took longer than {TIMEOUT:g} s")
    finally:
        late.cancel()
        process.kill()
        process.communicate()


def _environment() -> dict[str, str]:
    """Ours without what a git hook set, for it names another repository than the folder's."""
    inherited = {name: value for name, value in os.environ.items() if name not in _LOCAL}
    return inherited | {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",  # none that runs a command from its URL
        "LC_ALL": "C",
    }
