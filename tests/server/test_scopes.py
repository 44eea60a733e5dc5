"""A token for some projects sees nothing of the others, by no route, in no table, by no detour."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded import (
    KINDS,
    SECRET,
    ReadServer,
    any_order,
    error_of,
    filled,
    run_row,
    running,
    table_of,
)

from tachograph.records import TABLES
from tachograph.server.describing import describe
from tachograph.server.scopes import covered_runs
from tachograph.testing.builders import START, make_batch
from tachograph.wire.tables import ARROW

RUN_TABLES = [name for name, spec in TABLES.items() if "run_id" in spec.columns]


@pytest.fixture(scope="module", params=KINDS)
def full(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[ReadServer]:
    """A server with the runs of two projects."""
    with filled(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


def requests() -> Iterator[tuple[str, str, Any]]:
    """Requests for everything that there is: method, path below /v1, body."""
    yield from about_runs()
    yield from about_tables()
    yield "GET", "", None
    yield "GET", "/artifacts", None
    yield "POST", "/sql", {"text": "select * from runs"}


def about_runs() -> Iterator[tuple[str, str, Any]]:
    """Of the routes below /runs."""
    for run in ("a1", "zebra1", "zebra-trial", "name of zebra1", "zebr", "latest", "@2"):
        yield "GET", f"/runs/{run}", None
    for run in ("zebra1", "latest"):
        for part in ("params", "tags", "provenance", "artifacts", "attempts", "events"):
            yield "GET", f"/runs/{run}/{part}", None
    for run in ("a1", "zebra1"):
        for name in ("loss", "zebra_loss", "zebra_los"):
            yield "GET", f"/runs/{run}/series?name={name}", None
            yield "GET", f"/runs/{run}/series?name={name}&points=2&attempts=all&rank=all", None
    for listing in (
        "",
        "?children=true",
        "?where=metrics.zebra_loss > 0",
        "?where=metrics.zebra_los > 0",  # would be told of a metric spelled nearly like it
        "?where=params['zebra.lr'] == 0.1 or tags['zebra-stage'] is not null",
        "?where=packages.zebra == '2.1'",
        "?columns=name&columns=metrics.loss&children=true",
        "?sort=-metrics.zebra_loss&limit=1&offset=0",
        "?where=project != 'apple' or project is null",
    ):
        yield "GET", f"/runs{listing}", None


def about_tables() -> Iterator[tuple[str, str, Any]]:
    """Of the routes that take queries."""
    for table in (*TABLES, "all_metrics", "cursors"):
        for raw in (False, True):
            yield "POST", "/read", {"table": table, "raw": raw}
            where = [["writer", "like", "zebra%"]]
            yield "POST", "/read", {"table": table, "raw": raw, "where": where, "limit": 3}
    for table in RUN_TABLES:
        yield "POST", "/digest", {"table": table}
    for condition in (
        ["run_id", "=", "zebra1"],
        ["run_id", "in", ["a1", "zebra-trial"]],
        ["run_id", "!=", "a1"],
        ["run_id", ">", "a"],
        ["run_id", "!=", None],
    ):
        for table in ("runs", "metrics", "summaries"):
            asked = {"table": table, "where": [condition, condition], "order": ["-writer"]}
            yield "POST", "/read", asked
            yield "GET", f"/read?query={json.dumps(asked | {'raw': True})}", None


def ask(server: ReadServer, token: str, method: str, path: str, document: Any, **more: str) -> Any:
    """One request with a token."""
    headers = {"Authorization": f"Bearer {token}"} | more
    return server.client.request(method, f"/v1{path}", json=document, headers=headers)


def test_nothing_of_another_project_is_in_any_answer(full: ReadServer) -> None:
    """Its ids, names, values and messages are in no answer, whatever is asked."""
    for method, path, document in requests():
        answer = ask(full, full.apple, method, path, document)
        assert answer.status_code < 500
        said = answer.text
        for asked in ("zebra1", "zebra-trial", "name of zebra1", "zebr", "zebra_loss", "zebra_los"):
            said = said.replace(f"'{asked}'", "")  # an error repeats what was asked
        assert SECRET not in said.replace(path.partition("=")[2], ""), (method, path, document)


def test_arrow_says_no_more_than_json(full: ReadServer) -> None:
    """The form of an answer comes after it was narrowed."""
    for method, path, document in [*requests()][::10]:
        answer = ask(full, full.apple, method, path, document, Accept=f"{ARROW}, */*;q=0.1")
        assert answer.status_code >= 400 or SECRET.encode() not in answer.content


def test_every_reading_route_was_asked(full: ReadServer) -> None:
    """A route that is added is tested here too: the description lists them."""
    asked = {path.partition("?")[0] for _, path, _ in requests()}
    for path, methods in describe(full.app)["paths"].items():
        for operation in methods.values():
            if "reading" in operation["tags"] and not path.endswith("/follow"):
                example = path.removeprefix("/v1").replace("{run}", "zebra1")
                assert example in asked


def test_the_others_do_see_it(full: ReadServer) -> None:
    """The requests above are about something: with a token for all they show it."""
    shown = [
        SECRET in ask(full, full.admin, method, path, document).text.replace(path, "")
        for method, path, document in [*requests()][::4]
    ]
    assert sum(shown) > len(shown) / 2


@pytest.mark.parametrize("run", ["zebra1", "zebra-trial", "zebra-bare", "name of zebra1"])
def test_a_run_that_is_not_covered_is_not_there(full: ReadServer, run: str) -> None:
    """404, as for a run that does not exist: also a part that says it is of the other project."""
    for path in ("", "/params", "/series?name=zebra_loss", "/follow", "/events"):
        answer = full.get(f"/runs/{run}{path}", token=full.apple)
        assert error_of(answer) == (404, "not_found")
        assert SECRET not in answer.text.replace(f"'{run}'", "")


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("table", [*RUN_TABLES, "all_metrics"])
def test_what_is_covered_is_whole(full: ReadServer, table: str, raw: bool) -> None:
    """The token sees of its project all that a token for everything sees of it."""
    runs = ["a1", "a2", "a3", "a4", "a1-trial"]
    asked = {"table": table, "raw": raw, "where": [["run_id", "in", runs]]}
    everything = table_of(full.post("/read", asked))
    assert len(everything) > 0
    covered = table_of(full.post("/read", {"table": table, "raw": raw}, token=full.apple))
    assert any_order([*covered]) == any_order([*everything])
    others = [["writer", "like", "again%"], ["seq", "<", 30]]
    found = [
        table_of(full.post("/read", asked | {"where": where}, token=token))
        for token, where in ((full.apple, others), (full.admin, [*asked["where"], *others]))
    ]
    assert any_order([*found[0]]) == any_order([*found[1]])
    digest = {"table": table, "where": [["run_id", "in", runs]]}
    mine = full.post("/digest", {"table": table}, token=full.apple).json()
    assert mine == full.post("/digest", digest).json()


def test_writers_are_those_that_recorded_covered_runs(full: ReadServer) -> None:
    """A process that recorded for others only is not shown, nor how far it has come."""
    for table, raw, writers in (
        ("writers", False, {"apple-writer"}),
        ("writers", True, {"apple-writer"}),
        ("cursors", False, {"apple-writer", "again-apple-writer"}),
    ):
        asked = {"table": table, "columns": ["writer"], "raw": raw}
        assert set(table_of(full.post("/read", asked))["writer"]) >= writers | {"zebra-writer"}
        assert set(table_of(full.post("/read", asked, token=full.apple))["writer"]) == writers
        one = table_of(full.post("/read", asked | {"limit": 1}, token=full.apple))
        assert len(one) == 1
        span = "next" if table == "cursors" else "started_at"
        spans = table_of(full.post("/read", asked | {"span": span}, token=full.apple))
        assert set(spans["writer"]) == writers


def test_how_much_there_is_of_others_bounds_no_answer(tmp_path: Path) -> None:
    """Runs and writers of other projects are left out before rows are counted."""
    with running("sqlite", tmp_path, rows=2) as server:
        for run in ("a1", "z1", "z2"):
            project = "apple" if run == "a1" else "zebra"
            server.deliver(make_batch(f"of {run}", 0, runs=[run_row(run, 1, project=project)]))
        assert error_of(server.get("/runs")) == (413, "too_large")
        for path in ("/runs", "/runs/a1"):
            assert server.get(path, token=server.apple).status_code == 200
        asked = {"table": "cursors"}
        assert error_of(server.post("/read", asked)) == (413, "too_large")
        assert len(table_of(server.post("/read", asked, token=server.apple))) == 1


def test_what_is_for_all_projects_is_refused(full: ReadServer) -> None:
    """SQL sees everything, so it takes a token of all projects; so do the server's figures."""
    answer = full.post("/sql", {"text": "select 1"}, token=full.apple)
    assert error_of(answer) == (403, "forbidden")
    headers = {"Authorization": f"Bearer {full.apple}"}
    assert full.client.get("/metrics", headers=headers).status_code == 403


def test_a_run_is_where_its_root_is() -> None:
    """What a part says of its project does not count, but where nothing is known of its root."""
    rows = [
        {"run_id": "root", "root_id": "root", "project": "p"},
        {"run_id": "part", "root_id": "root", "project": "q"},
        {"run_id": "bare", "root_id": None, "project": "p"},
        {"run_id": "orphan", "root_id": "unknown", "project": "p"},
        {"run_id": "none", "root_id": "none", "project": None},
    ]
    assert covered_runs(rows, ["p"]) == {"root", "part", "bare", "orphan"}
    assert covered_runs(rows, ["q"]) == set()
    assert covered_runs(rows, []) == set()


def test_a_run_that_moves_to_another_project_is_gone_at_once(full: ReadServer) -> None:
    """The project counts that it has now, also before that is in the store."""

    def shown() -> bool:
        return "a2" in table_of(full.get("/runs", token=full.apple))["run_id"]

    assert shown()
    moved = {"run_id": "a2", "project": SECRET, "changed_at": START + 10**12}
    full.deliver(make_batch("mover", 0, runs=[moved]))
    assert not shown()
    back = moved | {"project": "apple", "changed_at": START + 2 * 10**12}
    full.deliver(make_batch("mover", 1, runs=[back]))
    assert shown()
