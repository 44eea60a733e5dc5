"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated

import typer

from tachograph import registry
from tachograph.config import Config, load_config
from tachograph.errors import QueryError
from tachograph.query import Store, open_store
from tachograph.reading.run_record import RunRecord

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


def check_metrics(record: RunRecord, wanted: Iterable[str], known: Collection[str]) -> None:
    """Raise `QueryError` for a metric that a run does not have."""
    if missing := [metric for metric in wanted if metric not in known]:
        raise QueryError(
            f"run {record.run_id} has no metric {', '.join(missing)}; it has: "
            f"{', '.join(sorted(known)) or 'none'}"
        )


def open_for_reading(store: str | None) -> Store:
    """The store that a command looks at."""
    return open_store(store)


def configured(store: str | None) -> Config:
    """The configuration, with that store instead of its own."""
    if store is None:
        return load_config()
    return load_config(arguments={"backend": registry.resolve_url(store, Path.cwd())})
