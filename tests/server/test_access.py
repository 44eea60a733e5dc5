"""The gate: who gets in, how far, and what nobody learns."""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable, Iterator

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import Route

from tachograph.errors import TachographWarning
from tachograph.server.access import Needs
from tachograph.server.tokens import RIGHTS, Tokens

FOR_ANY_TOKEN = {
    ("GET", "/healthz"),
    # What the server is:
    *((method, path) for path in ("/v1", "/docs", "/openapi.json") for method in ("GET", "HEAD")),
    # How much of a file has come, which those want to know who write and those who read:
    ("HEAD", "/v1/artifacts/{sha256}"),
}
ONLY_READ = {"GET", "HEAD"}


def routes(owner: FastAPI | APIRouter) -> Iterator[tuple[str, str, Route]]:
    """Method, a path that fits, and the route, for each that the application has."""
    for route in owner.routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from routes(included)
            continue
        assert isinstance(route, Route), f"{route} is of a kind that this test does not know"
        path = re.sub(r"{[^}]*}", "x", route.path)
        for method in sorted(route.methods or {"GET"}):
            yield method, path, route


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# ---------------------------------------------------------------------------- every route


def test_without_a_token_only_healthz_answers(client: TestClient, server_app: FastAPI) -> None:
    """Each route that there is, and one that there is not: 401, and a browser asks for a token."""
    del client.headers["Authorization"]
    asked = [(method, path) for method, path, _ in routes(server_app)]
    assert ("GET", "/metrics") in asked
    for method, path in [*asked, ("GET", "/nothing"), ("GET", "/healthz/"), ("BREW", "/v1")]:
        answer = client.request(method, path)
        if path == "/healthz":
            assert answer.json() == {"status": "ok"}
            continue
        assert answer.status_code == 401, f"{method} {path}"
        assert "Basic" in answer.headers["WWW-Authenticate"]
        assert method == "HEAD" or answer.json()["error"]["code"] == "unauthorized"


def right_of(route: Route) -> str | None:
    """The right that a route asks for."""
    assert isinstance(route, APIRoute)
    asked = [found.call for found in route.dependant.dependencies]
    rights = [call.right for call in asked if isinstance(call, Needs)]
    assert len(rights) <= 1
    return rights[0] if rights else None


def test_each_route_needs_its_right(
    client: TestClient, server_app: FastAPI, tokens: Tokens
) -> None:
    """A token with all rights but the one that is needed is refused with 403.

    What changes something needs more than read, but for questions that are asked with a body.
    """
    without = {
        right: tokens.create(f"all-but-{right}", rights=[one for one in RIGHTS[:2] if one != right])
        for right in RIGHTS
    }
    for method, path, route in routes(server_app):
        if (method, route.path) in FOR_ANY_TOKEN:
            continue
        right = right_of(route)
        assert right is not None, f"{method} {path} asks for no right"
        answer = client.request(method, path, headers=bearer(without[right]))
        assert answer.status_code == 403, f"{method} {path}"
        assert method == "HEAD" or f"no right to {right}" in answer.json()["error"]["message"]


def test_only_questions_may_be_asked_with_the_right_to_read(server_app: FastAPI) -> None:
    """Whatever else is sent with POST or PUT needs to write, or admin."""
    questions = {"/v1/read", "/v1/sql", "/v1/digest"}
    changing = {
        route.path
        for method, _, route in routes(server_app)
        if method not in ONLY_READ and route.path not in questions
    }
    rights = {
        route.path: right_of(route)
        for _, _, route in routes(server_app)
        if route.path in changing and (route.methods or set()) - ONLY_READ
    }
    assert all(right in ("write", "admin") for right in rights.values()), rights


def test_figures_are_for_tokens_of_all_projects(client: TestClient, tokens: Tokens) -> None:
    """They tell of every project."""
    some = tokens.create("some", rights=["read"], projects=["churn"])
    every = tokens.create("every", rights=["read"])
    assert client.get("/metrics", headers=bearer(some)).status_code == 403
    assert client.get("/metrics", headers=bearer(every)).status_code == 200


# ---------------------------------------------------------------------------- how it is given


def test_a_token_may_be_the_password_of_basic(client: TestClient, tokens: Tokens) -> None:
    """With any user name, as a browser asks for it."""
    secret = tokens.create("browser", rights=["read"])
    for user in ("", "x", "me@home"):
        given = base64.b64encode(f"{user}:{secret}".encode()).decode()
        assert (
            client.get("/metrics", headers={"Authorization": f"Basic {given}"}).status_code == 200
        )
        assert (
            client.get("/metrics", headers={"Authorization": f"basic {given}"}).status_code == 200
        )


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer tacho_wrong",
        "Basic",
        "Basic !!!",
        "Basic é",
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Digest username=x",
        "{secret}",
        "Basic {secret}",
        "Bearer {secret}x",
        "Bearer x {secret}",
    ],
)
def test_what_is_no_token_is_401(client: TestClient, tokens: Tokens, given: str) -> None:
    """A header that is damaged, of another kind, or only near a token."""
    secret = tokens.create("one")
    answer = client.get("/metrics", headers={"Authorization": given.format(secret=secret).encode()})
    assert answer.status_code == 401


def test_a_token_that_ends_is_refused_with_the_next_request(
    client: TestClient, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoked or expired: 401 at once, without a restart."""
    gone = tokens.create("gone", rights=["read"])
    ends = time.time() + 3600
    short = tokens.create("short", rights=["read"], expires=ends)
    assert client.get("/metrics", headers=bearer(gone)).status_code == 200
    assert client.get("/metrics", headers=bearer(short)).status_code == 200
    tokens.revoke("gone")
    monkeypatch.setattr(time, "time", lambda: ends)
    for secret in (gone, short):
        answer = client.get("/metrics", headers=bearer(secret))
        assert answer.status_code == 401
        assert "revoked or expired" in answer.json()["error"]["message"]


def test_tokens_that_cannot_be_read_let_nobody_in(client: TestClient, tokens: Tokens) -> None:
    """Clients come again; where the tokens lie is told to the log alone."""
    kept = tokens.path.read_text()
    tokens.path.write_text("{}")
    with pytest.warns(TachographWarning, match="cannot be read"):
        answer = client.get("/v1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
    assert str(tokens.path.parent) not in answer.text
    tokens.path.write_text(kept)
    assert client.get("/v1").status_code == 200


@pytest.mark.parametrize("name", ["token", "access_token", "TOKEN"])
def test_a_token_in_the_address_is_refused(
    client: TestClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Addresses end in logs and histories: 400 that says so, and our log does not have it."""
    caplog.set_level(logging.DEBUG)
    for authorization in (client.headers["Authorization"], ""):
        headers = {"Authorization": authorization}
        answer = client.get(f"/metrics?{name}=tacho_verysecret", headers=headers)
        assert answer.status_code == 400
        assert "never goes into a URL" in answer.json()["error"]["message"]
    server_lines = [r for r in caplog.records if r.name.startswith(("tachograph", "uvicorn"))]
    assert server_lines
    assert "verysecret" not in answer.text + "".join(str(vars(r)) for r in server_lines)


# ---------------------------------------------------------------------------- other gates


def test_another_version_of_the_protocol_is_refused(client: TestClient) -> None:
    """400 `protocol`; its own version is in each answer."""
    assert client.get("/metrics", headers={"Tachograph-Protocol": "1"}).status_code == 200
    answer = client.get("/metrics", headers={"Tachograph-Protocol": "2"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "protocol")
    assert answer.headers["Tachograph-Protocol"] == "1"


def test_pages_of_other_sites_change_nothing(client: TestClient) -> None:
    """A browser that remembers a token from Basic would send it along with their forms."""
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 405)):
        answer = client.post("/metrics", headers={"Sec-Fetch-Site": site})
        assert answer.status_code == status
    assert client.get("/metrics", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


# ---------------------------------------------------------------------------- answers


@pytest.fixture
def broken(server_app: FastAPI) -> Callable[..., None]:
    """Gives the application a route that fails."""

    def add(error: Exception) -> None:
        @server_app.get("/broken")
        async def fail(request: Request) -> None:
            raise error

    return add


def test_a_fault_shows_nothing_but_an_id(
    broken: Callable[..., None], client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """500 `internal`; under the same id the log has the traceback."""
    broken(RuntimeError("in /srv/secret/place"))
    answer = client.get("/broken")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    logged = next(record for record in caplog.records if error["id"] in record.getMessage())
    assert logged.exc_info is not None
    assert "/srv/secret/place" in str(logged.exc_info[1])


def test_errors_have_one_shape(client: TestClient) -> None:
    """`code` and `message`, also where a route or a method does not exist."""
    for answer, status, code in (
        (client.get("/nothing"), 404, "not_found"),
        (client.post("/metrics"), 405, "method"),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code)
        assert error["message"]


def test_every_answer_has_the_headers_that_protect_it(client: TestClient) -> None:
    """Nothing is framed, sniffed, or kept by a cache that others read."""
    for path in ("/healthz", "/nothing", "/metrics"):
        found = client.get(path).headers
        assert found["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in found["Content-Security-Policy"]
        assert found["Cache-Control"].startswith("private")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/runs/..%2F..%2Fetc%2Fpasswd",
        "/v1/artifacts/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/artifacts/%2e%2e",
        "/v1/writers/..%2Fx",
        "/v1/runs/x%00y",
        "/v1/runs/x%0d%0aSet-Cookie:%20a=b",
        "//etc/passwd",
    ],
)
def test_names_that_are_paths_or_headers_find_nothing(client: TestClient, path: str) -> None:
    """An id is no path of the server, and no header of an answer."""
    answer = client.get(path)
    assert answer.status_code in (400, 404), answer.text
    assert "Set-Cookie" not in answer.headers
    assert "root:" not in answer.text
