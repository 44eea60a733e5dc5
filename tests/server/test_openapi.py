"""The server is as it describes itself: to machines, to people, and under requests of any kind."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import jsonschema
import pytest
import schemathesis
from recorded import ReadServer, error_of, filled
from schemathesis.checks import CHECKS

from tachograph.server.describing import describe
from tachograph.server.docs_page import render
from tachograph.server.shapes import SCHEMAS


@pytest.fixture(scope="module")
def full(tmp_path_factory: Any) -> Iterator[ReadServer]:
    """A server on SQLite that has received something."""
    with filled("sqlite", tmp_path_factory.mktemp("described")) as server:
        yield server


@pytest.fixture(scope="module")
def description(full: ReadServer) -> dict[str, Any]:
    """What the server says of itself."""
    found: dict[str, Any] = full.client.get("/openapi.json").json()
    return found


def operations(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and what is said of them."""
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_route_is_described(full: ReadServer, description: dict[str, Any]) -> None:
    """With a summary, a text, the right it needs, every parameter, body and answer."""
    described = {(path, method) for path, method, _ in operations(description)}
    assert len(described) >= 22
    for path, method, operation in operations(description):
        place = f"{method} {path}"
        assert operation["summary"], place
        assert operation["description"], place
        assert len(operation["tags"]) == 1, place
        for parameter in operation.get("parameters", ()):
            assert parameter["schema"], place
            assert parameter.get("description") or "enum" in parameter["schema"], (place, parameter)
        if method in ("post", "put"):
            assert operation["requestBody"]["content"], place
        for status, answer in operation["responses"].items():
            assert answer["description"], place
            if method != "head" and (status == "default" or int(status) >= 400):
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}, place
        assert "422" not in operation["responses"], place
        if path != "/healthz":
            assert "401" in operation["responses"], place
        if path.startswith("/v1/") and method != "head":  # that one takes any token
            assert operation["x-right"] in ("read", "write", "admin"), place
            assert "403" in operation["responses"], place


def test_references_and_examples_fit(description: dict[str, Any]) -> None:
    """Each reference leads to a shape, each shape is used, and examples are of their shape."""
    text = str(description)
    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named == set(SCHEMAS) == set(description["components"]["schemas"])
    whole = {"components": {"schemas": SCHEMAS}}
    for name, schema in SCHEMAS.items():
        for example in schema.get("examples", ()):
            target = {"$ref": f"#/components/schemas/{name}"} | whole
            jsonschema.validate(example, target, jsonschema.Draft202012Validator)


def test_the_description_is_of_openapi(full: ReadServer, description: dict[str, Any]) -> None:
    """Version 3.1, with how to show who one is."""
    assert description["openapi"].startswith("3.1")
    assert set(description["components"]["securitySchemes"]) == {"bearer", "basic"}
    assert {"name": "reading"}.items() <= description["tags"][1].items()


def test_the_page_for_people_needs_nothing_from_elsewhere(full: ReadServer) -> None:
    """One document: no script, no request; it names every route and shape; a browser may ask."""
    basic = base64.b64encode(f"anyone:{full.apple}".encode()).decode()
    answer = full.client.get("/docs", headers={"Authorization": f"Basic {basic}"})
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    assert not re.search(r"<script|<link|<img|<iframe|src=|url\(|@import|https?://", page)
    assert re.findall(r'href="([^#"][^"]*)"', page) == ["openapi.json"]
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= anchors
    for path, method, _ in operations(describe(full.app)):
        assert f"{method.upper()}</span><code>{path}</code>" in page
    for name in SCHEMAS:
        assert name in anchors


def test_what_a_description_says_is_shown_as_text() -> None:
    """Markup in it is no markup of the page."""
    evil = "<script>alert(1)</script>"
    operation = {
        "tags": ["t"],
        "summary": evil,
        "description": evil,
        "parameters": [{"name": evil, "in": "query", "schema": {"type": evil, "examples": [evil]}}],
        "responses": {"200": {"description": evil, "content": {evil: {"schema": {}}}}},
    }
    page = render(
        {
            "info": {"title": evil, "version": evil, "description": evil},
            "tags": [{"name": "t", "description": evil}],
            "paths": {f"/{evil}": {"get": operation}},
            "components": {"schemas": {evil: {"description": evil, "examples": [evil]}}},
        }
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 9


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_nobody_reads_it_without_a_token(full: ReadServer, path: str) -> None:
    """Any token will do; none will not."""
    answer = full.client.get(path, headers={"Authorization": "Bearer nonsense"})
    assert error_of(answer) == (401, "unauthorized")


# ---------------------------------------------------------------------------- any request

EXAMPLES = 3
"""Requests of each kind and route: enough to find what is wrong in seconds, not to rule it out."""


@pytest.mark.slow
def test_the_server_answers_as_described_whatever_is_asked(serve: Callable[..., Any]) -> None:
    """Requests made from the description, right and wrong ones: no 500, and answers conform."""
    process = serve()
    headers = {"Authorization": f"Bearer {process.token}"}
    schema = schemathesis.openapi.from_url(f"{process.url}/openapi.json", headers=headers)
    # A stream has no end that could be waited for; of routes that differ by a table, one is enough.
    schema = schema.exclude(path_regex="/(follow|tags|provenance|artifacts|attempts)$")
    # A filter or query that is a text may still be none that there is.
    excluded = [CHECKS.get_one("positive_data_acceptance")]
    asked = 0

    def check(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(headers=headers, excluded_checks=excluded)

    for found in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:
            try_some(found.ok().as_strategy(generation_mode=mode), check)
    assert asked > 100
    assert process.stop() == 0
    assert "Traceback" not in process.log()


def try_some(strategy: Any, check: Callable[[Any], None]) -> None:
    """Some examples, the same each time; none where nothing can be wrong."""
    quiet = hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with contextlib.suppress(hypothesis.errors.Unsatisfiable):
        quiet(hypothesis.given(strategy)(check))()
