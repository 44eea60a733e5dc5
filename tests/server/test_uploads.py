"""Files over HTTP: sent in pieces, cut, resumed and checked; given to those who may have them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tachograph import registry
from tachograph.backends.base import SupportsArtifacts
from tachograph.server import parts, uploads
from tachograph.server.app import make_app
from tachograph.server.settings import Limits, ServerSettings
from tachograph.server.tokens import Tokens
from tachograph.testing import make_batch
from tachograph.wire.encoding import MEDIA_TYPE, encode

DATA = bytes(range(256)) * 10_000  # 2.5 MB, which would compress well
SHA256 = hashlib.sha256(DATA).hexdigest()
URL = f"/v1/artifacts/{SHA256}"
MORE = {"Upload-Complete": "?0"}


def at(offset: int, **headers: str) -> dict[str, str]:
    """Headers of a piece."""
    return {"Upload-Offset": str(offset), **headers}


def offset(answer: httpx.Response) -> int:
    """What the server says that it has."""
    return int(answer.headers["Upload-Offset"])


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error."""
    return answer.status_code, answer.json()["error"]["code"]


def part_of(settings: ServerSettings, sha256: str = SHA256) -> Path:
    """Where what has come of a file lies."""
    return settings.folder / "uploads" / f"{sha256}.part"


# ---------------------------------------------------------------------------- sending


def test_file_comes_and_goes(client: TestClient, server_settings: ServerSettings) -> None:
    """Sent at once, it is kept once, by its content; nothing else stays behind."""
    assert (code(client.get(URL)), client.head(URL).status_code) == ((404, "not_found"), 404)
    answer = client.put(URL, content=DATA)
    assert (answer.status_code, answer.json()) == (201, {"uri": f"http://testserver{URL}"})
    again = client.put(URL, content=DATA)
    assert (again.status_code, again.json()) == (200, answer.json())
    found = client.get(URL)
    assert (found.status_code, found.content) == (200, DATA)
    head = client.head(URL)
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(DATA)))
    listed = client.get("/v1/artifacts").json()
    assert listed["columns"] == {"sha256": [SHA256], "bytes": [len(DATA)]}
    assert not part_of(server_settings).exists()


def test_pieces_make_a_file(client: TestClient) -> None:
    """Each says where it begins; the server says how much it has; the last one is checked."""
    assert offset(client.head(URL)) == 0
    first = client.put(URL, content=DATA[:1000], headers=at(0, **MORE))
    assert (first.status_code, offset(first), first.content) == (202, 1000, b"")
    assert (client.head(URL).status_code, offset(client.head(URL))) == (404, 1000)
    assert code(client.get(URL)) == (404, "not_found")
    for wrong in (0, 999, 1001, 10**12):
        refused = client.put(URL, content=DATA[:5], headers=at(wrong, **MORE))
        assert (code(refused), offset(refused)) == ((409, "offset"), 1000)
    second = client.put(URL, content=DATA[1000:2_000_000], headers=at(1000, **MORE))
    assert offset(second) == 2_000_000
    last = client.put(URL, content=DATA[2_000_000:], headers=at(2_000_000))
    assert last.status_code == 201
    assert client.get(URL).content == DATA


def test_last_piece_may_be_empty(client: TestClient) -> None:
    """Whoever did not hear of the end asks for it again."""
    client.put(URL, content=DATA, headers=at(0, **MORE))
    assert client.put(URL, content=b"", headers=at(len(DATA))).status_code == 201
    assert client.get(URL).content == DATA


def test_file_that_is_sent_without_an_offset_begins_anew(client: TestClient) -> None:
    """As a plain `curl -T` does after it was cut."""
    client.put(URL, content=b"something else", headers=at(0, **MORE))
    assert client.put(URL, content=DATA).status_code == 201
    assert client.get(URL).content == DATA


def test_empty_file_is_a_file(client: TestClient) -> None:
    """Its digest is known well."""
    url = f"/v1/artifacts/{hashlib.sha256().hexdigest()}"
    assert client.put(url, content=b"").status_code == 201
    assert client.get(url).content == b""
    assert client.head(url).headers["Content-Length"] == "0"


def test_other_content_is_thrown_away(client: TestClient, server_settings: ServerSettings) -> None:
    """At the end only, because only then it is known; then nothing of it is left."""
    client.put(URL, content=DATA[:1000], headers=at(0, **MORE))
    wrong = client.put(URL, content=b"wrong", headers=at(1000))
    assert code(wrong) == (400, "digest")
    assert offset(client.head(URL)) == 0
    assert not part_of(server_settings).exists()
    assert client.put(URL, content=DATA, headers=at(0)).status_code == 201


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Upload-Offset": "-1"}, (400, "malformed")),
        ({"Upload-Offset": "x"}, (400, "malformed")),
        ({"Upload-Complete": "yes"}, (400, "malformed")),
        ({"Content-Encoding": "gzip"}, (415, "media_type")),
    ],
)
def test_headers_are_checked(
    client: TestClient, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """Before anything is taken."""
    assert code(client.put(URL, content=DATA, headers=headers)) == expected
    assert offset(client.head(URL)) == 0


@pytest.mark.parametrize("name", ["x", SHA256[:-1], SHA256.upper(), "0" * 63 + "/", "..%2f..%2fx"])
def test_only_a_digest_is_a_name(
    client: TestClient, server_settings: ServerSettings, name: str
) -> None:
    """There is no way to another path."""
    before = sorted(server_settings.folder.parent.rglob("*"))
    for method in ("GET", "PUT", "HEAD"):
        assert client.request(method, f"/v1/artifacts/{name}").status_code in (400, 404)
    assert sorted(server_settings.folder.parent.rglob("*")) == before


def test_every_store_that_keeps_files_gets_them(
    server_settings: ServerSettings, tokens: Tokens, tmp_path: Path
) -> None:
    """One that was added later gets what it lacks when it is sent again."""
    headers = {"Authorization": f"Bearer {tokens.create('admin', rights=('admin',))}"}
    with TestClient(make_app(server_settings), headers=headers) as client:
        assert client.put(URL, content=DATA).status_code == 201
    urls = (*server_settings.stores, f"parquet:///{tmp_path}/second")
    with TestClient(make_app(replace(server_settings, stores=urls)), headers=headers) as client:
        assert client.put(URL, content=DATA).status_code == 201
        assert client.put(URL, content=DATA).status_code == 200
    for url in urls:
        with contextlib.closing(registry.open_backend(url)) as store:
            assert isinstance(store, SupportsArtifacts)
            assert store.open_artifact(SHA256).read() == DATA


# ---------------------------------------------------------------------------- limits


@contextlib.contextmanager
def started(
    settings: ServerSettings, tokens: Tokens, name: str = "admin", **rights: Any
) -> Iterator[TestClient]:
    """A client of a server with other settings."""
    token = tokens.create(name, **(rights or {"rights": ("admin",)}))
    with TestClient(make_app(settings), headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


def test_file_may_have_a_limit(server_settings: ServerSettings, tokens: Tokens) -> None:
    """What is larger is refused on the way, and thrown away."""
    limited = replace(server_settings, limits=Limits(artifact_bytes=len(DATA) - 1))
    with started(limited, tokens) as client:
        assert code(client.put(URL, content=DATA)) == (413, "too_large")
        assert not part_of(limited).exists()
        small = hashlib.sha256(b"small").hexdigest()
        assert client.put(f"/v1/artifacts/{small}", content=b"small").status_code == 201


def test_bytes_count_against_the_token(server_settings: ServerSettings, tokens: Tokens) -> None:
    """What came before the share was used up stays; the rest is sent later."""
    limited = replace(server_settings, limits=Limits(token_bytes=30_000))
    with started(limited, tokens, rights=("write",)) as client:
        refused = client.put(URL, content=DATA, headers=at(0))
        assert code(refused) == (429, "limit")
        assert int(refused.headers["Retry-After"]) > 0
        assert 0 < offset(client.head(URL)) < len(DATA)


@contextlib.contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """A disk on which a file cannot have more bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_store_that_is_full_is_said(client: TestClient) -> None:
    """All of the file is here, and goes into the store when there is room."""
    client.put(URL, content=DATA, headers=at(0, **MORE))
    with no_file_over(1_500_000):
        assert code(client.put(URL, content=b"", headers=at(len(DATA)))) == (507, "full")
    assert offset(client.head(URL)) == len(DATA)
    assert client.put(URL, content=b"", headers=at(len(DATA))).status_code == 201


def test_folder_that_cannot_be_made_is_said(
    client: TestClient, server_settings: ServerSettings
) -> None:
    """As a store that cannot be written: the client keeps the file and comes again."""
    (server_settings.folder / "uploads").touch()
    assert code(client.put(URL, content=DATA)) == (503, "store")


def test_disk_that_is_full_is_said(client: TestClient) -> None:
    """With 507; what came stays, and the rest is taken when there is room."""
    with no_file_over(1_500_000):
        refused = client.put(URL, content=DATA, headers=at(0))
    assert code(refused) == (507, "full")
    assert int(refused.headers["Retry-After"]) > 0
    has = offset(client.head(URL))
    assert 0 < has < len(DATA)
    assert client.put(URL, content=DATA[has:], headers=at(has)).status_code == 201
    assert client.get(URL).content == DATA


def test_file_that_takes_long_to_be_kept_is_asked_for_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client is told to wait, and finds it there later."""
    keep = uploads.Uploads._keep

    def slowly(self: uploads.Uploads, part: parts.Part, sha256: str) -> None:
        time.sleep(0.5)
        keep(self, part, sha256)

    monkeypatch.setattr(uploads, "_KEEP_SECONDS", 0.05)
    monkeypatch.setattr(uploads.Uploads, "_keep", slowly)
    assert code(client.put(URL, content=DATA)) == (503, "busy")
    assert offset(client.head(URL)) == len(DATA)
    assert code(client.put(URL, content=b"", headers=at(len(DATA)))) == (503, "busy")
    deadline = time.monotonic() + 10
    while client.head(URL).status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.put(URL, content=b"", headers=at(len(DATA))).status_code == 200
    assert client.get(URL).content == DATA


def test_parts_are_not_kept_for_ever(server_settings: ServerSettings, tokens: Tokens) -> None:
    """A week without a byte, and a part is removed; a younger one is not."""
    with started(server_settings, tokens) as client:
        client.put(URL, content=DATA[:9], headers=at(0, **MORE))
        client.put(f"/v1/artifacts/{'0' * 64}", content=b"young", headers=at(0, **MORE))
    old = time.time() - parts.KEPT_SECONDS - 60
    os.utime(part_of(server_settings), (old, old))
    with started(server_settings, tokens, "another") as client:
        client.put(f"/v1/artifacts/{'1' * 64}", content=b"x", headers=at(0, **MORE))
        assert offset(client.head(URL)) == 0
        assert offset(client.head(f"/v1/artifacts/{'0' * 64}")) == 5


# ---------------------------------------------------------------------------- cuts


def test_another_server_goes_on_with_a_part(
    server_settings: ServerSettings, tokens: Tokens
) -> None:
    """What lies on the disk is put into the digest again; damage there is found at the end."""
    other = hashlib.sha256(DATA[::-1]).hexdigest()
    with started(server_settings, tokens) as client:
        client.put(URL, content=DATA[:1_500_000], headers=at(0, **MORE))
        client.put(f"/v1/artifacts/{other}", content=DATA[:5:-1][:100], headers=at(0, **MORE))
    with part_of(server_settings, other).open("r+b") as file:
        file.write(b"damage")
    with started(server_settings, tokens, "another") as client:
        assert client.put(URL, content=DATA[1_500_000:], headers=at(1_500_000)).status_code == 201
        assert client.get(URL).content == DATA
        answer = client.put(f"/v1/artifacts/{other}", content=DATA[::-1][100:], headers=at(100))
        assert code(answer) == (400, "digest")


def _send_some(url: str, token: str, data: bytes, start: int = 0) -> socket.socket:
    """Announce the whole file, and send a part of it."""
    found = re.fullmatch(r"http://(.+):(\d+)", url)
    assert found is not None
    sock = socket.create_connection((found[1], int(found[2])), timeout=10)
    head = f"PUT {URL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    head += f"Upload-Offset: {start}\r\nContent-Length: {len(DATA) - start}\r\n\r\n"
    sock.sendall(head.encode() + data)
    return sock


def _eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
def test_transfer_that_is_cut_goes_on_where_it_was(serve: Callable[..., Any]) -> None:
    """Every byte that came counts, also those of a server that was killed."""
    server = serve()
    part = server.folder / "uploads" / f"{SHA256}.part"
    with httpx.Client(headers={"Authorization": f"Bearer {server.token}"}) as client:
        sock = _send_some(server.url, server.token, DATA[:1_200_000])
        assert _eventually(lambda: part.exists() and part.stat().st_size >= 1 << 20)
        busy = client.put(server.url + URL, content=b"", headers=at(0, **MORE))
        assert code(busy) == (503, "busy")  # one at a time
        sock.close()
        assert _eventually(lambda: offset(client.head(server.url + URL)) == 1_200_000)
        sock = _send_some(server.url, server.token, DATA[1_200_000:2_300_000], 1_200_000)
        assert _eventually(lambda: part.stat().st_size > 2_200_000)
        server.kill()
        sock.close()
        server.start()
        has = offset(client.head(server.url + URL))
        assert 2_200_000 < has <= 2_300_000
        answer = client.put(server.url + URL, content=DATA[has:], headers=at(has))
        assert answer.status_code == 201
        assert client.get(server.url + URL).content == DATA


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_file(serve: Callable[..., Any]) -> None:
    """A file of 150 MB passes through in pieces, in and out."""
    server = serve()
    piece = os.urandom(1 << 20)
    digest = hashlib.sha256()
    for _ in range(150):
        digest.update(piece)
    url = f"{server.url}/v1/artifacts/{digest.hexdigest()}"

    def peak() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])

    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.Client(headers=headers, timeout=60) as client:
        small = hashlib.sha256(piece).hexdigest()
        assert client.put(f"{server.url}/v1/artifacts/{small}", content=piece).status_code == 201
        before = peak()
        assert client.put(url, content=(piece for _ in range(150))).status_code == 201
        with client.stream("GET", url) as answer:
            assert sum(map(len, answer.iter_bytes())) == 150 << 20
    assert peak() - before < 40_000


# ---------------------------------------------------------------------------- fetching


@pytest.mark.parametrize(
    ("asked", "first", "after"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=2559990-", 2_559_990, 2_560_000),
        ("bytes=2559990-99999999999", 2_559_990, 2_560_000),
        ("bytes=-5", 2_559_995, 2_560_000),
        ("bytes=-9999999999", None, None),
        ("bytes=0-", None, None),
        ("bytes=0-1,5-6", None, None),
        ("bytes=-", None, None),
        ("rows=1-2", None, None),
        ("bytes=x-2", None, None),
    ],
)
def test_ranges(client: TestClient, asked: str, first: int | None, after: int | None) -> None:
    """One range is honoured (RFC 9110, 14.2); what is not understood gets all of it."""
    client.put(URL, content=DATA)
    answer = client.get(URL, headers={"Range": asked})
    if first is None:
        assert (answer.status_code, answer.content) == (200, DATA)
        assert "Content-Range" not in answer.headers
        return
    assert (answer.status_code, answer.content) == (206, DATA[first:after])
    assert answer.headers["Content-Range"] == f"bytes {first}-{after - 1}/{len(DATA)}"  # type: ignore[operator]
    assert answer.headers["Content-Length"] == str(len(answer.content))


@pytest.mark.parametrize("asked", ["bytes=2560000-", "bytes=9-8", "bytes=-0"])
def test_range_that_is_not_there_is_refused(client: TestClient, asked: str) -> None:
    """With the size of the file."""
    client.put(URL, content=DATA)
    answer = client.get(URL, headers={"Range": asked})
    assert code(answer) == (416, "range")
    assert answer.headers["Content-Range"] == f"bytes */{len(DATA)}"


def test_content_is_cached_by_its_digest(client: TestClient) -> None:
    """What a client has it is not sent again; a range of another content is not given."""
    client.put(URL, content=DATA)
    answer = client.get(URL)
    tag = answer.headers["ETag"]
    assert tag == f'"{SHA256}"'
    assert "immutable" in answer.headers["Cache-Control"]
    assert answer.headers.get("Content-Encoding") is None  # never compressed on the way
    assert answer.headers["Content-Type"] == "application/octet-stream"
    unchanged = client.get(URL, headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    part = {"Range": "bytes=0-9"}
    assert client.get(URL, headers=part | {"If-Range": tag}).status_code == 206
    assert client.get(URL, headers=part | {"If-Range": '"another"'}).status_code == 200


def test_token_reads_files_that_its_runs_name(client: TestClient, tokens: Tokens) -> None:
    """Others are not there for it, also in the list; knowing a digest is not enough."""
    contents = {"churn": b"of churn", "fraud": b"of fraud", "none": b"of nobody"}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    for name, sha256 in digests.items():
        assert client.put(f"/v1/artifacts/{sha256}", content=contents[name]).status_code == 201
    for name in ("churn", "fraud"):
        batch = make_batch(
            name,
            0,
            runs=[{"run_id": name, "root_id": name, "project": name}],
            artifacts=[{"run_id": name, "path": "model.pt", "sha256": digests[name]}],
        )
        answer = client.post(
            "/v1/batches", content=encode(batch), headers={"Content-Type": MEDIA_TYPE}
        )
        assert answer.status_code == 200
    token = tokens.create("limited", rights=("read",), projects=("churn",))
    limited = {"Authorization": f"Bearer {token}"}
    got = client.get(f"/v1/artifacts/{digests['churn']}", headers=limited)
    assert (got.status_code, got.content) == (200, b"of churn")
    for name in ("fraud", "none"):
        refused = client.get(f"/v1/artifacts/{digests[name]}", headers=limited)
        assert code(refused) == (404, "not_found")
        asked = client.head(f"/v1/artifacts/{digests[name]}", headers=limited)
        assert (asked.status_code, asked.headers.get("Upload-Offset")) == (404, None)
    assert client.head(f"/v1/artifacts/{digests['churn']}", headers=limited).status_code == 200
    listed = client.get("/v1/artifacts", headers=limited).json()["columns"]
    assert listed == {"sha256": [digests["churn"]], "bytes": [8]}


def test_rights(client: TestClient, tokens: Tokens) -> None:
    """To send is to write, to fetch is to read; whether a file is there both may ask."""
    writer = {"Authorization": f"Bearer {tokens.create('writer', rights=('write',))}"}
    reader = {"Authorization": f"Bearer {tokens.create('reader', rights=('read',))}"}
    assert code(client.put(URL, content=DATA, headers=reader)) == (403, "forbidden")
    assert client.head(URL, headers=reader).status_code == 404
    assert client.put(URL, content=DATA, headers=writer).status_code == 201
    assert code(client.get(URL, headers=writer)) == (403, "forbidden")
    assert code(client.get("/v1/artifacts", headers=writer)) == (403, "forbidden")
    assert client.head(URL, headers=writer).status_code == 200
    assert client.get(URL, headers=reader).content == DATA
    nobody = {"Authorization": "Bearer nothing"}
    for method in ("GET", "PUT", "HEAD"):
        assert client.request(method, URL, headers=nobody).status_code == 401
