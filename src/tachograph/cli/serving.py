"""Commands that run a server, and look after its tokens."""

from __future__ import annotations

import re
import socket
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tachograph import registry
from tachograph.cli.options import JsonOption
from tachograph.cli.render import print_json, print_table
from tachograph.config import load_config
from tachograph.errors import ConfigError
from tachograph.server.settings import Limits, ServerSettings
from tachograph.server.tokens import Token, Tokens

INSTALL = "tachograph serve needs its extra; install it with: pip install 'tachograph[server]'"
_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
_DEFAULTS = Limits()

FolderOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="The server's own folder; default: .tachograph/server beside its store."
    ),
]
StoresOption = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        "-s",
        metavar="URL",
        help="Store to write to, the configured one by default. May be repeated; readers are"
        " answered from the first.",
    ),
]

token_app = typer.Typer(
    name="token", help="Tokens of a server: make, list and revoke them.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(serve)
    app.add_typer(token_app)


def serve(
    store: StoresOption = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=65535, help="Port to listen on; 0 is any that is free."
        ),
    ] = 8765,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate and its chain, a PEM file.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key of the certificate, a PEM file.")
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy does TLS; listen without.")
    ] = False,
    folder: FolderOption = None,
    connections: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Connections at once; more are answered with 503."),
    ] = 1000,
    token_bytes: Annotated[
        int | None,
        typer.Option(metavar="BYTES", min=1, help="Bytes that a token may send per second."),
    ] = None,
    token_points: Annotated[
        int | None,
        typer.Option(metavar="POINTS", min=1, help="Points that a token may send per second."),
    ] = None,
    body_bytes: Annotated[
        int, typer.Option(metavar="BYTES", min=1024, help="Bytes of a request, as it comes.")
    ] = _DEFAULTS.body_bytes,
    batch_bytes: Annotated[
        int,
        typer.Option(
            metavar="BYTES", min=1024, help="Bytes of a request, when it is decompressed."
        ),
    ] = _DEFAULTS.batch_bytes,
    in_flight_bytes: Annotated[
        int, typer.Option(metavar="BYTES", min=1024, help="Bytes of all requests that are in hand.")
    ] = _DEFAULTS.in_flight_bytes,
    artifact_bytes: Annotated[
        int | None,
        typer.Option(metavar="BYTES", min=1024, help="Bytes of a file; no limit by default."),
    ] = None,
    answer_rows: Annotated[
        int, typer.Option(metavar="ROWS", min=1, help="Rows of an answer.")
    ] = _DEFAULTS.answer_rows,
    request_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=1, help="Seconds within which a request must have come."
        ),
    ] = _DEFAULTS.request_seconds,
) -> None:
    """Receive what other machines record, keep it in a store, and answer questions about it."""
    try:
        from tachograph.server import serve as serving
    except ModuleNotFoundError as error:
        raise ConfigError(f"{INSTALL} ({error})") from error
    settings = ServerSettings(
        stores=_stores(store),
        folder=_folder(store, folder),
        limits=Limits(
            body_bytes=body_bytes,
            batch_bytes=batch_bytes,
            in_flight_bytes=in_flight_bytes,
            artifact_bytes=artifact_bytes,
            answer_rows=answer_rows,
            request_seconds=request_seconds,
            token_bytes=token_bytes,
            token_points=token_points,
        ),
    )
    listening = serving.Listening(host, port, tls_cert, tls_key, behind_proxy, connections)
    serving.serve(settings, listening, lambda url: _announce(url, settings, behind_proxy))


def _announce(url: str, settings: ServerSettings, behind_proxy: bool) -> None:
    tokens = Tokens(settings.folder)
    wildcard = re.search(r"//(0\.0\.0\.0|\[::\]):", url)
    reached = url.replace(wildcard[1], socket.gethostname()) if wildcard else url
    lines = [f"listening on {url}"]
    if not tokens.all():
        secret = tokens.create("admin", rights=("admin",))
        lines += ["", f"admin token, shown this once: {secret}", ""]
    lines += [
        *(f"store: {store}" for store in settings.stores),
        f"tokens: {tokens.path}; make one for each who records: tachograph token create NAME"
        f" --folder {settings.folder}",
        f'clients: backend = "{"https://…" if behind_proxy else reached}" in tachograph.toml, and'
        " the token by `tachograph login URL` or in the environment variable TACHOGRAPH_TOKEN",
    ]
    print("\n".join(lines), flush=True)


# ---------------------------------------------------------------------------- tokens


@token_app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is: a person, a machine.")],
    right: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RIGHT", help="read, write or admin; may be repeated. Default: read and write."
        ),
    ] = None,
    project: Annotated[
        list[str] | None,
        typer.Option(
            "--project", "-p", metavar="PROJECT", help="Only for this project; may be repeated."
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="When it ends: hours, days or weeks from now, as in 90d."
        ),
    ] = None,
    store: StoresOption = None,
    folder: FolderOption = None,
) -> None:
    """Make a token and print it, alone on stdout. It is shown only now."""
    rights = tuple(right or ("read", "write"))
    if project and "admin" in rights:
        raise ConfigError("admin is for all projects; give read and write, or no --project")
    tokens = Tokens(_folder(store, folder))
    ends = None if expires is None else time.time() + _seconds(expires)
    secret = tokens.create(name, rights=rights, projects=project or None, expires=ends)
    print(f"kept as a digest in {tokens.path}; this is the token:", file=sys.stderr)
    print(secret)


@token_app.command("list")
def list_tokens(
    store: StoresOption = None, folder: FolderOption = None, as_json: JsonOption = False
) -> None:
    """List the tokens of a server, without the tokens themselves."""
    rows = [_row(token) for token in Tokens(_folder(store, folder)).all()]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(
            [{name: _shown(value) for name, value in row.items()} for row in rows], tuple(rows[0])
        )
    else:
        print("there is no token yet; make one with: tachograph token create NAME")


@token_app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_ID", help="Its name, or its id.")],
    store: StoresOption = None,
    folder: FolderOption = None,
) -> None:
    """Revoke a token. A server that runs refuses it from the next request on."""
    gone = Tokens(_folder(store, folder)).revoke(name)
    print(f"revoked {gone.name} ({gone.id})")


def _row(token: Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "id": token.id,
        "rights": list(token.rights),
        "projects": None if token.projects is None else list(token.projects),
        "created": token.created,
        "expires": token.expires,
        "used": token.used,
    }


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return datetime.fromtimestamp(value).isoformat(" ", "minutes")
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else str(value)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,5})([hdw])", text.strip())
    if match is None:
        raise ConfigError(f"--expires takes hours, days or weeks as in 12h, 90d, 4w, not {text!r}")
    return int(match[1]) * float(_UNITS[match[2]])


# ---------------------------------------------------------------------------- places


def _stores(given: list[str] | None) -> tuple[str, ...]:
    if not given:
        return load_config().backend
    return tuple(registry.resolve_url(url, Path.cwd()) for url in given)


def _folder(store: list[str] | None, folder: Path | None) -> Path:
    if folder is not None:
        return folder.expanduser().absolute()
    return registry.journal_folder(_stores(store)).parent / "server"
