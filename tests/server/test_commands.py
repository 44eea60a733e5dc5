"""The command gives of a server the answer that it gives of a store on this machine."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

import tachograph
from tachograph import host, registry
from tachograph.backends.base import Condition, Query, SupportsDigests
from tachograph.cli import main
from tachograph.errors import QueryError, StoreError
from tachograph.journal import JournalWriter
from tachograph.reading.digests import DIGESTED, digest_table
from tachograph.records import Series, now_us, uuid7
from tachograph.testing.builders import make_batch
from tachograph.transfer.copying import copy_store
from tachograph.transfer.syncing import send_journals

_MARK = "GET - 404"
Call = Callable[..., "Answer"]


class Answer(NamedTuple):
    """What a command line gave."""

    status: int
    out: str
    err: str


class Place(NamedTuple):
    """A server, and a store on this machine with the same runs."""

    server: Any
    local: str

    def requests(self) -> list[str]:
        """What the server was asked so far."""
        seen = self.server.log().count(_MARK)
        httpx.get(f"{self.server.url}/v1/mark", headers=self.server.headers)
        while self.server.log().count(_MARK) == seen:  # it answers first, and then it logs
            time.sleep(0.005)
        logged = [json.loads(line) for line in self.server.log().splitlines()]
        asked = [one["message"] for one in logged if one["logger"] == "tachograph.request"]
        return [message for message in asked if message != _MARK]


@pytest.fixture(scope="module")
def place(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Runs with children, tags, NaN, contexts, tensors and files, here and synced to a server."""
    folder = tmp_path_factory.mktemp("local")
    local = f"sqlite:///{folder}/runs.sqlite"
    (folder / "model.bin").write_bytes(b"weights" * 10_000)
    for rate in (0.1, 0.4):
        with tachograph.start_run(
            project="toys",
            name=f"rate {rate}",
            params={"lr": rate, "layers": {"width": 8}},
            config={"backend": local, "record": {"system": False, "checkpoints": "copy"}},
        ) as run:
            run.set_tags({"stage": "test"})
            for epoch in range(30):
                value = math.nan if epoch == 7 else math.exp(-rate * epoch)
                run.log({"loss": value}, step=epoch, context={"phase": "train"})
                run.log({"loss": value + 0.1, "acc": 1 - value}, step=epoch)
            run.log_artifact(folder / "model.bin")
            with run.child("trial", "inner") as child:
                child.log({"score": rate}, step=0)
                child.log({"odd": math.inf, "odder": math.nan}, step=1, epoch=-math.inf)
    with tachograph.open(local) as store:
        tensors = [
            {"run_id": run.run_id, "name": name, "kind": kind, "context": "{}", "rank": 0}
            | {"attempt": 1, "step": step, "shape": "[2,5]", "size": 10, "l2": 1.0 + step}
            | {"mean": 0.5, "std": 0.1, "min": -1.0, "max": 1.0, "zeros": 0, "nan": 0, "inf": 0}
            for step in range(5)
            for name in ("a.weight", "b.weight")
            for kind in ("weight", "gradient")
        ]
        store.backend.write(make_batch("tensors", 0, tensors=tensors))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TACHOGRAPH_TOKEN", server.token)
        assert main(["sync", "--store", local, "--to", server.url]) == 0
        yield Place(server, local)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command line."""

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        status = main(arguments)
        out, err = capsys.readouterr()
        return Answer(status, out, err)

    return run


# ---------------------------------------------------------------------------- reading

FEW = {"runs": 3, "sql": 3, "show": 24, "compare": 16, "diff": 16, "plot": 10, "tensors": 14}
"""Requests that a command may make at most."""


@pytest.mark.parametrize(
    "line",
    [
        "runs",
        "runs --children --json --columns name,metrics.odd,metrics.odder",
        "runs --children --limit 3",
        "runs --where params.lr<0.2 --columns name,metrics.loss.min,params.lr,tags.stage",
        "runs --where metrics['loss',phase='train'].count>1 --sort params.lr --json",
        "runs --where metrics.los>1",
        "runs --where nonsense",
        "show latest",
        "show latest --json",
        "show nobody",
        "compare @1 @2",
        "compare @1 @2 --all --json",
        "diff @1 @2",
        "diff @2 @1 --json",
        "plot @1 @2",
        "plot latest --metric acc --json",
        "plot latest --layers",
        "plot latest --tensor a.weight --json",
        "plot latest --metric nothing",
        "tensors latest",
        "tensors latest --step 2 --json",
        "tail latest --lines 7",
        "tail @2 --no-follow --json --metric score --metric loss",
    ],
)
def test_answer_is_that_of_a_local_store(place: Place, call: Call, line: str) -> None:
    """The same text and status, also of mistakes; and few requests, whatever a command shows."""
    arguments = line.split()
    expected = call(*arguments, "--store", place.local)
    before = len(place.requests())
    answer = call(*arguments, "--store", place.server.url)
    assert answer == expected
    asked = place.requests()[before:]
    assert 2 <= len(asked) <= FEW.get(arguments[0], 12), asked


def test_sql_is_that_of_a_local_store(place: Place, call: Call) -> None:
    """Numbers, NULL, text, and what is refused."""
    for text in (
        "select name, context, count(*) n, min(value) m from metrics group by 1, 2 order by 1, 2",
        "select run_id, ended_at, parent_id from runs order by started_at",
        "select epoch, value, special from metrics where name = 'odd'",
        "delete from runs",
        "select nonsense from metrics",
    ):
        expected = call("sql", text, "--json", "--store", place.local)
        answer = call("sql", text, "--json", "--store", place.server.url)
        assert (answer.status, answer.out) == (expected.status, expected.out)
        assert answer.err.count("\n") == expected.err.count("\n")


def test_listing_and_digests_transfer_no_points(place: Place) -> None:
    """Filters and digests are worked out by the server."""
    with tachograph.open(place.server.url) as store, tachograph.open(place.local) as here:
        before = len(place.requests())
        found = store.runs("metrics.loss.min < 100", columns=["run_id", "metrics.loss"])
        assert found == here.runs("metrics.loss.min < 100", columns=["run_id", "metrics.loss"])
        assert isinstance(store.backend, SupportsDigests)
        assert [store.digest(table) for table in DIGESTED] == [*map(here.digest, DIGESTED)]
        assert place.requests()[before:] == [
            "GET /v1/runs 200",
            *["POST /v1/digest 200"] * len(DIGESTED),
        ]


def test_series_comes_exact_or_reduced(place: Place) -> None:
    """Whole to the bit; reduced by the server to the same points as here."""
    with tachograph.open(place.server.url) as store, tachograph.open(place.local) as here:
        run = here.resolve("latest")
        for options in ({}, {"points": 10}, {"rank": "all", "points": 5}, {"attempts": "all"}):
            asked = {"context": {"phase": "train"}, **options}
            expected = here.series(run, "loss", **asked)  # type: ignore[arg-type]
            found = store.series(run, "loss", **asked)  # type: ignore[arg-type]
            assert repr(found.to_pydict()) == repr(expected.to_pydict())
        with pytest.raises(QueryError, match="2 points or more"):
            store.series(run, "acc", points=1)


def test_what_waits_on_this_machine_is_shown_with_what_the_server_has(
    place: Place, call: Call
) -> None:
    """A journal of a living process that has not sent yet hides nothing, and asks little."""
    folder = registry.journal_folder([place.server.url])
    facts = {"host": host.host_name(), "pid": 1, "boot_id": host.boot_id()}
    facts |= {"pid_started": host.process_started(1)}
    writer = JournalWriter(folder, uuid7(), {"sinks": [place.server.url], **facts})
    at = {"changed_at": now_us(), "started_at": now_us()}
    row = {"run_id": "waiting", "root_id": "waiting", "project": "toys", "status": "running"}
    writer.append_rows("runs", [row | at])
    handle = writer.series(Series("waiting", ("loss",)))
    for step in range(5):
        writer.append_points(handle, step, None, [step / 4])
    try:
        with tachograph.open(place.server.url) as store:
            listed = store.runs("project == 'toys'", columns=["run_id", "metrics.loss.count"])
            assert listed["run_id"][0] == "waiting"
            assert list(listed["metrics.loss.count"]) == [5, 30, 30]
            before = len(place.requests())
            assert list(store.series("waiting", "loss", points=3)["value"]) == [0.0, 0.25, 1.0]
            assert store.run("waiting").children.to_pylist() == []
            assert len(place.requests()) - before < 30
            end = threading.Timer(
                1.2, writer.append_rows, ("runs", [row | {"status": "finished"} | at])
            )
            end.start()
            answer = call("tail", "waiting", "--store", place.server.url, "--lines", "1")
            assert re.search("step 4  loss = 1\nfinished\n$", answer.out)
            others = store.run(listed["run_id"][1])
            before = len(place.requests())
            assert len(others.metrics) == 3
            assert len(others.events) == 1
            assert len(place.requests()) - before <= 5, "what is not in the tail costs little"
    finally:
        writer.discard("the test is over")


# ---------------------------------------------------------------------------- changing


def test_edits_go_through_the_server(place: Place, call: Call) -> None:
    """Tags, notes, columns, deletes and the space they free: seen at once, and by the server."""
    url = place.server.url
    with tachograph.open(place.local) as here:
        copied = here.row("rate 0.1")
    with tachograph.open(url) as store:
        store.edit({"runs": [{"run_id": "r", "root_id": "r", "name": "mine", "started_at": 1}]})
        child = {"run_id": "c", "root_id": "r", "parent_id": "r", "kind": "trial"}
        params = [{"run_id": run, "path": "x", "value": "1"} for run in ("r", "c")]
        store.edit({"runs": [child], "params": params})
    assert call("tag", "mine", "good", "-old", "-s", url).status == 2, "an option, as ever"
    assert call("tag", "-s", url, "--", "mine", "good", "by=me").status == 0
    assert call("note", "mine", "the token=abcdef123456789 is secret", "-s", url).status == 0
    assert call("edit", "mine", "verdict=it works", "-s", url).status == 0
    assert call("runs", "-s", url, "-w", "verdict == 'it works'", "--json").out.count("run_id") == 1
    with tachograph.open(place.server.store) as behind:
        deadline = time.monotonic() + 20  # what a server has received it stores a moment later
        while (record := behind.run("r")).row["verdict"] is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (record.row["verdict"], record.tags) == ("it works", {"good": "", "by": "me"})
        assert "abcdef" not in record.events["message"][0]
    assert call("delete", "mine", "-y", "-s", url).out.startswith("deleted 2 runs")
    assert call("show", "mine", "-s", url).status == 1
    assert "to free: 2 deleted runs" in call("gc", "-s", url).out
    assert "freed 2 deleted runs" in call("gc", "--really", "-s", url).out
    assert call("gc", "-s", url).out == "there is nothing to free\n"
    with tachograph.open(url) as store:
        assert store.row("rate 0.1") == copied, "what others recorded is as it was"


def test_tail_hears_of_points_as_they_come(place: Place, call: Call, tmp_path: Path) -> None:
    """A training on another machine, so to say; the command ends when it does."""
    url = place.server.url
    script = f"""
        import itertools, pathlib, time, tachograph
        run = tachograph.start_run(name="live", config={{"backend": {url!r}}})
        for step in itertools.count():
            run.log({{"loss": step / 4, "other": 1.0}}, step=step)
            time.sleep(0.05)
            if pathlib.Path("stop").exists():
                break
        run.finish()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path)
    stop = threading.Timer(2.5, (tmp_path / "stop").touch)
    try:
        server = registry.open_backend(url)  # without what waits on this machine
        deadline = time.monotonic() + 30
        while not len(server.read(Query("summaries", [Condition("name", "=", "other")]))):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.close()
        before = len(place.requests())
        stop.start()
        answer = call("tail", "live", "-s", url, "--json", "--metric", "loss", "--lines", "2")
        asked = [one for one in place.requests()[before:] if "batches" not in one]
        assert asked.count("GET /v1/runs/{run}/follow 200") == 1
        assert asked.count("POST /v1/read 200") < 15, "the server says what is new"
    finally:
        (tmp_path / "stop").touch()
        process.wait(30)
    assert answer.status == 0
    values = [json.loads(line)["value"] for line in answer.out.splitlines()]
    first = int(values[0] * 4)
    assert first > 0, "it does not begin with the run"
    assert len(values) > 10
    last = first + len(values) - 1
    assert values == [step / 4 for step in range(first, last + 1)], "each once, in order"
    shown = call("tail", "live", "-s", url, "--metric", "loss", "--lines", "1").out
    assert re.search(rf"step {last}  loss = {last / 4:g}\nfinished\n$", shown)


# ---------------------------------------------------------------------------- copying


@pytest.fixture
def other(place: Place, serve: Callable[..., Any], tmp_path: Path) -> Any:
    """Another server, on Parquet, that knows the same token: the environment has one."""
    started = serve(f"parquet:///{tmp_path}/behind")
    tokens = place.server.folder / "tokens.json"
    (started.folder / "tokens.json").write_bytes(tokens.read_bytes())
    return started


def test_copies_from_and_to_servers_are_proven(
    place: Place, call: Call, other: Any, tmp_path: Path
) -> None:
    """From a server to Parquet and on to another server: equal to the bit, repeated at no cost."""
    here = f"parquet:///{tmp_path}/copy"
    first = json.loads(call("copy", place.server.url, here, "--json").out)
    assert first["points"] >= 4 * 30
    assert first["artifacts"] >= 1
    on = call("copy", here, other.url)
    assert on.status == 0, on.err
    assert "digest of both" in on.out
    straight = json.loads(call("copy", place.server.url, other.url, "--json").out)
    assert (straight["records"], straight["points"], straight["artifacts"]) == (0, 0, 0)
    ends = [registry.open_backend(url) for url in (place.server.url, here, other.url)]
    for table in DIGESTED:
        assert len({digest_table(end, table) for end in ends}) == 1, table
    for end in ends:
        end.close()


def test_copy_of_chosen_runs_goes_on_where_it_was_interrupted(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between pages, then again: complete, and what is there is not fetched once more."""
    monkeypatch.setattr("tachograph.reading.portions.PAGE", 100)
    source = registry.open_backend(place.server.url)
    target = registry.open_backend(f"sqlite:///{tmp_path}/some.sqlite", create=True)
    with tachograph.open(place.server.url) as store:
        run_id = store.resolve("rate 0.4")

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "records" and done < total:
            raise KeyboardInterrupt

    interrupts = 0
    while True:
        try:
            report = copy_store(source, target, run_ids=[run_id], progress=interrupt)
        except KeyboardInterrupt:
            interrupts += 1
            assert interrupts < 10, "it begins again each time"
        else:
            break
    assert interrupts >= 2
    assert report.runs == 2, "with its child"
    fetched = len(place.requests())
    again = copy_store(source, target, run_ids=[run_id], proven=False)
    assert (again.records, again.points, again.artifacts) == (0, 0, 0)
    asked = place.requests()[fetched:]
    assert asked.count("POST /v1/read 200") < 20
    where = [Condition("run_id", "=", run_id)]
    assert len(target.read(Query("all_metrics", where))) == 90
    source.close()
    target.close()


# ---------------------------------------------------------------------------- sending later


def test_sync_says_what_waits_while_the_server_is_away(place: Place, call: Call) -> None:
    """One line, how much stays here, and a status."""
    away = call("sync", "--store", place.local, "--to", "http://127.0.0.1:9")
    assert away.status == 1
    assert away.err.count("\n") == 1
    assert "nothing listens at http://127.0.0.1:9" in away.err
    assert f"the 4 runs in {place.local} stay there" in away.err


def test_sync_sends_what_is_missing(place: Place, call: Call) -> None:
    """Nothing the second time, and then what was recorded since."""
    line = ("sync", "--store", place.local, "--to", place.server.url)
    again = call(*line)
    assert f"{place.server.url} has all of {place.local} already (4 runs)" in again.out
    config = {"backend": place.local, "record": {"system": False}}
    with tachograph.start_run(name="later", config=config) as run:
        run.log({"loss": 1.0})
    done = json.loads(call(*line, "--json").out)["copied"]
    assert done["runs"] == 5
    assert done["points"] < 10
    with tachograph.open(place.server.url) as store:
        assert store.run("later").row["status"] == "finished"


def test_a_server_that_fails_is_tried_once_for_all_journals(tmp_path: Path) -> None:
    """A hundred journals do not take a hundred times as long as one."""
    asked: list[str] = []

    class Broken(BaseHTTPRequestHandler):
        """Answers 500 to everything."""

        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_error(500)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{broken.server_port}"
        for _ in range(10):
            writer = JournalWriter(tmp_path, uuid7(), {"sinks": [url]})
            writer.append_rows("events", [{"run_id": "r", "time": 1}])
            writer.close()
        verdicts = send_journals(tmp_path)
        broken.shutdown()
    assert [verdict.outcome for verdict in verdicts] == ["waiting"] * 10
    assert all(url in verdict.problem for verdict in verdicts)
    assert asked == ["/v1/batches"]


# ---------------------------------------------------------------------------- mistakes


def test_errors_are_one_line_and_say_what_to_do(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No token, another one, no server."""
    url = place.server.url
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # no journals that wait for the server
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    for token, said in (("", "a token is needed"), ("tacho_" + "x" * 40, "this token is unknown")):
        monkeypatch.setenv("TACHOGRAPH_TOKEN", token)
        for line in ("runs", "show latest", "tag latest x", "tail @1", "sql select"):
            answer = call(*line.split(), "--store", url)
            assert answer.status == 1
            assert answer.err.count("\n") == 1, answer.err
            assert said in answer.err
            assert f"tachograph login {url}" in answer.err
    answer = call("runs", "--store", "http://127.0.0.1:9")
    assert answer.err.startswith("tachograph: nothing listens at http://127.0.0.1:9")


def test_doctor_looks_at_the_server(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reachable, which version, whose token and from where, what it may, and the clock."""
    url = place.server.url
    answer = call("doctor", "--store", url)
    assert answer.status == 0
    assert f"version {tachograph.__version__}, protocol 1" in answer.out
    assert "the token 'admin', from TACHOGRAPH_TOKEN, has the right to admin" in answer.out
    assert "clock" not in answer.out
    monkeypatch.setattr("tachograph.doctor.now_us", lambda: now_us() + 60_000_000)
    assert re.search(r"is (5|6)\d s behind that of this machine", call("doctor", "-s", url).out)
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "tacho_" + "x" * 40)
    refused = call("doctor", "--store", url, "--json")
    assert refused.status == 1
    (problem,) = [one for one in json.loads(refused.out) if one["level"] == "problem"]
    assert "this token is unknown" in problem["message"]
    away = call("doctor", "--store", "http://127.0.0.1:9", "--json")
    assert any("waits in journals" in one["advice"] for one in json.loads(away.out))


def test_config_says_where_the_token_is_and_not_what(
    place: Place, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configured server is what commands ask, and its token is never shown."""
    (tmp_path / "tachograph.toml").write_text(f'backend = "{place.server.url}"\n')
    monkeypatch.chdir(tmp_path)
    for option in ((), ("--json",)):
        shown = call("config", *option).out
        assert "TACHOGRAPH_TOKEN" in shown
        assert place.server.token not in shown
    assert call("runs", "--json") == call("runs", "--json", "--store", place.server.url)
    with pytest.raises(StoreError, match="a token is needed"):
        monkeypatch.setenv("TACHOGRAPH_TOKEN", "")
        tachograph.open(place.server.url)
