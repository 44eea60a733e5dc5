"""Tokens: shown once, kept as digests, gone when they are revoked."""

from __future__ import annotations

import hmac
import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tachograph.cli import main
from tachograph.errors import ConfigError
from tachograph.server import tokens as module
from tachograph.server.tokens import Grant, Tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """The tokens of a server that was never started."""
    return Tokens(tmp_path / "server")


# ---------------------------------------------------------------------------- what is kept


def test_a_token_is_nowhere_in_the_folder(tokens: Tokens) -> None:
    """Whoever reads the server's files, or a copy of them, gets in nowhere."""
    secrets = [tokens.create(f"t{number}") for number in range(3)]
    for path in tokens.path.parent.iterdir():
        text = path.read_text()
        assert not any(secret in text or secret[6:] in text for secret in secrets)
    assert all(len(secret) == len("tacho_") + 43 for secret in secrets)  # 32 bytes in base64
    assert len(set(secrets)) == 3


def test_only_the_owner_may_read_the_file(tokens: Tokens) -> None:
    """Its mode is 0600 and that of its folder 0700, also after it was written again."""
    tokens.create("one")
    tokens.create("two")
    assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(tokens.path.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_is_the_servers(tokens: Tokens) -> None:
    """A token that root makes locks out no server that runs as somebody else."""
    tokens.path.parent.mkdir()
    os.chown(tokens.path.parent, 12345, 12346)
    tokens.create("one")
    for path in tokens.path.parent.iterdir():
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346), path
    mine = tokens.path.with_name("mine")
    mine.touch()
    tokens.path.with_name(".tokens.json.lock").unlink()
    tokens.path.with_name(".tokens.json.lock").symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"):
        tokens.create("two")
    assert mine.stat().st_uid == 0


def test_no_token_is_lost_when_several_processes_make_some(tokens: Tokens) -> None:
    """Each edit starts from what the one before it has left."""
    with ThreadPoolExecutor(8) as pool:  # a lock of a file holds between threads as well
        made = list(pool.map(lambda n: Tokens(tokens.path.parent).create(f"t{n}"), range(24)))
    found = [tokens.find(secret) for secret in made]
    assert [grant.name for grant in found if grant] == [f"t{number}" for number in range(24)]


# ---------------------------------------------------------------------------- who is let in


def test_a_token_is_found_with_what_it_may_do(tokens: Tokens) -> None:
    """Its name, rights and projects; admin includes the others, in all projects."""
    reader = tokens.find(tokens.create("reader", rights=["read"], projects=["a", "b"]))
    admin = tokens.find(tokens.create("admin", rights=["admin"]))
    assert isinstance(reader, Grant)
    assert isinstance(admin, Grant)
    assert (reader.name, reader.may("read"), reader.may("write")) == ("reader", True, False)
    assert [reader.covers(project) for project in ("a", "b", "c", None)] == [
        True,
        True,
        False,
        False,
    ]
    assert not reader.covers_all
    assert all(admin.may(right) for right in ("read", "write", "admin"))
    assert admin.covers("a")
    assert admin.covers(None)
    assert admin.id != reader.id


@pytest.mark.parametrize("wrong", ["", "tacho_", "tacho_" + "A" * 43, "é", "\x00", "a" * 100_000])
def test_what_is_no_token_finds_nothing(tokens: Tokens, wrong: str) -> None:
    """Neither an empty one, nor a digest, nor anything else."""
    tokens.create("one")
    (digest,) = (token.sha256 for token in tokens.all())
    assert tokens.find(wrong) is None
    assert tokens.find(digest) is None


def test_a_token_works_until_it_expires(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a moment longer."""
    now = time.time()
    secret = tokens.create("short", expires=now + 60)
    assert tokens.find(secret) is not None
    monkeypatch.setattr(module.time, "time", lambda: now + 60)
    assert tokens.find(secret) is None


def test_a_revoked_token_stops_at_once(tokens: Tokens) -> None:
    """Also in a server that runs: another process revokes it, the next question is refused."""
    first, second = tokens.create("first"), tokens.create("second")
    assert tokens.find(first) is not None
    elsewhere = Tokens(tokens.path.parent)
    elsewhere.revoke("first")
    assert tokens.find(first) is None
    elsewhere.revoke(next(token.id for token in tokens.all()))
    assert tokens.find(second) is None


def test_nobody_gets_in_while_the_file_cannot_be_read(tokens: Tokens) -> None:
    """A damaged file is an error, and its tokens are not those of before."""
    secret = tokens.create("one")
    assert tokens.find(secret) is not None
    tokens.path.write_text('{"tokens": [')
    with pytest.raises(ConfigError, match="cannot be read"):
        tokens.find(secret)
    tokens.path.unlink()
    assert tokens.find(secret) is None


def test_every_token_is_compared_in_constant_time(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long an answer takes says nothing of how much of a digest was right."""
    made = [tokens.create(f"t{number}") for number in range(5)]
    compared = []
    compare = hmac.compare_digest

    def spy(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(module.hmac, "compare_digest", spy)
    tokens.find(made[0])
    assert [one for one, _ in compared] == [token.sha256 for token in tokens.all()]


# ---------------------------------------------------------------------------- last used


def test_use_is_noted_without_a_write_for_each_request(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`used` is right to ten minutes, and the file is written no more often."""
    now = time.time()
    secret = tokens.create("one")
    for later in (0.0, 5.0, 599.0):
        monkeypatch.setattr(module.time, "time", lambda later=later: now + later)
        tokens.find(secret)
        tokens.note_used()
        if later == 0.0:
            written = tokens.path.stat()
    assert tokens.all()[0].used == now
    assert tokens.path.stat().st_ino == written.st_ino
    monkeypatch.setattr(module.time, "time", lambda: now + 601.0)
    tokens.find(secret)
    tokens.note_used()
    assert tokens.all()[0].used == now + 601.0
    assert tokens.find(secret) is not None


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "x" * 65, "../x", "é", "-x"])
def test_a_name_that_would_not_fit_into_a_log_is_refused(tokens: Tokens, name: str) -> None:
    """Letters, digits, and a few signs."""
    with pytest.raises(ConfigError, match="name"):
        tokens.create(name)
    assert tokens.all() == ()


def test_names_and_rights_are_checked(tokens: Tokens) -> None:
    """A name is one token's; a right exists; an unknown token cannot be revoked."""
    tokens.create("one")
    with pytest.raises(ConfigError, match="already"):
        tokens.create("one")
    with pytest.raises(ConfigError, match="'delete'"):
        tokens.create("two", rights=["delete"])
    with pytest.raises(ConfigError, match=r"no token 'two'.*one"):
        tokens.revoke("two")


# ---------------------------------------------------------------------------- the commands


def test_commands_make_list_and_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The token stands alone on stdout, once; lists do not show it."""
    place = ["--store", f"sqlite:///{tmp_path}/runs.sqlite"]
    options = ["--project", "churn", "--right", "write", "--expires", "90d"]
    assert main(["token", "create", "bob", *options, *place]) == 0
    secret = capsys.readouterr().out.removesuffix("\n")
    tokens = Tokens(tmp_path / ".tachograph" / "server")
    assert tokens.find(secret) == Grant("bob", frozenset({"write"}), ("churn",), tokens.all()[0].id)

    assert main(["token", "list", *place, "--json"]) == 0
    text = capsys.readouterr().out
    (row,) = json.loads(text)
    assert (row["name"], row["rights"], row["projects"]) == ("bob", ["write"], ["churn"])
    assert row["expires"] - row["created"] == pytest.approx(90 * 86400, abs=1)
    assert secret not in text
    assert tokens.all()[0].sha256 not in text

    assert main(["token", "list", *place]) == 0
    assert "bob" in capsys.readouterr().out
    assert main(["token", "revoke", "bob", *place]) == 0
    assert tokens.find(secret) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--expires", "soon"], "as in 12h"),
        (["--right", "admin", "--project", "churn"], "all projects"),
        (["--right", "all"], "no right 'all'"),
    ],
)
def test_a_mistake_makes_no_token(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr, status 1, nothing on stdout."""
    assert main(["token", "create", "bob", *options, "--folder", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert said in printed.err
    assert Tokens(tmp_path).all() == ()
