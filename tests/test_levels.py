"""Which level of reproduction a record allows, and what it lacks for a stronger one."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tachograph
from tachograph.cli.app import run as command
from tachograph.levels.level import LEVELS, Verdict, assess, reproducibility

COMMIT = "1" * 40
HASH = "a" * 64
PROJECT: dict[str, Any] = {
    "root": "/work/project",
    "commit": COMMIT,
    "remote": "https://host/project",
    "ahead": 0,
    "dirty": False,
    "patch": None,
}
FILE = {"sha256": HASH, "state": "committed"}
WHOLE: dict[str, Any] = {
    "argv": {"argv": ["train.py"], "original_argv": ["python", "train.py"]},
    "arguments": {"files": [], "parsed": []},
    "git": {"commit": COMMIT, "dirty": False, "submodules": {}},
    "source": {
        "entry": {"started_by": "script", "file": "project/train.py"},
        "files": {"project/train.py": FILE, "project/model.py": FILE | {"state": "changed"}},
        "left_out": {},
        "secret_files": 0,
        "trees": {"project": PROJECT},
        "archive": {"artifact": "source.tar.gz", "sha256": HASH, "bytes": 1000},
    },
    "data.train": {"parts": {"x": {"digest": HASH, "digest_of": "content", "missing": 3}}},
    "packages": {"versions": {"torch": "2.9.0"}, "origins": {}},
    "python": {"version": "3.12.1"},
    "container": {"runtime": None},
    "environment": {"variables": {}, "redacted": []},
    "seeds": {
        "environment": {"PYTHONHASHSEED": "0"},
        "hash_randomization": False,
        "random": {"seed": 7, "state": HASH},
        "numpy": {"seed": 7, "state": HASH},
        "torch": {"initial_seed": 7, "cuda": {}, "deterministic_algorithms": False},
        "generators": {},
    },
    "hardware": {"cpu": {"model": "a processor"}, "gpus": []},
    "numerics": {"pools": {"libgomp": {"num_threads": 2}}, "variables": {"OMP_NUM_THREADS": "2"}},
}

Change = Callable[[dict[str, Any]], Any]


def changed(*path: str, to: Any = None) -> Change:
    """A change that puts a value at a place, or takes away what is there."""

    def change(documents: dict[str, Any]) -> None:
        place = documents
        for key in path[:-1]:
            place = place[key]
        if to is None:
            place.pop(path[-1])
        else:
            place[path[-1]] = to

    return change


def together(*changes: Change) -> Change:
    """Several changes."""
    return lambda documents: [change(documents) for change in changes]


def gpu(**settings: Any) -> Change:
    """A GPU in use, and settings of torch."""
    states = {"cuda:0": HASH}
    return together(
        lambda d: d["seeds"]["torch"].update({"cuda": states, **settings}),
        changed("hardware", "gpus", to=[{"name": "a card"}]),
    )


def test_a_whole_record_allows_exact_and_says_nothing() -> None:
    """The record that the others here are changes of."""
    result = reproducibility(WHOLE, {"lr": 0.1})
    assert (result.level, result.verified, result.findings) == ("exact", None, ())


SOURCE = "source"
UNTRACKED = {"files": {"project/train.py": FILE | {"state": "untracked"}}}
LIMITED: dict[str, tuple[Change, str, str, str]] = {
    "left out": (
        changed(SOURCE, "left_out", to={"project/big.py": "longer than 4 MiB"}),
        *("methodological", "code", "lacks project/big.py (longer than 4 MiB)"),
    ),
    "allow, changed": (
        changed(SOURCE, "archive"),
        *("methodological", "code", "no commit holds project/model.py"),
    ),
    "archive failed": (
        changed(SOURCE, "archive", to={"missing": "the disk is full"}),
        *("methodological", "code", "the disk is full"),
    ),
    "edited": (
        changed(SOURCE, "files", "project/train.py", to=FILE | {"modified_since_start": True}),
        *("methodological", "code", "project/train.py changed after the program had started"),
    ),
    "stdin": (
        changed(SOURCE, "entry", to={"started_by": "stdin", "missing": "gone"}),
        *("methodological", "code", "came from standard input"),
    ),
    "typed": (
        changed(SOURCE, "entry", to={"started_by": "interactive"}),
        *("methodological", "code", "typed into an interactive Python"),
    ),
    "notebook without cells": (
        changed(SOURCE, "entry", to={"started_by": "notebook"}),
        *("methodological", "code", "the cells are not known"),
    ),
    "submodule": (
        changed("git", "submodules", to={"lib": {"dirty": True}}),
        *("methodological", "code", "submodule lib has changes"),
    ),
    "no source": (changed(SOURCE), "exact", "code", "only that nothing was uncommitted"),
    "no source, dirty": (
        together(changed(SOURCE), changed("git", "dirty", to=True)),
        *("methodological", "code", "had changes that were not kept"),
    ),
    "no data": (changed("data.train"), "methodological", "data", "not known what data"),
    "a stream": (
        changed("data.val", to={"digest": None, "missing": "a stream"}),
        *("methodological", "data", "'val' has no digest: a stream"),
    ),
    "a part without digest": (
        changed("data.train", "parts", "y", to={"digest": None}),
        *("methodological", "data", "'train' has no digest"),
    ),
    "parts that were not looked at": (
        changed("data.train", "more_parts", to=3),
        *("methodological", "data", "3 parts of it were not looked at"),
    ),
    "a part beside one with a version": (
        together(
            changed("data.train", "parts", "y", to={"digest": None, "missing": "a stream"}),
            changed("data.train", "parts", "z", to={"missing": "a stream", "dvc": {"md5": "a"}}),
            changed("data.train", "parts", "x", "source", to={"version": "1"}),
        ),
        *("methodological", "data", "'train' has no digest: a stream"),
    ),
    "data that is only named": (
        changed("data.train", to={"kind": "own.Kind", "rows": None}),
        *("methodological", "data", "its content was not read"),
    ),
    "config file": (
        changed("arguments", "files", to=[{"path": "/c/a.yaml", "missing": "longer than 1 MiB"}]),
        *("methodological", "configuration", "a.yaml was not kept: longer than 1 MiB"),
    ),
    "no command": (changed("argv"), "methodological", "configuration", "command is not known"),
    "no packages": (changed("packages"), "statistical", "environment", "packages are not known"),
    "no python": (changed("python"), "statistical", "environment", "version of Python"),
    "package worked on": (
        changed("packages", "origins", "x", to={"folder": "/x", "commit": COMMIT, "dirty": True}),
        *("statistical", "environment", "x is installed from /x, whose changes are not committed"),
    ),
    "package without git": (
        changed("packages", "origins", "x", to={"folder": "/x", "editable": True}),
        *("statistical", "environment", "of which no commit is known"),
    ),
    "no seeds": (changed("seeds"), "statistical", "seed", "generators are not known"),
    "torch unseeded": (
        changed("seeds", "torch", "initial_seed", to=2**63 + 5),
        *("statistical", "seed", "torch is not known to be seeded"),
    ),
    "GPU": (gpu(), "statistical", "seed", "a GPU was used without deterministic algorithms"),
    "benchmark": (
        gpu(deterministic_algorithms=True, cudnn_benchmark=True),
        *("statistical", "seed", "cudnn_benchmark is on"),
    ),
    "workers of an old torch": (
        together(
            changed("packages", "versions", "torch", to="1.8.1"),
            changed("seeds", "generators", "main.train", to={"workers": 2, "generator": None}),
        ),
        *("statistical", "seed", "the workers of main.train do not seed numpy"),
    ),
}


@pytest.mark.parametrize("name", LIMITED)
def test_what_is_missing_limits_the_level(name: str) -> None:
    """By area, in words, with what to do."""
    change, level, area, what = LIMITED[name]
    documents = copy.deepcopy(WHOLE)
    change(documents)
    result = reproducibility(documents, {"lr": 0.1}, framework="lightning 2.6")
    assert result.level == level, result.findings
    first = result.findings[0]
    assert (first.area, first.limits_to) == (area, None if level == "exact" else level)
    assert what in first.what
    assert first.remedy


NOTES: dict[str, tuple[Change, str]] = {
    "allow, committed": (
        together(
            changed(SOURCE, "archive"),
            changed(SOURCE, "files", to={"project/train.py": FILE}),
        ),
        "the code is in its commits alone",
    ),
    "left out, committed": (changed(SOURCE, "left_out", to={"project/train.py": "much"}), ""),
    "secrets in code": (
        changed(SOURCE, "files", "project/train.py", to=FILE | {"redacted": 1}),
        "secrets were taken out of project/train.py",
    ),
    "secret files": (changed(SOURCE, "secret_files", to=2), "2 files of the program"),
    "no remote": (changed(SOURCE, "trees", "project", "remote"), "there is no remote"),
    "no git": (
        changed(SOURCE, "trees", "project", to={"missing": "no repository"}),
        "no commit is known of project",
    ),
    "not pushed": (changed(SOURCE, "trees", "project", "ahead", to=3), "was not pushed"),
    "submodule kept": (
        together(
            changed("git", "submodules", to={"lib": {"dirty": True}}),
            changed(SOURCE, "trees", "project/lib", to=PROJECT),
        ),
        "",
    ),
    "long diff": (
        changed(SOURCE, "trees", "project", "patch", to={"left_out": "longer than 16 MiB"}),
        "only imported files were kept",
    ),
    "a sketch that failed": (
        changed("data.train", "column_sketches", to={"a": {"missing": "no numbers"}}),
        "",
    ),
    "a stream with a revision": (
        changed(
            "data.train",
            to={"digest": None, "missing": "a stream", "source": {"name": "c4", "revision": "ab"}},
        ),
        "'train' has no digest: a stream; it is c4 revision ab",
    ),
    "names and sizes": (
        changed("data.train", to={"digest": HASH, "digest_of": "names and sizes"}),
        "covers only names and sizes",
    ),
    "sample": (
        changed("data.train", to={"digest": HASH, "digest_of": "sample"}),
        "covers only a sample",
    ),
    "secret argument": (
        changed("argv", "original_argv", to=["python", "a.py", "--api-key", "[redacted]"]),
        "secrets were taken out of the command",
    ),
    "secret variable": (changed("environment", "redacted", to=["KEY"]), "not kept: KEY"),
    "config file in the archive": (
        together(
            changed("arguments", "files", to=[{"path": "/work/project/a.yaml", "missing": "so"}]),
            changed(SOURCE, "files", "project/a.yaml", to=FILE | {"role": "configuration"}),
        ),
        "",
    ),
    "editable and kept": (
        changed("packages", "origins", "x", to={"folder": "/work/project/x", "editable": True}),
        "",
    ),
    "container": (changed("container", "runtime", to="docker"), "whose image is not known"),
    "numpy drawn from": (changed("seeds", "numpy", to={"state": HASH}), "numpy is not known"),
    "hashes": (
        together(
            changed("seeds", "environment", to={"LANG": "C"}),
            changed("seeds", "hash_randomization", to=True),
        ),
        "hashes of texts differ",
    ),
    "GPU": (gpu(deterministic_algorithms=True), "(a card): other models and drivers"),
    "warnings only": (
        gpu(deterministic_algorithms=True, deterministic_warn_only=True),
        "torch was to warn only",
    ),
    "threads": (changed("numerics", "variables", to={"LANG": "C"}), "followed the machine (2)"),
    "no hardware": (changed("hardware"), "the machine is not known"),
    "workers": (
        changed("seeds", "generators", "main.train", to={"workers": 2, "generator": None}),
        "",
    ),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_limits_nothing_is_a_note_or_nothing(name: str) -> None:
    """What is kept elsewhere is no finding."""
    change, what = NOTES[name]
    documents = copy.deepcopy(WHOLE)
    change(documents)
    result = reproducibility(documents, {"lr": 0.1}, framework="lightning 2.6")
    assert (result.level, result.missing) == ("exact", ())
    told = [finding.what for finding in result.findings]
    assert any(what in text for text in told) if what else told == []


def test_the_weakest_piece_decides_and_stands_first() -> None:
    """Only the idea is known where neither code nor configuration is."""
    documents = copy.deepcopy(WHOLE)
    for section in ("source", "packages", "python"):
        del documents[section]
    documents["git"] = {"missing": "git is not installed"}
    known = reproducibility(documents, {"lr": 0.1})
    assert [finding.limits_to for finding in known.missing] == [
        "methodological",
        *["statistical"] * 2,
    ]
    nothing = reproducibility({}, {})
    assert nothing.level == "conceptual"
    ranks = [LEVELS.index(finding.limits_to or "exact") for finding in nothing.findings]
    assert ranks == sorted(ranks, reverse=True)


def test_notebooks_are_told_apart_from_their_files() -> None:
    """The script has the order; what failed in it is lost."""
    documents = copy.deepcopy(WHOLE)
    documents["source"]["entry"] = {"started_by": "notebook", "missing": "see notebook"}
    order = {"in_order": False, "out_of_order": [4, 6], "repeated": [7]}
    cells = [{"number": 1}, {"number": 2, "error": "ValueError"}]
    documents["notebook"] = {"cells": cells, "order": order, "script": {"sha256": HASH}}
    result = reproducibility(documents, {})
    assert result.level == "exact"
    told = " ".join(finding.what for finding in result.findings)
    assert "cells 4, 6 ran after one below them; cells 7 ran more than once" in told
    assert "cells failed (2)" in told
    del documents["notebook"]["script"]
    assert reproducibility(documents, {}).level == "methodological"


# ---------------------------------------------------------------------------- seeds

UNSEEDED = {"numpy": {"state": HASH}, "random": {"state": HASH}}


@pytest.mark.parametrize(
    ("framework", "seeds", "params", "level"),
    [
        ("", UNSEEDED, {}, "statistical"),
        ("", UNSEEDED, {"seed": 7}, "exact"),  # a hint, and nothing that says otherwise
        ("", UNSEEDED, {"seed": None}, "statistical"),
        ("", UNSEEDED | {"generators": {"main.rng": {"kind": "numpy.PCG64"}}}, {}, "exact"),
        ("", UNSEEDED | {"generators": {"m.d": {"kind": "torch.DataLoader"}}}, {}, "statistical"),
        ("", UNSEEDED | {"torch": {"initial_seed": 7}}, {}, "exact"),
        ("", UNSEEDED | {"torch": {"initial_seed": 2**40}}, {"seed": 7}, "statistical"),
        ("xgboost 3.2", UNSEEDED, {}, "exact"),  # its own seed is 0 by default
        ("xgboost 3.2", UNSEEDED | {"torch": {"initial_seed": 2**40}}, {}, "exact"),
        ("keras 3.15", UNSEEDED | {"keras": {"seed": None}}, {}, "statistical"),
        ("keras 3.15", UNSEEDED | {"keras": {"seed": 0}}, {}, "exact"),
        ("scikit-learn 1.9", UNSEEDED, {"svc__random_state": 0}, "exact"),
        ("scikit-learn 1.9", UNSEEDED, {"svc__random_state": None}, "statistical"),
        ("scikit-learn 1.9", {"numpy": {"seed": 3}}, {"svc__random_state": None}, "exact"),
    ],
)
def test_a_seed_counts_where_the_training_draws(
    framework: str, seeds: dict[str, Any], params: dict[str, Any], level: str
) -> None:
    """Libraries that are merely loaded limit nothing."""
    documents = WHOLE | {"seeds": {"hash_randomization": False} | seeds}
    assert reproducibility(documents, params, framework=framework).level == level


def test_a_call_of_seed_everything_is_enough() -> None:
    """Also after numbers were drawn."""
    documents = WHOLE | {"seeds": {"hash_randomization": False, "numpy": {"state": HASH}}}
    documents["seeding"] = {"seed": 7, "seeded": ["random", "numpy"]}
    assert reproducibility(documents, {}).findings == ()


@pytest.mark.parametrize(
    ("state", "jobs", "told"),
    [
        ({"first_word": 7}, 1, ()),
        ({"first_word": 2**31}, 1, ("sampler is not known to be seeded",)),
        ({}, 1, ("sampler is not known to be seeded",)),
        ({"first_word": 7}, -1, ("trials ran at the same time (n_jobs=-1)",)),
    ],
)
def test_a_study_is_exact_where_its_sampler_is_seeded_and_trials_wait(
    state: dict[str, Any], jobs: int, told: tuple[str, ...]
) -> None:
    """What is tried next depends on which trials have ended."""
    documents = WHOLE | {"optuna.random_state": state}
    params = {"sampler.class": "TPESampler", "directions": ["min"], "optimize.n_jobs": jobs}
    result = reproducibility(documents, params, framework="optuna 5.0")
    assert len(result.missing) == len(told)
    for finding, text in zip(result.missing, told, strict=True):
        assert text in finding.what


# ---------------------------------------------------------------------------- reproductions


def test_the_best_reproduction_is_the_verdict() -> None:
    """It counts where pieces look missing too; one that contradicts is told as well."""
    verdicts = (
        Verdict("failed", "d"),
        Verdict("different", "c", "code, source.files.project/a.py.sha256"),
        Verdict("statistical", "b"),
        Verdict("exact", "a"),
    )
    result = reproducibility({}, {}, verdicts=verdicts)
    assert (result.level, result.verified) == ("conceptual", Verdict("exact", "a"))
    told = [finding.what for finding in result.findings if finding.area == "reproduction"]
    assert told == [
        "a reproduction, run d, did not come to an end",
        "a reproduction, run c, gave different results; first cause: code,"
        " source.files.project/a.py.sha256",
    ]
    assert reproducibility({}, {}, verdicts=verdicts[:3]).verified == verdicts[2]
    assert reproducibility({}, {}, verdicts=verdicts[:2]).verified is None


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.sqlite"


def record(url: str, **options: Any) -> str:
    """A run, and its id."""
    with tachograph.start_run(config={"backend": url}, **options) as run:
        pass
    return run.run_id


def reproduce(url: str, of: str, verdict: str | None, **facts: str) -> str:
    """A run that was made to reproduce another, and its id."""
    with tachograph.start_run(config={"backend": url}) as run:
        run.log_provenance("reproduction", {"of": of, "verdict": verdict, **facts})
    return run.run_id


def test_reproductions_are_found_in_the_store(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of this run, that were not deleted."""
    original, other = record(url, name="original"), record(url, name="other")
    reproduce(url, other, "exact", instead_of=original)
    unfinished = reproduce(url, original, None)
    with tachograph.open(url) as store:
        assert assess(store.run(original), store).verified is None
        different = reproduce(url, original, "different")
        assert command(["show", "original", "--store", url]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"a reproduction, run {different}, gave different results" in said
        exact = reproduce(url, original, "exact")
        assert assess(store.run(original), store).verified == Verdict("exact", exact)
        assert command(["show", "original", "--store", url]) == 0
        said = capsys.readouterr().out
        assert f"reproducible  exact, verified by run {exact[-8:]}" in said
        store.delete(exact)
        assert assess(store.run(original), store).verified is None
        assert assess(store.run(unfinished), store).verified is None


def test_what_parts_know_of_the_data_counts(url: str) -> None:
    """A study has no data of its own; a run has."""
    with tachograph.start_run(config={"backend": url}) as run, run.child("trial", "one") as trial:
        trial.log_data([[1.0, 2.0]], "train")
    other = record(url)
    with tachograph.open(url) as store:
        areas = {f.area for f in assess(store.run(run.run_id), store).missing}
        assert "data" not in areas
        assert "data" in {f.area for f in assess(store.run(other), store).missing}


def test_a_part_is_no_more_reproducible_than_the_whole_nor_the_whole_than_its_parts(
    url: str,
) -> None:
    """A trial is what its study proposed; a study is what its trials were trained with, and on."""
    study_params = {
        "sampler": {"class": "TPESampler"},
        "directions": ["minimize"],
        "optimize": {"n_jobs": 2},
    }
    with tachograph.start_run(config={"backend": url}) as root, root.child("study") as study:
        study.log_params(study_params)
        study.log_data([[1.0, 2.0]], "train")
        study.log_provenance("optuna.random_state", {"first_word": 7})
        with study.child("trial", "first") as first:
            first.log_params({"depth": 1})
            first.log_data(iter(()), "train")
            with first.child("run", framework="lightning 2.6") as training:
                training.log_params({"random_state": None})
        with study.child("trial", "second") as second:
            second.log_data([[1.0, 2.0]], "train")
    with tachograph.open(url) as store:

        def missing(run: tachograph.Run) -> str:
            found = assess(store.run(run.run_id), store).missing
            return "; ".join(finding.what for finding in found)

        for run in (root, study, first, training, second):
            assert "at the same time (n_jobs=2)" in missing(run)
            assert "processes" not in missing(run)
            assert "sampler" not in missing(run)
        for run, has_stream in ((study, True), (first, True), (second, False)):
            assert missing(run).count("'train' has no digest") == has_stream
            assert missing(run).count("random_state is not set") == has_stream


# ---------------------------------------------------------------------------- the page


def test_the_page_says_where_a_run_comes_from(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Area by area, then the level, with what is missing and what to do."""
    with tachograph.start_run(config={"backend": url}, name="page", params={"seed": 7}) as run:
        run.log_data([1.0, 2.0], "train")
        run.log_data(iter(()), "stream")
    assert command(["show", "page", "--provenance", "--store", url]) == 0
    said = capsys.readouterr().out
    titles = ["Code", "Data", "Configuration", "Environment", "Seeds", "Hardware"]
    places = [said.index(f"\n{title} ──") for title in [*titles, "Reproducibility"]]
    assert places == sorted(places)
    assert "CPython" in said
    assert "seed=7" in said
    assert "none: content of this kind is not read" in said
    assert re.search(r"allows methodological: \d pieces? missing", said)  # of what is loaded here
    assert said.count("→ call run.log_data(path, 'stream')") == 1


def test_the_page_shows_splits_and_pipelines(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows in common, and what a pipeline is made of, as a tree."""
    overlap = {"train": "train", "evaluation": "val", "rows": 2, "of": 9, "finding": "overlap"}
    other = {"train": "train", "evaluation": "test", "rows": 0, "of": 9, "finding": "none"}
    steps = {
        ".": {"class": "sklearn.pipeline.Pipeline", "params": {}, "steps": ["scale"]},
        "scale": {"class": "a.Scale", "params": {"x": 2}, "fitted": f"sha256:{HASH}"},
    }
    with tachograph.start_run(config={"backend": url}, name="page") as run:
        run.log_provenance("data.train", {"digest": HASH})
        run.log_provenance("splits", {"overlaps": [overlap, other]})
        run.log_provenance("pipeline", steps)
    assert command(["show", "page", "--provenance", "--store", url]) == 0
    said = capsys.readouterr().out
    assert "2 of 9 rows of val among train" in said
    assert "no row of test among train" in said
    assert said.index("Pipeline()") < said.index("  scale: Scale(x=2) fitted aaaaaaaa")


def test_a_run_that_is_above_itself_is_looked_at_once(url: str) -> None:
    """Anyone may record any parent: a circle ends."""
    with tachograph.start_run(config={"backend": url}, run_id="a", parent="b"):
        pass
    with tachograph.start_run(config={"backend": url}, run_id="b", parent="a"):
        pass
    with tachograph.open(url) as store:
        assert assess(store.run("a"), store).missing


@pytest.mark.parametrize("other", [3, "text", ["x"], {"x": None}])
def test_documents_of_another_shape_are_said_to_be_unreadable(
    other: Any, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anyone may record a section of any name; a page is shown, and no level is made up."""
    for section, key in (("source", "files"), ("hardware", "gpus"), ("seeding", "seeded")):
        documents = WHOLE | {section: {**WHOLE.get(section, {}), key: other}}
        assert reproducibility(documents, {}).level in LEVELS
    result = reproducibility(WHOLE | {"source": WHOLE["source"] | {"secret_files": "many"}}, {})
    assert "cannot be read: TypeError" in result.findings[0].what
    with tachograph.start_run(config={"backend": url}, name="page") as run:
        for section in ("hardware", "splits", "pipeline", "notebook", "data.x"):
            run.log_provenance(section, {key: other for key in ("gpus", "overlaps", ".", "parts")})
    assert command(["show", "page", "--provenance", "--store", url]) == 0
    assert "Reproducibility ──" in capsys.readouterr().out


def test_the_page_for_programs_has_documents_and_level(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And `show` alone has one line on it."""
    record(url, name="page")
    assert command(["show", "page", "--provenance", "--json", "--store", url]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["provenance"]["argv"]["argv"]
    assert found["reproducibility"]["level"] in LEVELS
    assert {"area", "limits_to", "what", "remedy"} == set(found["reproducibility"]["findings"][0])
    assert command(["show", "page", "--store", url]) == 0
    assert "reproducible  allows methodological: " in capsys.readouterr().out
