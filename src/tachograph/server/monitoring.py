"""What a server says of itself: whether it is well, and its figures for Prometheus.

Knows what the inbox and the requests count; knows no store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import prometheus_client as prometheus
from fastapi import APIRouter, Request, Response

from tachograph.server.access import Overseer

if TYPE_CHECKING:
    from tachograph.server.envelope import Exchange
    from tachograph.server.inbox import Inbox

router = APIRouter(tags=["operation"])

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        # Not the library's global one: two servers in a process, as in tests, are two servers.
        self.registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Histogram(
            "tachograph_request_seconds",
            "Requests, by how long they took.",
            ("method", "path", "status"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._bytes = prometheus.Counter(
            "tachograph_received_bytes", "Bytes of bodies, as they came.", registry=self.registry
        )
        self.points = prometheus.Counter(
            "tachograph_received_points", "Points of metrics.", registry=self.registry
        )

    def show(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show a figure that is looked up whenever someone asks."""
        gauge = prometheus.Gauge(f"tachograph_{name}", meaning, registry=self.registry)
        gauge.set_function(value)

    def show_inbox(self, inbox: Inbox) -> None:
        """Show what waits for the stores, and who sends."""
        waiting = "Bytes in the journal that the slowest store does not have yet."
        self.show("journal_waiting_bytes", waiting, lambda: inbox.backlog().get("waiting_bytes", 0))
        lag = "Seconds by which the slowest store is behind."
        self.show("store_lag_seconds", lag, lambda: inbox.backlog().get("lag_seconds", 0.0))
        self.show(
            "active_writers", "Writers heard of in the last half minute.", lambda: inbox.writers
        )

    def count(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        labels = (exchange.method, exchange.path, str(exchange.status))
        self._requests.labels(*labels).observe(exchange.seconds)
        self._bytes.inc(exchange.received)


@router.get("/healthz", summary="Whether the server runs")
async def healthz() -> dict[str, str]:
    """Whether the server runs; the only answer without a token."""
    return {"status": "ok"}


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
async def metrics(request: Request, grant: Overseer) -> Response:
    """Requests, bytes, points and what waits, in the text format of Prometheus."""
    registry = request.app.state.server.metrics.registry
    return Response(prometheus.generate_latest(registry), media_type=prometheus.CONTENT_TYPE_LATEST)
