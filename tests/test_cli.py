"""The command: every command answers, in text for a person and in JSON for a program."""

from __future__ import annotations

import io
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tachograph
from tachograph.cli import main, render
from tachograph.cli.curves import draw
from tachograph.cli.page import begun
from tachograph.cli.render import duration, local_time, shown, size, sparkline
from tachograph.query import Store
from tachograph.table import Table


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config file and a store: two good runs with a child each, one failed."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "tachograph.toml").write_text('project = "toys"\nbackend = "sqlite:///r.sqlite"\n')
    config = folder / "tachograph.toml"
    for rate in (0.1, 0.4):
        with tachograph.start_run(
            name=f"rate {rate}", params={"lr": rate, "layers": {"width": 8}}, config=config
        ) as run:
            run.set_tags({"stage": "test"})
            for epoch in range(30):
                value = math.nan if epoch == 7 else math.exp(-rate * epoch)
                run.log({"loss": value}, step=epoch, context={"phase": "train"})
                run.log({"loss": value + 0.1}, step=epoch, context={"phase": "val"})
            with run.child("trial", "inner") as child:
                child.log({"score": rate}, step=0)
    with (
        pytest.raises(ValueError, match="no good"),
        tachograph.start_run(name="bad", config=config),
    ):
        raise ValueError("no good")
    return folder


@pytest.fixture
def call(recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a command line in the folder of the store; returns status, output and errors."""
    monkeypatch.chdir(recorded)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_runs_lists_roots_and_with_children_all(call) -> None:  # type: ignore[no-untyped-def]
    """Trials and other parts are listed when asked for."""
    status, out, _ = call("runs")
    assert status == 0
    assert "rate 0.1" in out
    assert "inner" not in out
    assert call("runs", "--children")[1].count("inner") == 2
    rows = json.loads(call("runs", "--json")[1])
    assert [row["name"] for row in rows] == ["bad", "rate 0.4", "rate 0.1"]
    assert {row["status"] for row in rows} == {"finished", "failed"}


def test_runs_filters_sorts_and_chooses_columns(call) -> None:  # type: ignore[no-untyped-def]
    """Filter, order and columns speak the same names."""
    arguments = ("--where", "metrics['loss', phase='val'] > 0", "--sort", "params.lr")
    columns = ("--columns", "name,params.layers.width,metrics['loss', phase='val'].min")
    rows = json.loads(call("runs", *arguments, *columns, "--json")[1])
    assert [row["name"] for row in rows] == ["rate 0.1", "rate 0.4"]
    assert list(rows[0].values())[1] == 8
    assert "no run fits" in call("runs", "-w", "params.lr > 99")[1]


def test_a_mistake_goes_to_stderr_with_a_status(call) -> None:  # type: ignore[no-untyped-def]
    """Wrong names, filters and options say what is wrong and what there is."""
    status, out, err = call("runs", "-w", "metrics.los > 0")
    assert (status, out) == (1, "")
    assert "did you mean 'loss'" in err
    assert call("show", "nonesuch")[0] == 1
    assert "there is no run 'nonesuch'" in call("show", "nonesuch")[2]
    status, _, err = call("runs", "--sort-by", "name")
    assert status == 2
    assert "--sort-by" in err
    assert call("sql", "drop table runs")[0] == 1
    assert call("runs", "--store", "sqlite:////nowhere/x.sqlite")[0] == 1
    assert call("demo", "r.sqlite") == (1, "", "tachograph: r.sqlite: File exists\n")


def test_show_tells_everything_about_a_run(call) -> None:  # type: ignore[no-untyped-def]
    """Parameters, tags, curves, parts, events and origin are on the page."""
    out = call("show", "rate 0.1")[1]
    for text in ("rate 0.1", "finished", "layers.width", "stage=test", "loss", "▁", "inner"):
        assert text in out
    assert "ValueError: no good" in call("show", "bad")[1]
    document = json.loads(call("show", "rate 0.1", "--json")[1])
    assert document["params"]["lr"] == 0.1
    assert {"git", "packages", "python", "hardware"} <= set(document["provenance"])
    assert document["run"]["project"] == "toys"


def test_texts_of_a_record_are_printed_as_they_are(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    """They are no markup and no emoji, and do not steer the terminal."""
    store, odd = f"sqlite:///{tmp_path}/r.sqlite", "a [/] [red]b :bug: \x1b[2J"
    config = {"backend": store, "record": {"system": False}}
    for name in (odd, "b"):
        with tachograph.start_run(
            name=name, params={odd: odd}, tags={odd: odd}, notes=odd, config=config
        ) as run:
            run.log({odd: 1.0}, step=1)
            run.log({"system/cpu": 1.0}, step=2)  # not what a tail is asked for
            run.log_data([1.0], odd)
    capsys.readouterr()
    seen = odd.replace("\x1b", "\\x1b")
    for words in (
        *(["runs"], ["show", odd], ["show", odd, "--provenance"], ["tail", odd, "-n", "1"]),
        *(["compare", odd, "b", "--all"], ["diff", odd, "b"]),
    ):
        assert main([*words, "--store", store]) == 0, words
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert seen in out
    assert "last" in out
    assert "max" not in out  # of one value the last is enough


def test_a_narrow_terminal_shows_fewer_columns(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """And none of those that are shown is broken into several lines."""
    monkeypatch.setattr(render, "_width", lambda: 60)
    head, *lines = call("runs")[1].splitlines()
    assert head.split() == ["run", "name", "status", "started_at", "duration"]
    assert len(lines) == 3
    assert call("runs", "--columns", "run_id,name,project,kind")[1].split()[:3] == [
        *("run", "name", "project")
    ]
    recorded = call("show", "rate 0.4")[1].partition("    recorded  ")[2].splitlines()
    assert len(recorded) > 1
    assert all(line.startswith(" " * 14) for line in recorded[1:])


def test_compare_and_diff_show_what_differs(call) -> None:  # type: ignore[no-untyped-def]
    """What is the same is counted, what differs is shown."""
    out = call("compare", "rate 0.1", "rate 0.4")[1]
    assert "lr" in out
    assert "layers.width" not in out
    assert "layers.width" in call("compare", "rate 0.1", "rate 0.4", "--all")[1]
    changes = json.loads(call("diff", "rate 0.1", "rate 0.4", "--json")[1])["changes"]
    assert [row["path"] for row in changes] == ["params.lr"]


def test_plot_draws_and_gives_the_points(call) -> None:  # type: ignore[no-untyped-def]
    """A curve is drawn without what is no number, which is counted."""
    out = call("plot", "rate 0.1", "rate 0.4", "-m", "loss", "--context", "phase=val")[1]
    assert "rate 0.4: loss" in out
    assert "2 points are not finite" in out
    curves = json.loads(call("plot", "rate 0.1", "-m", "loss", "--json")[1])
    assert [len(curve["values"]) for curve in curves] == [30, 30]
    assert call("plot", "rate 0.1", "-m", "los")[0] == 1


def test_tail_prints_the_last_points(call) -> None:  # type: ignore[no-untyped-def]
    """Of a run that has ended, the end."""
    out = call("tail", "rate 0.4", "-n", "4")[1].strip().splitlines()
    assert len(out) == 5
    assert out[-1] == "finished"
    lines = call("tail", "rate 0.4", "-n", "2", "--json")[1].strip().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [29, 29]
    status, _, err = call("tail", "rate 0.4", "-m", "los")
    assert status == 1
    assert "has no metric los; it has: loss" in err


def test_sql_answers(call) -> None:  # type: ignore[no-untyped-def]
    """SQL over the tables, as text and as JSON."""
    query = "select name, count(*) as points from metrics where name = 'loss' group by name"
    assert json.loads(call("sql", query, "--json")[1]) == [{"name": "loss", "points": 120}]
    assert "120" in call("sql", query)[1]


def test_an_interrupt_ends_a_query(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """While an engine works, Python hears of no signal: the system has to end the process."""
    during: list[object] = []
    ask = Store.sql

    def watched(store: Store, text: str) -> Table:
        during.append(signal.getsignal(signal.SIGINT))
        return ask(store, text)

    monkeypatch.setattr(Store, "sql", watched)
    before = signal.getsignal(signal.SIGINT)
    assert call("sql", "select 1 as one")[0] == 0
    assert during == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGINT) is before


def test_tag_note_edit_and_delete_change_the_record(call) -> None:  # type: ignore[no-untyped-def]
    """Edits are seen at once; a deleted run is gone with its parts and freed by gc."""
    with tachograph.start_run(name="to change") as run:
        run.log({"loss": 1.0}, step=0)
        run.child("trial", "part").finish()
    assert call("tag", "to change", "best", "run=final")[0] == 0
    assert call("note", "to change", "looked at it")[0] == 0
    assert call("edit", "to change", "verdict=keep", "name=changed")[0] == 0
    assert call("edit", "changed", "started_at=1")[0] == 1
    assert call("edit", "changed", "name")[0] == 1
    page = json.loads(call("show", "changed", "--json")[1])
    assert page["tags"] == {"best": "", "run": "final"}
    assert page["run"]["verdict"] == "keep"
    assert "looked at it" in [event["message"] for event in page["events"]]
    assert json.loads(call("delete", "changed", "--yes", "--json")[1])["deleted"]
    assert call("show", "changed")[0] == 1
    assert json.loads(call("gc", "--json")[1])["points"] == 1
    assert json.loads(call("gc", "--json")[1])["freed"] is False
    assert "freed" in call("gc", "--really")[1]
    assert "nothing to free" in call("gc")[1]


def test_copy_moves_everything_and_proves_it(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A copy into the other kind of store has the same digests."""
    status, out, err = call("copy", "r.sqlite", f"parquet:///{tmp_path}/copy", "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["digests"]
    assert all(row["source"] == row["destination"] for row in report["digests"])
    rows = json.loads(call("runs", "--store", f"{tmp_path}/copy", "--json")[1])
    assert [row["name"] for row in rows] == ["bad", "rate 0.4", "rate 0.1"]


def test_config_tells_where_values_come_from(call) -> None:  # type: ignore[no-untyped-def]
    """Each value has its file and line."""
    rows = {row["key"]: row for row in json.loads(call("config", "--json")[1])}
    assert rows["project"]["value"] == "toys"
    assert rows["project"]["from"].endswith("tachograph.toml, line 1")
    assert rows["record.every"]["from"] == "default"
    assert "journals" in call("config")[1]


def test_doctor_finds_and_repairs_what_a_kill_left(call, recorded: Path) -> None:  # type: ignore[no-untyped-def]
    """A killed process's journal is found, sent, and its run marked as lost."""
    code = (
        "import os, signal, tachograph\n"
        "run = tachograph.start_run(name='killed', config={'backend': 'sqlite:///r.sqlite'})\n"
        "run.log({'loss': 1.0}, step=0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=recorded, check=False)
    findings = json.loads(call("doctor", "--json")[1])
    assert "warning" in [finding["level"] for finding in findings]
    repaired = json.loads(call("doctor", "--repair", "--json")[1])
    assert "repaired" in [finding["level"] for finding in repaired]
    assert {f["level"] for f in json.loads(call("doctor", "--json")[1])} == {"ok"}
    assert json.loads(call("runs", "-w", "name == 'killed'", "--json")[1])[0]["status"] == "lost"
    assert json.loads(call("sync", "--json")[1])["sent"] == []
    assert call("delete", "killed", "-y")[0] == 0


def test_help_and_version() -> None:
    """The command runs as a module, and names its version."""
    done = subprocess.run(
        [sys.executable, "-m", "tachograph", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"tachograph {tachograph.__version__}"
    listed = subprocess.run(
        [sys.executable, "-m", "tachograph", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("runs", "show", "compare", "diff", "plot", "tail", "sql", "tag", "note", "edit",
                    "delete", "gc", "copy", "sync", "doctor", "config", "demo"):  # fmt: skip
        assert command in listed.stdout
    assert "..." not in listed.stdout.replace("[ARGS]...", "")  # no sentence is cut


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_is_written_to(
    call, recorded: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    """Letters that it does not have become question marks; JSON says them by their numbers."""
    call("note", "bad", "schön ▁█")
    for options, shown_as in (((), "?"), (("--json",), "sch\\u00f6n \\u2581\\u2588")):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
        assert main(["show", "bad", *options]) == 0
        sys.stdout.flush()
        assert shown_as in written.getvalue().decode(encoding)
        monkeypatch.undo()
        monkeypatch.chdir(recorded)


def test_what_a_client_did_not_say_is_not_made_up() -> None:
    """A run from a client of one's own may have no user and no host."""
    row = {"started_at": 1, "user": None, "host": None}
    assert begun(row) == local_time(1)
    assert begun(row | {"user": "ada", "host": "atlas"}) == f"{local_time(1)} by ada on atlas"
    assert begun(row | {"started_at": None}) is None


def test_numbers_are_short_and_true() -> None:
    """What a person reads says the same as the value."""
    assert shown(0.1234567) == "0.12346"
    assert shown(math.nan) == "nan"
    assert duration(1_500_000) == "1.5 s"
    assert duration(3_723_000_000) == "1 h 02 min"
    assert size(1536) == "1.5 KiB"
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([math.nan]) == "×"
    assert sparkline([]) == ""
    assert sparkline([-1e308, 1e308]) == "▁█"
    assert sparkline([0.0, 1e308, 1e308], 2) == "▁█"
    assert sparkline([0.0, 5e-324]) == "▁▁"


@pytest.mark.parametrize("log_scale", [False, True])
def test_curve_near_the_limits_of_floats_is_drawn(
    log_scale: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a training that diverges: what no scale can show is left out and counted."""
    values = [1.0, 5e-324, 1e200, 1e308, -1e308, math.inf]
    curve = {"run_id": "r", "label": "loss", "steps": list(range(6)), "values": values}
    draw([curve], log_scale=log_scale)
    assert f"{4 if log_scale else 3} points are not finite" in capsys.readouterr().out
