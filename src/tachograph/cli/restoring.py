"""The command that writes the code of a run into a folder: restore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tachograph.cli.options import JsonOption, RunArgument, StoreOption, open_for_reading
from tachograph.cli.render import console, print_json, size
from tachograph.restoring.restore import Command, command_of, restore_run
from tachograph.restoring.sources import Restored

_NAMED = 20  # files of one kind


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(restore)


def restore(
    run: RunArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write into; new, or empty.")
    ],
    files_only: Annotated[
        bool,
        typer.Option(
            "--files-only",
            help="Only the files that were imported, without the commit and without git.",
        ),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the source tree of a run into a folder: commit, uncommitted work, untracked files."""
    with open_for_reading(store) as opened:
        record = opened.run(run)
        restored = restore_run(opened, record, folder, files_only=files_only)
        documents = record.provenance
    command = command_of(documents, restored)
    if as_json:
        print_json(_plain(restored, command))
        return
    _print_trees(documents, restored, files_only=files_only)
    _print_lacks(restored, (documents.get("source") or {}).get("trees") or {})
    _print_command(command)


def _plain(restored: Restored, command: Command) -> dict[str, Any]:
    return {
        "folder": str(restored.folder.absolute()),
        "files": restored.files,
        "redacted": restored.redacted,
        "missing": restored.missing,
        "patches": {tree: len(patch) for tree, patch in restored.patches.items()},
        "command": command.text() if command.words else None,
        "notes": command.notes,
    }


def _print_trees(documents: Mapping[str, Any], restored: Restored, *, files_only: bool) -> None:
    """What stands where: of each tree its commit, and the files that were kept."""
    trees = (documents.get("source") or {}).get("trees") or {}
    kept = [*restored.files, *restored.redacted]
    _say(f"restored into {restored.folder}", style="bold")
    for name in sorted(trees):
        inner = [other for other in trees if other.startswith(f"{name}/")]
        own = [
            key
            for key in kept
            if key.startswith(f"{name}/") and not any(key.startswith(f"{i}/") for i in inner)
        ]
        parts = [_files(len(own))] if own else []
        if not files_only and trees[name].get("commit") and name not in restored.missing:
            parts.insert(0, f"commit {trees[name]['commit'][:12]}")
            applied = f"{name}.diff" not in restored.missing and name not in restored.patches
            if trees[name].get("patch") and applied:
                parts.insert(1, "its uncommitted work")
        if parts:
            _say(f"  {name}: {', '.join(parts)}")
    if loose := [key for key in kept if not any(key.startswith(f"{tree}/") for tree in trees)]:
        _say(f"  {', '.join(loose)}")


def _files(count: int) -> str:
    return "1 file as it ran" if count == 1 else f"{count} files as they ran"


def _print_lacks(restored: Restored, trees: Mapping[str, Any]) -> None:
    _print_list(
        "missing",
        (
            f"the rest of {key}: {why}" if key in trees else f"{key}: {why}"
            for key, why in restored.missing.items()
        ),
    )
    _print_list("without the secrets that were in it", restored.redacted)
    patches = {
        tree: patch
        for tree, patch in restored.patches.items()
        if f"{tree}.diff" not in restored.missing
    }
    _print_list(
        "not applied",
        (f"{tree}: a diff of {size(len(patch))}" for tree, patch in patches.items()),
    )


def _print_list(title: str, lines: Iterable[str]) -> None:
    found = list(lines)
    if not found:
        return
    _say(f"{title}:", style="yellow")
    for line in found[:_NAMED]:
        _say(f"  {line}")
    if len(found) > _NAMED:
        _say(f"  {len(found) - _NAMED} more; all of them with --json")


def _print_command(command: Command) -> None:
    for note in command.notes:
        _say(f"note: {note}", style="yellow")
    if command.words:
        _say("to run it as it was run, in an environment like its own:", style="bold")
        print(f"  {command.text()}")  # in one line, however long: it is to be copied


def _say(text: str, style: str = "") -> None:
    console().print(text, style=style, soft_wrap=True)
