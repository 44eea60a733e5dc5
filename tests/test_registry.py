"""Laws of the registry: URLs become absolute, classes come by name, journals find their folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tachograph import filesystems, registry
from tachograph.errors import ConfigError
from tachograph.filesystems import file_system_type, is_network_path
from tachograph.registry import (
    backend_class,
    journal_folder,
    local_path,
    open_backend,
    resolve_url,
)

BASE = Path("/base")


@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("sqlite:///runs.sqlite", "sqlite:////base/runs.sqlite"),
        ("sqlite:///.tachograph/runs.sqlite", "sqlite:////base/.tachograph/runs.sqlite"),
        ("sqlite:////data/runs.sqlite", "sqlite:////data/runs.sqlite"),
        ("sqlite:///../up.sqlite", "sqlite:////up.sqlite"),
        ("SQLite:///a b@c%20.db", "sqlite:////base/a b@c%20.db"),
        ("parquet:////data/runs/", "parquet:////data/runs"),
        ("parquet:///.", "parquet:////base"),
        ("memory://test", "memory://test"),
        ("https://Lab.Example:8765/", "https://lab.example:8765"),
        ("HTTPS://lab.example/Path/", "https://lab.example/Path"),
        ("http://localhost:8765", "http://localhost:8765"),
        ("http://127.0.0.9", "http://127.0.0.9"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("runs.sqlite", "sqlite:////base/runs.sqlite"),
        ("/data/runs.db", "sqlite:////data/runs.db"),
    ],
)
def test_url_becomes_absolute(url: str, absolute: str) -> None:
    """Three slashes are relative to the base, four absolute; resolving twice changes nothing."""
    assert resolve_url(url, BASE) == absolute
    assert resolve_url(absolute, Path("/elsewhere")) == absolute


def test_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leading ~ never becomes a folder of that name."""
    monkeypatch.setenv("HOME", "/home/ada")
    assert resolve_url("sqlite:///~/runs.sqlite", BASE) == "sqlite:////home/ada/runs.sqlite"


def test_existing_folder_is_parquet(tmp_path: Path) -> None:
    """A bare path is a store only where it is clear which; config files take URLs alone."""
    (tmp_path / "runs").mkdir()
    assert resolve_url("runs", tmp_path) == f"parquet:///{tmp_path}/runs"
    with pytest.raises(ConfigError, match=r"write sqlite:///runs\.sqlite for a file"):
        resolve_url("missing", tmp_path)
    with pytest.raises(ConfigError, match=r"write sqlite:///a\.db"):
        resolve_url("a.db", tmp_path, bare_path=False)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqllite:///a", "did you mean 'sqlite'"),
        ("mysql+x:///a", "known are: http, https, memory, parquet, sqlite"),
        ("sqlite://a.sqlite", r"two slashes; write three .* \(sqlite:///a\.sqlite\)"),
        ("sqlite:///", "names no file or folder"),
        ("parquet:////", "names no file or folder"),
        ("https://", "names no server"),
        ("https:///runs", "names no server"),
        ("https://lab.example:port", "is not the address of a server: Port could not be cast"),
        ("https://lab.example/runs?x=1", "nothing follows its path"),
        ("https://lab.example/#x", "nothing follows its path"),
        ("https://lab.example/a b", "nothing follows its path"),
        ("http://lab.example", "unencrypted to lab.example: write https://, or set TACHOGRAPH_INS"),
        ("http://localhost.example", "unencrypted to localhost.example"),
        ("http://127.0.0.1.example", "unencrypted"),
        ("", "is not the URL of a store"),
    ],
)
def test_bad_url_says_what_to_write(url: str, message: str) -> None:
    """Each way to get a URL wrong has an answer of its own."""
    with pytest.raises(ConfigError, match=message):
        resolve_url(url, BASE)


@pytest.mark.parametrize(
    "url",
    [
        "https://ada:hunter2@lab.example/runs",
        "https://hunter2@lab.example",
        "https://lab.example/?api_token=hunter2",
        "parquet://lab.example/runs?x=1&secret=hunter2",
    ],
)
def test_secret_in_url_is_refused_and_not_repeated(url: str) -> None:
    """URLs end up in records, so no secret may stand in them, nor in the message about it."""
    with pytest.raises(ConfigError, match="TACHOGRAPH_TOKEN") as caught:
        resolve_url(url, BASE)
    assert "hunter2" not in str(caught.value)


def test_mistyped_url_with_secret_hides_it() -> None:
    """What is no URL at all may still hold a secret."""
    with pytest.raises(ConfigError) as caught:
        resolve_url("https:/ada:hunter2@lab.example", BASE)
    assert "hunter2" not in str(caught.value)


def test_unencrypted_server_has_to_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token in the clear is a decision of whoever set the machine up, and no other value is."""
    for value, allowed in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("TACHOGRAPH_INSECURE", value)
        if allowed:
            assert resolve_url("http://lab.example/", BASE) == "http://lab.example"
            continue
        with pytest.raises(ConfigError, match="unencrypted"):
            resolve_url("http://lab.example/", BASE)


def test_local_path_of_local_stores_only() -> None:
    """Only SQLite and Parquet with a path lie on this machine."""
    assert local_path("sqlite:////data/runs.sqlite") == Path("/data/runs.sqlite")
    assert local_path("parquet:////data/runs") == Path("/data/runs")
    assert local_path("memory://x") is None
    assert local_path("parquet://host/runs") is None


# ---------------------------------------------------------------------------- classes


def _install(folder: Path, name: str, source: str, scheme: str) -> None:
    """Put a module with an entry point on a path, as an installed package would."""
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[tachograph.backends]\n{scheme} = {name}:Store\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path; entry points are read anew before and after."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_registered", registry._registered.__wrapped__)
    return tmp_path


def test_registered_store_is_found_by_scheme(site: Path) -> None:
    """A package that is installed adds a store, and hints know its scheme."""
    source = "class Store:\n    def __init__(self, url, *, create):\n        self.url = url\n"
    _install(site, "tacho_probe_store", source, "probe")
    assert open_backend("probe://host/x").url == "probe://host/x"
    with pytest.raises(ConfigError, match="did you mean 'probe'"):
        resolve_url("prob://x", BASE)


def test_missing_library_is_named(site: Path) -> None:
    """A store whose library is missing says which, not where the import failed."""
    _install(site, "tacho_probe_broken", "import no_such_library.part", "broken")
    with pytest.raises(ConfigError, match="the broken store needs 'no_such_library'"):
        backend_class("broken")


def test_missing_pyarrow_says_what_to_install() -> None:
    """The extra that brings a store's library is part of the message."""
    pytest.importorskip("tachograph.backends.parquet")
    code = (
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"
        "from tachograph.registry import backend_class\n"
        "backend_class('parquet')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert "the parquet store needs 'pyarrow', which is not installed" in done.stderr
    assert "pip install 'tachograph[parquet]'" in done.stderr


def test_stale_entry_point_is_named(site: Path) -> None:
    """A registered module that is gone is not taken for a library to install."""
    _install(site, "tacho_probe_gone", "", "gone")
    (site / "tacho_probe_gone.py").unlink()
    with pytest.raises(ConfigError, match=r"gone store \(tacho_probe_gone:Store\) is broken"):
        backend_class("gone")


def test_memory_store_opens_by_url() -> None:
    """The built-in classes are found by their names in the table."""
    pytest.importorskip("tachograph.backends.memory")
    open_backend("memory://test_registry", create=True).close()


def test_absolute_url_needs_no_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store still opens when the folder that the training started in was deleted."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert resolve_url("sqlite:///a.db", Path()) == f"sqlite:///{gone}/a.db"
    gone.rmdir()
    assert resolve_url("sqlite:////data/a.db", Path()) == "sqlite:////data/a.db"
    open_backend("memory://test_gone", create=True).close()


def test_resolving_imports_no_store(tmp_path: Path) -> None:
    """The start of a training costs no library of a store, nor a look at entry points."""
    code = (
        "import sys, pathlib\n"
        "from tachograph.registry import resolve_url, journal_folder\n"
        "url = resolve_url('parquet:///runs', pathlib.Path.cwd())\n"
        "journal_folder([url, resolve_url('sqlite:///a.db', pathlib.Path.cwd())])\n"
        "bad = {'pyarrow', 'sqlite3', 'importlib.metadata', 'difflib', 'subprocess'}\n"
        "bad = sorted(m for m in sys.modules if m in bad or m.startswith('tachograph.backends'))\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- journals


def test_journal_lies_beside_the_first_local_store(tmp_path: Path) -> None:
    """Beside an SQLite file, inside a Parquet folder, and never .tachograph twice."""
    sqlite, parquet = f"sqlite:///{tmp_path}/a/runs.sqlite", f"parquet:///{tmp_path}/b"
    inner = tmp_path / ".tachograph/journal"
    assert journal_folder([sqlite]) == tmp_path / "a/.tachograph/journal"
    assert journal_folder([parquet, sqlite]) == tmp_path / "b/.tachograph/journal"
    assert journal_folder(["memory://x", parquet]) == tmp_path / "b/.tachograph/journal"
    assert journal_folder([f"sqlite:///{tmp_path}/.tachograph/runs.sqlite"]) == inner
    assert list(tmp_path.iterdir()) == []


def test_journal_without_local_store_lies_in_the_state_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """XDG_STATE_HOME where it is absolute, ~/.local/state else."""
    monkeypatch.setenv("HOME", "/home/ada")
    at_home = Path("/home/ada/.local/state/tachograph/journal")
    state = {"XDG_STATE_HOME": "/state"}
    assert journal_folder(["memory://x"], environ=state) == Path("/state/tachograph/journal")
    assert journal_folder([], environ={}) == at_home
    assert journal_folder([], environ={"XDG_STATE_HOME": "relative"}) == at_home


def test_override_wins(tmp_path: Path) -> None:
    """The setting `journal` is taken as it is."""
    assert journal_folder(["sqlite:////data/a.db"], tmp_path / "j") == tmp_path / "j"


def _mount(monkeypatch: pytest.MonkeyPatch, *mounts: tuple[Path | str, str]) -> None:
    monkeypatch.setattr(filesystems, "_mounts", lambda: iter([("/", "ext4"), *mounts]))


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "lustre", "fuse.sshfs"])
def test_journal_keeps_off_network_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Locks and syncs cannot be trusted there, so the journal stays on this machine."""
    _mount(monkeypatch, (str(tmp_path / "share"), kind))
    state = {"XDG_STATE_HOME": "/state"}
    store = f"sqlite:///{tmp_path}/share/new/runs.sqlite"
    assert journal_folder([store], environ=state) == Path("/state/tachograph/journal")
    assert journal_folder([f"parquet:///{tmp_path}/shared"]) == (
        tmp_path / "shared/.tachograph/journal"
    )


def test_deepest_and_latest_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local disk inside a share is local; a mount over a mount hides it; links are followed."""
    share, disk = str(tmp_path / "share"), str(tmp_path / "share/disk")
    _mount(monkeypatch, (share, "ext4"), (disk, "xfs"), (share, "nfs"))
    (tmp_path / "link").symlink_to(share)
    assert is_network_path(share)
    assert is_network_path(tmp_path / "link" / "not" / "yet")
    assert not is_network_path(f"{disk}/runs")
    assert not is_network_path(f"{share}-too")


def test_mount_tables_are_understood() -> None:
    """Linux escapes blanks in octal; macOS prints sentences."""
    linux = "host:/a /mnt/my\\040share nfs4 rw,vers=4.2 0 0\n/dev/sda1 / ext4 rw 0 0\n"
    assert list(filesystems._parse_proc(linux)) == [("/mnt/my share", "nfs4"), ("/", "ext4")]
    macos = (
        "/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)\n"
        "//ada@nas/My Share on /Volumes/My Share (smbfs, nodev, nosuid, mounted by ada)\n"
        "map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)\n"
    )
    assert list(filesystems._parse_bsd(macos)) == [
        ("/", "apfs"),
        ("/Volumes/My Share", "smbfs"),
        ("/System/Volumes/Data/home", "autofs"),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_real_mounts_are_read() -> None:
    """The kernel's own table answers for a path that everyone has."""
    assert file_system_type("/proc/self") == "proc"
