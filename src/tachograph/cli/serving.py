"""Commands that run a server, and look after its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tachograph import registry
from tachograph.config import load_config
from tachograph.errors import ConfigError

FolderOption = Annotated[
    Path | None,
    typer.Option("--folder", help="Folder of the server; by default beside its first store."),
]
StoresOption = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        "-s",
        metavar="URL",
        help="Store to write to; may be repeated, the first is read.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(serve)


def serve(
    store: StoresOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is any free one.")] = 8765,
    folder: FolderOption = None,
) -> None:
    """Receive records from other machines into a store, and answer questions about it."""
    from tachograph.server.serve import Listening
    from tachograph.server.serve import serve as run_server
    from tachograph.server.settings import ServerSettings
    from tachograph.server.tokens import Tokens

    stores = _stores(store)
    place = folder.expanduser().absolute() if folder else _folder(stores)
    tokens = Tokens(place)
    if not tokens.all():
        print(f"admin token, shown only now: {tokens.create('admin', rights=('admin',))}")

    def announce(url: str) -> None:
        print(f"listening on {url}", flush=True)

    run_server(ServerSettings(stores, place), Listening(host, port), announce)


def _stores(given: list[str] | None) -> tuple[str, ...]:
    if not given:
        return load_config().backend
    return tuple(registry.resolve_url(url, Path.cwd()) for url in given)


def _folder(stores: tuple[str, ...]) -> Path:
    found = registry.store_folder(stores[0])
    if found is None:
        raise ConfigError(
            f"{stores[0]} has no folder; say with --folder where the server keeps its own"
        )
    inner = found if found.name == ".tachograph" else found / ".tachograph"
    return inner / "server"
