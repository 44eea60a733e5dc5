"""Runs of plain loops: what is logged, how they end, and how they hang together."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tachograph
from tachograph import recorder
from tachograph.errors import ConfigError, RecordError, TachographWarning
from tachograph.query import Store


@pytest.fixture
def config(tmp_path: Path) -> dict[str, object]:
    """A configuration with a fresh SQLite store."""
    return {"backend": f"sqlite:///{tmp_path}/runs.sqlite", "project": "tests"}


@pytest.fixture
def store(config: dict[str, object]):  # type: ignore[no-untyped-def]
    """The store of `config`, to read what was recorded."""
    opened: list[Store] = []

    def read() -> Store:
        opened.append(tachograph.open(str(config["backend"])))
        return opened[-1]

    yield read
    for one in opened:
        one.close()


def test_values_of_any_kind_of_number_are_kept(config, store) -> None:  # type: ignore[no-untyped-def]
    """Integers, numpy scalars, 0-d tensors and odd floats arrive as the float they are."""
    import numpy
    import torch

    with tachograph.start_run(config=config) as run:
        run.log(
            {
                "int": 3,
                "bool": True,
                "numpy": numpy.float32(0.1),
                "tensor": torch.tensor(2.5, requires_grad=True),
                "nan": math.nan,
                "inf": -math.inf,
                "zero": -0.0,
            },
            step=numpy.int64(4),
        )
    values = {}
    for name in ("int", "bool", "numpy", "tensor", "nan", "inf", "zero"):
        (row,) = store().series(run.run_id, name)
        assert row["step"] == 4
        values[name] = row["value"]
    assert values["int"] == 3.0
    assert values["bool"] == 1.0
    assert values["numpy"] == float(numpy.float32(0.1))
    assert values["tensor"] == 2.5
    assert math.isnan(values["nan"])
    assert values["inf"] == -math.inf
    assert math.copysign(1, values["zero"]) == -1


def test_steps_count_by_themselves_and_contexts_part_series(config, store) -> None:  # type: ignore[no-untyped-def]
    """Without a step the next one is taken; the same name in two contexts is two series."""
    with tachograph.start_run(config=config) as run:
        for value in (1.0, 2.0):
            run.log({"loss": value})
        run.log({"loss": 3.0}, step=10, epoch=0.5, context={"phase": "val", "fold": 1})
        run.log({"loss": 4.0}, context={"fold": 1, "phase": "val"})
    opened = store()
    assert list(opened.series(run.run_id, "loss")["step"]) == [0, 1]
    other = opened.series(run.run_id, "loss", context={"phase": "val"})
    assert list(other["step"]) == [10, 11]
    assert list(other["epoch"]) == [0.5, None]


def test_nested_metrics_join_and_bad_values_cost_one_warning(config, store) -> None:  # type: ignore[no-untyped-def]
    """What is a number is kept, what is not is named once."""
    run = tachograph.start_run(config=config)
    with pytest.warns(TachographWarning, match="word='abc'"):
        run.log({"train": {"loss": 1.0}, "word": "abc"}, step=0)
    for step in (1, 2):  # a second warning would be an error
        run.log({"train": {"loss": 1.0}, "word": "abc"}, step=step)
    with pytest.warns(TachographWarning, match="log takes a mapping"):
        run.log("no mapping", step=3)  # type: ignore[arg-type]
    run.finish()
    assert len(store().series(run.run_id, "train/loss")) == 3


def test_on_error_raise_lets_problems_through(config) -> None:  # type: ignore[no-untyped-def]
    """Who wants recording to stop a training gets the exception."""
    run = tachograph.start_run(config=config | {"record": {"on_error": "raise"}})
    with pytest.raises(RecordError):
        run.log({"word": "abc"})


def test_params_tags_notes_and_row_are_kept(config, store) -> None:  # type: ignore[no-untyped-def]
    """Nested parameters are flattened; later values win; secrets are taken out."""
    with tachograph.start_run(config=config, name="first", tags=["a"], notes="why") as run:
        run.log_params({"optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}, "api_key": "hunter2"})
        run.log_params({"optimizer.lr": 0.2})
        run.set_tags({"stage": 1}, more="x")
        run.update(name="second", verdict="good")
        with pytest.warns(TachographWarning, match="no started_at"):
            run.update(started_at=1)
    record = store().run(run.run_id)
    assert record.params == {
        "optimizer.lr": 0.2,
        "optimizer.betas": [0.9, 0.99],
        "api_key": "[redacted]",
    }
    assert record.tags == {"a": "", "stage": "1", "more": "x"}
    assert (record.name, record.row["verdict"]) == ("second", "good")
    assert [event["message"] for event in record.events] == ["why"]


def test_files_tables_images_and_figures_are_kept(config, store, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Copies can be read back by their digest; references name the file and its hash."""
    import matplotlib
    import numpy

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("content")
    figure = Figure()
    figure.subplots().plot([1, 2])
    with tachograph.start_run(config=config) as run:
        run.log_artifact(tmp_path / "out")
        run.log_artifact(tmp_path / "out/a.txt", "reference.txt", copy=False, kind="checkpoint")
        run.log_table("rows", [{"a": 1, "b": "x"}, {"a": 2, "b": None}])
        run.log_image("noise", numpy.zeros((4, 5, 3)), step=3)
        run.log_figure("curve", figure)
        with pytest.warns(TachographWarning, match="there is no file"):
            run.log_artifact(tmp_path / "nothing")
    opened = store()
    rows = opened.run(run.run_id).artifacts
    files = {row["path"]: row for row in rows if row["kind"] != "source"}
    assert set(files) == {"out/a.txt", "reference.txt", "rows.jsonl", "noise/3.png", "curve.png"}
    with opened.open_artifact(files["out/a.txt"]["sha256"]) as file:
        assert file.read() == b"content"
    assert files["reference.txt"]["sha256"] == files["out/a.txt"]["sha256"]
    assert files["reference.txt"]["uri"] == (tmp_path / "out/a.txt").as_uri()
    with opened.open_artifact(files["rows.jsonl"]["sha256"]) as file:
        assert [json.loads(line) for line in file] == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    with opened.open_artifact(files["noise/3.png"]["sha256"]) as file:
        assert file.read(4) == b"\x89PNG"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (ValueError("x"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(0), "finished"),
        (SystemExit(3), "failed"),
    ],
)
def test_how_the_block_ends_is_how_the_run_ends(error, status, config, store) -> None:  # type: ignore[no-untyped-def]
    """The exception goes on its way, unchanged; the run says how it ended."""
    seen: BaseException | None = None
    try:
        with tachograph.start_run(config=config) as run:
            if error is not None:
                raise error
    except BaseException as caught:
        seen = caught
    assert seen is error
    assert tachograph.current_run() is None
    record = store().run(run.run_id)
    assert record.status == status
    if status == "failed":
        (event,) = (event for event in record.events if event["kind"] == "error")
        assert "Traceback" in json.loads(event["data"])["traceback"]


@pytest.mark.parametrize(
    ("ending", "status"),
    [("", "finished"), ("raise ValueError('boom')", "failed"), ("run.finish()", "finished")],
)
def test_a_run_left_open_ends_as_its_process(ending, status, config, store) -> None:  # type: ignore[no-untyped-def]
    """A script need not finish its run."""
    code = (
        f"import tachograph\nrun = tachograph.start_run(run_id='it', config={config!r})\n"
        f"run.log({{'loss': 1.0}}, step=0)\n{ending}\n"
    )
    subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False)
    record = store().run("it")
    assert record.status == status
    assert record.row["error"] == ("ValueError: boom" if status == "failed" else None)


def test_runs_nest_by_context_and_by_call(config, store) -> None:  # type: ignore[no-untyped-def]
    """A run inside an open run is its child; the outer one is current again afterwards."""

    @tachograph.tracked(name="decorated", config=config)
    def work() -> str:
        inner = tachograph.current_run()
        assert inner is not None
        return inner.run_id

    with tachograph.start_run(config=config) as outer:
        with tachograph.start_run() as middle:
            deep = work()
            assert tachograph.current_run() is middle
        assert tachograph.current_run() is outer
        child = outer.child("fold", "one")
        assert tachograph.current_run() is outer
        child.finish()
    opened = store()
    assert opened.run(deep).row["parent_id"] == middle.run_id
    assert opened.run(deep).row["root_id"] == outer.run_id
    assert {row["run_id"] for row in opened.children(outer.run_id)} == {
        middle.run_id,
        child.run_id,
    }
    assert opened.run(child.run_id).row["kind"] == "fold"


def test_threads_find_the_run_of_their_process(config) -> None:  # type: ignore[no-untyped-def]
    """A thread that inherits no context still records into the current run."""
    found = []
    with tachograph.start_run(config=config) as run:
        thread = threading.Thread(target=lambda: found.append(tachograph.current_run()))
        thread.start()
        thread.join()
    assert found == [run]


def test_a_resumed_run_is_its_next_attempt(config, store) -> None:  # type: ignore[no-untyped-def]
    """From its first step on the later attempt counts; the earlier points stay readable."""
    run = tachograph.start_run(run_id="it", config=config)
    for step in range(10):
        run.log({"loss": 1.0}, step=step)
    run.finish("failed", ValueError("stop"))
    with tachograph.start_run(run_id="it", resume=True, config=config) as run:
        assert run.attempt == 2
        for step in range(6, 12):
            run.log({"loss": 2.0}, step=step)
    opened = store()
    assert list(opened.series("it", "loss")["value"]) == [1.0] * 6 + [2.0] * 6
    assert len(opened.series("it", "loss", attempts="all")) == 16
    assert opened.run("it").status == "finished"
    assert list(opened.attempts("it")["status"]) == ["failed", "finished"]


def test_a_run_pickles_as_its_id(config) -> None:  # type: ignore[no-untyped-def]
    """A pickle holds no handle and no journal; in the same process it is the same run."""
    with tachograph.start_run(config=config) as run:
        content = pickle.dumps(run)
        assert pickle.loads(content) is run
    assert len(content) < 5_000


def test_usage_and_origin_are_recorded_without_asking(config, store) -> None:  # type: ignore[no-untyped-def]
    """CPU and memory series, and the documents on where the run comes from."""
    record = {"record": {"system_interval": 0.2}}
    with tachograph.start_run(config=config | record, params={"x": 1}) as run:
        run.log_data({"train": [[1.0, 2.0]]}, "toy")
        time.sleep(2.5)
    found = store().run(run.run_id)
    assert {
        "git",
        "packages",
        "python",
        "hardware",
        "argv",
        "environment",
        "seeds",
        "data.toy",
    } <= set(found.provenance)
    names = set(found.metrics["name"])
    assert "system/process_rss_bytes" in names
    series = store().series(run.run_id, "system/process_rss_bytes")
    assert all(value > 1e6 for value in series["value"])


def test_the_console_is_kept_when_asked(config, store, capsys) -> None:  # type: ignore[no-untyped-def]
    """Lines reach the terminal as before, and the record as events; no part of a key does."""
    out = sys.stdout
    key = [
        "-----BEGIN PRIVATE KEY-----",
        *["MIIEowIBAAKCAQEA7" * 3] * 3,
        "-----END PRIVATE KEY-----",
    ]
    with tachograph.start_run(config=config | {"record": {"console": True}}) as run:
        print("hello")
        print("progress 1\rprogress 2", end="\n")
        for line in key:
            print(line)
            assert run._beside is not None
            run._beside.tick()
        print("MIIE is no key")
        print("the end", end="")
    assert sys.stdout is out
    assert "hello" in capsys.readouterr().out
    events = [e["message"] for e in store().events(run.run_id) if e["kind"] == "console"]
    lines = "\n".join(events).splitlines()
    assert lines[:2] + lines[-2:] == ["hello", "progress 2", "MIIE is no key", "the end"]
    assert not any("MIIEow" in line for line in lines)


def test_uncommitted_work_can_be_refused(config, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """With code = "refuse" a dirty working tree stops the start, with the way out."""
    for command in (["init", "-q"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-q",
                                     "--allow-empty", "-m", "x"]):  # fmt: skip
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    script = tmp_path / "train.py"
    script.write_text(
        "import tachograph\ntachograph.start_run(config="
        f"{config | {'record': {'code': 'refuse'}}!r}).finish()\n"
    )
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "ConfigError" in done.stderr
    assert "commit it" in done.stderr
    assert ConfigError.__name__ in done.stderr


RANK = """
import sys, tachograph
with tachograph.start_run(config={config!r}) as run:
    run.log({{"rank_metric": 1.0}}, step=0)
print(run.run_id)
"""


def test_ranks_of_a_launcher_meet_in_one_run(config, store) -> None:  # type: ignore[no-untyped-def]
    """Processes that a launcher numbers share a run; rank 0 owns its row, each its points."""
    launch = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job-1"}
    ids = set()
    for rank in ("1", "0"):
        done = subprocess.run(
            [sys.executable, "-c", RANK.format(config=config)],
            env=os.environ | launch | {"RANK": rank, "LOCAL_RANK": rank},
            capture_output=True,
            text=True,
            check=True,
        )
        ids.add(done.stdout.strip())
    assert len(ids) == 1
    (run_id,) = ids
    opened = store()
    assert len(opened.runs()) == 1
    assert sorted(opened.series(run_id, "rank_metric", rank="all")["rank"]) == [0, 1]
    assert opened.run(run_id).status == "finished"


def test_a_bad_configuration_is_an_error_at_the_start() -> None:
    """Before a training begins, a mistake is said at once."""
    with pytest.raises(ConfigError, match="sqlit"):
        tachograph.start_run(config={"backend": "sqlit:///x"})
    with pytest.raises(RecordError, match="run id"):
        tachograph.start_run(run_id="no spaces", config={"backend": "memory://bad"})


def test_memory_of_a_run_does_not_grow_with_its_names(config) -> None:  # type: ignore[no-untyped-def]
    """Names that never come back do not pile up."""
    run = tachograph.start_run(config=config | {"record": {"system": False}})
    for number in range(12_000):
        run.log({f"once{number}": 1.0}, step=0)
    assert len(run._handles) <= 10_001
    recorder.get_recorder(run.config).close(30)


def test_a_child_goes_where_its_parent_goes(config, store) -> None:  # type: ignore[no-untyped-def]
    """A child of another project is in the same store; by default it has its parent's project."""
    with tachograph.start_run(config=config) as run:
        plain = run.child("trial")
        other = tachograph.start_run(project="other")
        other.finish()
        plain.finish()
    opened = store()
    assert opened.run(plain.run_id).row["project"] == "tests"
    assert opened.run(other.run_id).row["project"] == "other"
    assert opened.run(other.run_id).row["parent_id"] == run.run_id


def test_a_callback_with_a_wrong_setting_is_refused_where_it_is_made() -> None:
    """The mistake is said before the training, not as a warning inside it."""
    from tachograph.callbacks import XGBoostCallback

    with pytest.raises(ConfigError, match="wieghts"):
        XGBoostCallback(config={"record": {"wieghts": "off"}})
    with pytest.raises(ConfigError, match="sometimes"):
        XGBoostCallback(every="sometimes")


def test_odd_values_and_steps_cost_only_themselves(config, store) -> None:  # type: ignore[no-untyped-def]
    """Arrays of one are numbers, half a character is replaced, and a bad step is forgotten."""
    import numpy

    run = tachograph.start_run(config=config)
    run.log({"array": numpy.array([[2.5]]), "half\ud800": 1.0}, step=3)
    for step in ("abc", 1 << 70):
        with pytest.warns(TachographWarning):
            run.log({"loss": 1.0}, step=step)  # type: ignore[arg-type]
    run.log({"loss": 2.0})
    run.finish()
    opened = store()
    assert list(opened.series(run.run_id, "array")["value"]) == [2.5]
    assert len(opened.series(run.run_id, "half�")) == 1
    assert list(opened.series(run.run_id, "loss")["step"]) == [4]


def test_a_clock_that_is_set_back_does_not_undo_the_end(config, store, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The latest change of a row counts, whatever the wall clock does in between."""
    run = tachograph.start_run(config=config)
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() - 3600 * 10**9)
    run._recorder.journal.check_clock()
    run.log_params({"lr": 1})
    run.log_params({"lr": 2})
    run.finish()
    found = store().run(run.run_id)
    assert found.status == "finished"
    assert found.params == {"lr": 2}


def test_a_status_that_is_none_still_ends_the_run(config, store) -> None:  # type: ignore[no-untyped-def]
    """A slip of the pen must not leave a run that seems to go on for ever."""
    run = tachograph.start_run(config=config)
    with pytest.warns(TachographWarning, match="not 'done'"):
        run.finish("done")
    assert store().run(run.run_id).status == "finished"


def test_a_child_that_nobody_holds_ends_with_its_process(config, store) -> None:  # type: ignore[no-untyped-def]
    """Whatever was started is ended, also where the program forgot it."""
    code = (
        f"import tachograph\nrun = tachograph.start_run(run_id='it', config={config!r})\n"
        "run.child('fold', run_id='forgotten').log({'loss': 1.0}, step=0)\nrun.finish()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert store().run("forgotten").status == "finished"


def test_without_a_thread_the_record_waits_in_one_journal(config, store, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A process that may start no thread still records, and the next one sends it."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.warns(TachographWarning, match="waits"):
            run = tachograph.start_run(config=config)
        for step in range(20):
            run.log({"loss": 1.0}, step=step)
        run.finish()
        assert len(list(run._recorder.folder.glob("*.journal"))) == 1
        run._recorder.close(0.1)
    assert len(store().series(run.run_id, "loss")) == 20


def test_a_fork_prints_without_recording(config, store, capfd) -> None:  # type: ignore[no-untyped-def]
    """The console of a forked worker is its own: it doubles no line and takes no lock."""
    with tachograph.start_run(config=config | {"record": {"console": True}}) as run:
        sys.stdout.write("parent\n")
        child = os.fork()
        if child == 0:
            for _ in range(300):
                print("child")
            recorder.close_all()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    events = [e["message"] for e in store().events(run.run_id) if e["kind"] == "console"]
    assert events == ["parent"]


def test_a_fork_waits_while_a_module_is_loaded(config, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Its child may load the same module: nobody would free the lock of a thread that is gone."""
    (tmp_path / "slow_to_load.py").write_text("import time\ntime.sleep(0.5)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with tachograph.start_run(config=config) as run:
        run.in_background(lambda: importlib.import_module("slow_to_load") and None)
        while "slow_to_load" not in sys.modules:
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            signal.alarm(5)  # ends it where it would wait for ever
            importlib.import_module("slow_to_load")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_runs_beside_each_other_are_no_children_of_each_other(config, store) -> None:  # type: ignore[no-untyped-def]
    """Threads of a pool and tasks of an event loop that each start a run start roots."""
    together = threading.Barrier(3)

    def in_thread(number: int) -> None:
        with tachograph.start_run(run_id=f"thread{number}", config=config) as run:
            together.wait(10)
            assert tachograph.current_run() is run
            together.wait(10)

    async def in_task(number: int) -> None:
        with tachograph.start_run(run_id=f"task{number}", config=config) as run:
            await asyncio.sleep(0.01 * (3 - number))
            assert tachograph.current_run() is run
            with tachograph.start_run(run_id=f"child{number}"):
                await asyncio.sleep(0.01)

    async def all_tasks() -> None:
        await asyncio.gather(*(in_task(number) for number in range(3)))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(in_thread, range(3)))
    asyncio.run(all_tasks())
    opened = store()
    for number in range(3):
        assert opened.run(f"thread{number}").row["parent_id"] is None
        assert opened.run(f"task{number}").row["parent_id"] is None
        assert opened.run(f"child{number}").row["parent_id"] == f"task{number}"


def test_a_finish_does_not_wait_for_what_others_go_on_logging(config) -> None:  # type: ignore[no-untyped-def]
    """What was recorded when it is called is waited for, not what comes meanwhile."""
    run = tachograph.start_run(config=config)
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(0.0005):
            run.log({"loss": 1.0})

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        assert recorder.get_recorder(run.config).flush(8)
    finally:
        stop.set()
        thread.join()
