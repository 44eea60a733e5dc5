"""A server process: it starts, says where, answers, and stops."""

from __future__ import annotations
import httpx


def test_it_starts_answers_and_stops(serve):
    server = serve()
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    r = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {server.token}"})
    assert r.status_code == 200, r.text
    assert server.stop() == 0, server.log()


def test_client(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/nix").status_code == 404
    assert "python_gc" not in client.get("/metrics").text
