"""Tokens on the side of whoever records: one place each, bound to an address, never shown."""

from __future__ import annotations

import http.server
import io
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import keyring
import keyring.backend
import keyring.backends.fail
import keyring.backends.null
import pytest

from tachograph.cli import main
from tachograph.errors import ConfigError
from tachograph.security import credentials
from tachograph.security.credentials import (
    find_token,
    forget_token,
    origin,
    save_token,
    tokens_file,
)

URL = "https://lab.example:8765"
TOKEN = "tacho_" + "k" * 43


class Kept(keyring.backend.KeyringBackend):
    """A keyring that works, in memory."""

    priority = 9  # type: ignore[assignment]
    viable = False  # or every test would find it

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


class Stuck(Kept):
    """A keyring that waits for somebody to unlock it."""

    def get_password(self, service: str, username: str) -> str | None:
        time.sleep(60)
        return None

    set_password = get_password  # type: ignore[assignment]


class Broken(Kept):
    """A keyring that fails."""

    def get_password(self, service: str, username: str) -> str | None:
        raise OSError("no D-Bus here")


@pytest.fixture(autouse=True)
def no_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home of its own, and no keyring unless a test takes one."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("TACHOGRAPH_TOKEN", raising=False)
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    yield
    keyring.set_keyring(before)


# ---------------------------------------------------------------------------- order


def test_the_variable_comes_before_the_keyring_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The nearest to the process wins."""
    assert find_token(URL) is None
    save_token(URL, TOKEN + "file")
    assert find_token(URL) == TOKEN + "file"
    kept = Kept()
    keyring.set_keyring(kept)
    kept.set_password("tachograph", URL, TOKEN + "ring")
    assert find_token(URL) == TOKEN + "ring"
    monkeypatch.setenv("TACHOGRAPH_TOKEN", f" {TOKEN}variable\n")
    assert find_token(URL) == TOKEN + "variable"
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "")
    assert find_token(URL) == TOKEN + "ring"


# ---------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://lab.example:8765/prefix?x=1", True),
        ("https://LAB.example:8765", True),
        ("https://lab.example", False),
        ("http://lab.example:8765", False),
        ("https://lab.example:8766", False),
        ("https://lab.example.evil:8765", False),
        ("https://lab.example:8765@evil.example", False),
        ("https://evil.example/https://lab.example:8765", False),
    ],
)
@pytest.mark.parametrize("where", ["file", "keyring"])
def test_a_token_is_given_to_its_address_alone(url: str, same: bool, where: str) -> None:
    """Scheme, host and port are the same, or there is no token."""
    if where == "keyring":
        keyring.set_keyring(Kept())
    save_token(URL, TOKEN)
    assert find_token(url) == (TOKEN if same else None)


def test_ports_that_go_without_saying_are_the_same() -> None:
    """443 for https, 80 for http; IPv6 keeps its brackets."""
    assert origin("https://lab.example") == origin("https://lab.example:443/x")
    assert origin("http://[::1]") == "http://[::1]:80"


# ---------------------------------------------------------------------------- the file


def test_the_file_is_its_owners_alone() -> None:
    """Mode 0600 in a folder of 0700; one that others may read is refused, and says what to do."""
    where = save_token(URL, TOKEN)
    path = tokens_file()
    assert where == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"chmod 600 {path}") as refused:
            find_token(URL)
        assert TOKEN not in str(refused.value)
        with pytest.raises(ConfigError, match="chmod"):
            save_token("https://other.example", TOKEN)


def test_the_file_keeps_each_server_apart() -> None:
    """One is replaced or forgotten, the others stay."""
    servers = [f"https://{name}.example" for name in ("a", "b", "c")]
    for server in servers:
        save_token(server, f"{TOKEN}{server[8]}")
    save_token(servers[0], TOKEN + "new")
    assert forget_token(servers[1]) is True
    assert forget_token(servers[1]) is False
    assert [find_token(server) for server in servers] == [TOKEN + "new", None, TOKEN + "c"]


def test_a_file_that_was_written_by_hand_is_read(tmp_path: Path) -> None:
    """Any spelling of an address."""
    path = tokens_file()
    path.parent.mkdir(parents=True)
    path.write_text(f'# mine\n"https://lab.example:443/" = "{TOKEN}"\n')
    path.chmod(0o600)
    assert find_token("https://LAB.example") == TOKEN


@pytest.mark.parametrize("text", [f'"{URL}" = "{TOKEN}', f'"{URL}" = 3', f'"{URL}" = "a b c d e"'])
def test_a_damaged_file_is_an_error_without_the_token(text: str) -> None:
    """It names the file, and repeats nothing of what is in it."""
    path = tokens_file()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=str(path)) as refused:
        find_token(URL)
    assert TOKEN[6:] not in str(refused.value)


@pytest.mark.parametrize("given", ["short", "with space inside", "new\nline-in-it", "ünicode-ü"])
def test_what_no_header_can_hold_is_no_token(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither saved nor taken from the environment, and not repeated."""
    with pytest.raises(ConfigError) as refused:
        save_token(URL, given)
    assert given not in str(refused.value)
    monkeypatch.setenv("TACHOGRAPH_TOKEN", given)
    with pytest.raises(ConfigError, match="TACHOGRAPH_TOKEN"):
        find_token(URL)
    assert not tokens_file().exists()


# ---------------------------------------------------------------------------- the keyring


def test_a_usable_keyring_is_preferred_and_nothing_is_left_in_the_file() -> None:
    """Also where an old token lies in the file."""
    save_token(URL, TOKEN + "old")
    kept = Kept()
    keyring.set_keyring(kept)
    assert save_token(URL, TOKEN) == "the keyring"
    assert kept.kept == {("tachograph", URL): TOKEN}
    assert TOKEN not in tokens_file().read_text()
    assert forget_token(URL) is True
    assert (kept.kept, find_token(URL)) == ({}, None)


@pytest.mark.parametrize("kind", [Broken, keyring.backends.null.Keyring])
def test_a_keyring_that_keeps_nothing_is_passed_over(kind: Any) -> None:
    """One that fails, and one that throws away what it is given: the file is used."""
    keyring.set_keyring(kind())
    assert save_token(URL, TOKEN) == str(tokens_file())
    assert find_token(URL) == TOKEN
    assert forget_token(URL) is True


def test_a_keyring_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a screen, where it asks somebody to unlock it."""
    monkeypatch.setattr(credentials, "_PATIENCE", 0.2)
    keyring.set_keyring(Stuck())
    started = time.monotonic()
    save_token(URL, TOKEN)
    assert find_token(URL) == TOKEN
    assert time.monotonic() - started < 40


def test_without_the_library_the_file_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """keyring is not among what is needed."""
    monkeypatch.setattr(credentials, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "keyring", None)
    save_token(URL, TOKEN)
    assert find_token(URL) == TOKEN


# ---------------------------------------------------------------------------- the commands


class Handler(http.server.BaseHTTPRequestHandler):
    """A server that knows one token, sends on all who ask, or not, and notes who they are."""

    seen: ClassVar[list[tuple[str, str | None]]] = []
    moved_to: ClassVar[str] = ""

    def do_GET(self) -> None:
        given = self.headers["Authorization"]
        self.seen.append((self.path, given))
        if self.moved_to:
            self.send_response(307)
            self.send_header("Location", self.moved_to)
        else:
            self.send_response(200 if given == f"Bearer {TOKEN}" else 401)
            if self.path == "/v1":
                self.send_header("Tachograph-Protocol", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def handlers() -> Iterator[list[Any]]:
    """Two servers, each with a handler class of its own and a `url`."""
    made = []
    for _ in range(2):
        handler = type("One", (Handler,), {"seen": [], "moved_to": ""})
        server = http.server.HTTPServer(("127.0.0.1", 0), handler)
        handler.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        made.append((handler, server))
    yield [handler for handler, _ in made]
    for _, server in made:
        server.shutdown()
        server.server_close()


def _login(url: str, token: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(token + "\n"))
    return main(["login", url])


def test_login_shows_the_token_to_its_server_and_saves_it(
    handlers: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read from stdin; never printed. `logout` forgets it."""
    url = handlers[0].url
    assert _login(url + "/", TOKEN, monkeypatch) == 0
    printed = capsys.readouterr()
    assert "the server knows it" in printed.out
    assert find_token(url) == TOKEN
    assert handlers[0].seen == [("/v1", f"Bearer {TOKEN}")]
    assert main(["logout", url]) == 0
    assert find_token(url) is None
    assert main(["logout", url]) == 1
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err


def test_login_with_a_wrong_token_saves_nothing(
    handlers: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server says that it does not know it: an error, without the token."""
    assert _login(handlers[0].url, "tacho_wrong-one", monkeypatch) == 1
    printed = capsys.readouterr().err
    assert "does not know this token" in printed
    assert "wrong-one" not in printed
    assert find_token(handlers[0].url) is None


def test_a_token_follows_no_redirect(
    handlers: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another address never sees it."""
    first, other = handlers
    first.moved_to = other.url + "/v1"
    assert _login(first.url, TOKEN, monkeypatch) == 0
    assert "not checked" in capsys.readouterr().out
    assert len(first.seen) == 1
    assert other.seen == []


def test_a_token_is_saved_for_a_server_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be set up before its server; that it was not checked is said."""
    assert _login("http://127.0.0.1:9", TOKEN, monkeypatch) == 0
    assert "not checked" in capsys.readouterr().out
    assert find_token("http://127.0.0.1:9") == TOKEN


@pytest.mark.parametrize("url", ["sqlite:///runs.sqlite", "http://far.example:1", "nonsense"])
def test_login_refuses_what_is_no_safe_address(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that is no server, and http to another machine."""
    assert _login(url, TOKEN, monkeypatch) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not tokens_file().exists()
