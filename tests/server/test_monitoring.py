"""What a server says of itself: to Prometheus, and to its log."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from tachograph.errors import TachographWarning
from tachograph.server.app import make_app
from tachograph.server.logs import set_up_logging
from tachograph.server.settings import ServerSettings


def figures(client: TestClient) -> dict[tuple[str, ...], float]:
    """What /metrics says, by name and values of the labels, as Prometheus reads it."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        (
            sample.name,
            *(
                sample.labels[name]
                for name in ("method", "path", "status")
                if name in sample.labels
            ),
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if "le" not in sample.labels
    }


def batch(first: int, count: int) -> dict[str, Any]:
    rows = [[first + number, 0, number, None, [0.5, 0.25]] for number in range(count)]
    points = [{"run_id": "r", "names": ["loss", "accuracy"], "rows": rows}]
    return {"writer": "w", "first": first, "next": first + count, "points": points}


# ---------------------------------------------------------------------------- figures


def test_requests_are_counted_by_route_and_status(client: TestClient) -> None:
    """By the route's pattern, never by what a client fills in; with how long they took."""
    for run in ("a", "b", "c"):
        assert client.get(f"/v1/runs/{run}").status_code == 404
    client.get("/nothing/at/all")
    client.request("BREW", "/v1")
    client.get("/healthz", headers={"Authorization": ""})
    found = figures(client)
    count = "tachograph_request_seconds_count"
    assert found[count, "GET", "/v1/runs/{run}", "404"] == 3
    assert found[count, "GET", "-", "404"] == 1
    assert found[count, "-", "/v1", "405"] == 1
    assert found[count, "GET", "/healthz", "200"] == 1
    assert 0 < found["tachograph_request_seconds_sum", "GET", "/v1/runs/{run}", "404"] < 60
    assert not any("nothing" in part or "BREW" in part for key in found for part in key)


def test_bytes_points_and_writers_are_counted(client: TestClient) -> None:
    """As they came; and that nothing waits any more when it is in the store."""
    body = json.dumps(batch(0, 10)).encode()
    headers = {"Content-Type": "application/json"}
    before = figures(client)
    assert client.post("/v1/batches", content=body, headers=headers).status_code == 200
    found = figures(client)
    received = "tachograph_received_bytes_total"
    assert found[received,] - before[received,] == len(body)
    assert found["tachograph_received_points_total",] == 20
    assert found["tachograph_active_writers",] == 1
    client.app.state.server.inbox.flush(10)  # type: ignore[attr-defined]
    found = figures(client)
    assert found["tachograph_journal_waiting_bytes",] == 0
    assert found["tachograph_store_lag_seconds",] == 0


def test_each_server_counts_for_itself(
    client: TestClient, server_settings: ServerSettings, tmp_path: Any
) -> None:
    """Also two in one process; and nothing of the process is shown that nobody asked for."""
    client.get("/healthz")
    other = make_app(ServerSettings((f"sqlite:///{tmp_path}/other.sqlite",), tmp_path / "other"))
    with TestClient(other):
        registry = other.state.server.metrics.registry
        assert not registry.get_sample_value(
            "tachograph_request_seconds_count",
            {"method": "GET", "path": "/healthz", "status": "200"},
        )
    assert all(name.startswith("tachograph_") for name, *_ in figures(client))


# ---------------------------------------------------------------------------- the log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What is logged, on a file or a terminal; afterwards logging is as before."""
    root = logging.getLogger()
    handlers, level, show = root.handlers[:], root.level, warnings.showwarning
    root.handlers = []
    stream: io.StringIO = request.param()
    set_up_logging(stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)
    warnings.showwarning = show


SECRET = "tacho_" + "Zq8vN3xK7m" * 4 + "abc"


@pytest.mark.parametrize("logged", [io.StringIO, Terminal], indirect=True)
def test_secrets_never_reach_the_log(logged: io.StringIO) -> None:
    """Neither in a message, nor in its arguments, nor in a traceback."""
    log = logging.getLogger("tachograph.server")
    log.warning("got %s", f"Authorization: Bearer {SECRET}")
    try:
        raise RuntimeError(f"no access with {SECRET}")
    except RuntimeError:
        log.exception("failed with password=%s", "hunter2hunter2")
    text = logged.getvalue()
    assert "Traceback" in text
    assert SECRET not in text
    assert "hunter2" not in text
    assert text.count("[redacted]") == 3


@pytest.mark.parametrize("logged", [io.StringIO], indirect=True)
def test_a_line_of_the_log_is_json(logged: io.StringIO) -> None:
    """Also where a message has lines of its own; from uvicorn; and what the core warns of."""
    logging.getLogger("uvicorn.error").warning("two\nlines", extra={"color_message": "\x1b[1m"})
    logging.getLogger("tachograph.server").info('said "%s"', "x\r\n{}")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("the store is away", TachographWarning, stacklevel=1)
    first, second, third = map(json.loads, logged.getvalue().splitlines())
    assert (third["level"], third["message"]) == ("WARNING", "the store is away")
    assert (
        first.items()
        >= {"level": "WARNING", "logger": "uvicorn.error", "message": "two\nlines"}.items()
    )
    assert "color_message" not in first
    assert second["message"] == 'said "x\r\n{}"'
    assert second["time"].endswith("+00:00")


@pytest.mark.parametrize("logged", [Terminal], indirect=True)
def test_a_terminal_gets_plain_lines(logged: io.StringIO, server_app: FastAPI) -> None:
    """For whoever looks on."""
    with TestClient(server_app) as client:
        client.get("/healthz")
    assert "INFO GET /healthz 200\n" in logged.getvalue()
