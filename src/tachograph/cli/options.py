"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tachograph import registry
from tachograph.config import Config, load_config
from tachograph.query import Store, open_store

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        "-s",
        metavar="URL",
        help="Store to read: a URL, an SQLite file or a Parquet folder. "
        "By default the first one that is configured.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Id of a run or the beginning of one, a unique name, 'latest', or '@2' for the "
        "second latest.",
    ),
]


def open_for_reading(store: str | None) -> Store:
    """The store that a command looks at."""
    return open_store(store)


def configured(store: str | None) -> Config:
    """The configuration, with that store instead of its own."""
    if store is None:
        return load_config()
    return load_config(arguments={"backend": registry.resolve_url(store, Path.cwd())})
