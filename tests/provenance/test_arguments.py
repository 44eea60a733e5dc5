"""What a program was given is found where each parser leaves it, without a call by the user."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from click.testing import CliRunner
from typer.testing import CliRunner as TyperRunner

import tachograph
from tachograph.provenance import arguments, configs, parsers, stack
from tachograph.provenance.arguments import Arguments, collect
from tachograph.provenance.parsers import Parsed
from tachograph.recording import given


def collect_with(value: Any) -> dict[str, Any]:
    """The document where a function has the value in a variable.

    No function with an `assert` serves for that: pytest makes `locals()` of it.
    """
    args = value
    found = collect()
    return found if args is value else {}


def values_of(parser: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    return [one["values"] for one in document["parsed"] if one["parser"] == parser]


def sources_with(args: Any = None) -> dict[str, tuple[Any, str]]:
    """Path to value and source, as they are recorded."""
    found = arguments.look()
    read = [configs.read(path) for path in found.files]
    return {path: (value, source) for path, value, source in given.params(found, read)}


# ---------------------------------------------------------------------------- parsers


def test_a_namespace_is_found_in_the_functions_that_are_being_called() -> None:
    """However deep the run starts, by the name of the variable, each once."""

    def train(options: argparse.Namespace) -> dict[str, Any]:
        return collect()

    def main() -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--lr", type=float, default=0.1)
        parser.add_argument("--layers", type=int, nargs="*")
        args = parser.parse_args(["--layers", "3", "4"])
        return train(args)

    assert main()["parsed"] == [
        {"parser": "argparse", "name": "options", "values": {"lr": 0.1, "layers": [3, 4]}}
    ]


ARGUMENTS: Any = None


def test_a_namespace_is_found_among_the_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the module whose function is being called."""
    monkeypatch.setitem(globals(), "ARGUMENTS", argparse.Namespace(width=8))
    assert values_of("argparse", collect()) == [{"width": 8}]


def test_the_secret_behind_a_flag_is_one_under_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--api-key` may be kept as `k`."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "x.py", "--api-key", "planted7", "planted"])
    args = argparse.Namespace(k="planted7", other="planted")
    assert values_of("argparse", collect_with(args)) == [{"k": "[redacted]", "other": "planted"}]
    assert args.k == "planted7"


def test_click_and_typer_tell_what_was_given_and_what_is_a_default() -> None:
    """With the commands around it, and nothing that was typed unseen."""
    found: list[Any] = []

    @click.group()
    @click.option("--verbose", is_flag=True)
    def main(verbose: bool) -> None:
        pass

    @main.command()
    @click.option("--lr", default=0.1)
    @click.option("--epochs", default=3)
    @click.option("--token", "t")
    def train(lr: float, epochs: int, t: str) -> None:
        found.append((collect(), sources_with()))

    CliRunner().invoke(main, "--verbose train --lr 0.5 --token planted", catch_exceptions=False)
    app = typer.Typer()

    @app.command()
    def fit(rate: float = 0.1, rounds: int = 3) -> None:
        found.append((collect(), sources_with()))

    TyperRunner().invoke(app, ["--rate", "0.2"], catch_exceptions=False)
    (clicked, clicked_params), (typed, typed_params) = found
    train_values = {"lr": 0.5, "epochs": 3, "t": "[redacted]"}
    assert values_of("click", clicked) == [{"verbose": True}, train_values]
    assert clicked_params["lr"] == (0.5, "argv")
    assert clicked_params["epochs"] == (3, "default")
    assert values_of("click", typed) == [{"rate": 0.2, "rounds": 3}]
    assert typed_params == {"rate": (0.2, "argv"), "rounds": (3, "default")}


def test_hydra_tells_its_composition_and_what_was_overridden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups composed, references followed, calls of resolvers left as they are written."""
    hydra = pytest.importorskip("hydra")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/small.yaml").write_text("width: 8\nlabel: w${.width}\n")
    (tmp_path / "config.yaml").write_text(
        "defaults: [model: small, _self_]\nlr: 0.1\nwarmup: ${lr}\nkey: ${oc.env:MY_KEY}\n"
        "hydra: {run: {dir: out}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "planted")
    monkeypatch.setattr(sys, "argv", ["train.py", "lr=0.5", "+depth=2"])
    found: list[Any] = []

    @hydra.main(version_base=None, config_path=str(tmp_path), config_name="config")
    def train(cfg: Any) -> None:
        found.append((collect(), sources_with()))

    train()
    ((document, params),) = found
    (composed,) = values_of("hydra", document)
    assert composed == {
        "lr": 0.5,
        "warmup": 0.5,
        "depth": 2,
        "key": "${oc.env:MY_KEY}",
        "model": {"width": 8, "label": "w${.width}"},
    }
    assert values_of("omegaconf", document) == []  # the same, a second time
    assert params["lr"] == (0.5, "argv")
    assert params["model.width"] == (8, "config file")
    assert document["hydra"]["overrides"] == ["lr=0.5", "+depth=2"]
    assert [Path(file["path"]).name for file in document["files"]] == [
        "config.yaml",
        "overrides.yaml",
    ]
    assert "planted" not in json.dumps(document)


def test_an_omegaconf_is_found_without_hydra() -> None:
    """Where the user has made one by hand."""
    omegaconf = pytest.importorskip("omegaconf")
    cfg = omegaconf.OmegaConf.create({"a": {"b": 1}, "c": "${a.b}", "d": "???"})
    assert values_of("omegaconf", collect_with(cfg)) == [{"a": {"b": 1}, "c": 1, "d": "???"}]
    assert cfg.c == 1


def test_jsonargparse_tells_nested_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while its `CLI` calls a function."""
    jsonargparse = pytest.importorskip("jsonargparse")
    found: list[Any] = []

    def train(lr: float = 0.1, width: int = 2) -> None:
        found.append(collect())

    jsonargparse.auto_cli(train, args=["--lr", "0.3"])
    assert values_of("jsonargparse", found[0]) == [{"lr": 0.3, "width": 2}]
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--model.width", type=int, default=4)
    args = parser.parse_args([])
    assert values_of("jsonargparse", collect_with(args)) == [{"model": {"width": 4}}]


def test_absl_flags_are_told() -> None:
    """Those of the program's own module, in a process of its own for they are global."""
    script = (
        "import json; from absl import app, flags\n"
        "from tachograph.provenance.arguments import collect\n"
        "flags.DEFINE_float('lr', 0.1, ''); flags.DEFINE_integer('n', 1, '')\n"
        "app.run(lambda _: print(json.dumps(collect()['parsed'])))\n"
    )
    command = [sys.executable, "-c", script, "--lr=0.4"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    (found,) = json.loads(answer.stdout)
    assert (found["parser"], found["values"]) == ("absl", {"lr": 0.4, "n": 1})


@pytest.mark.slow
def test_lightning_cli_is_found_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's values without its name, and the config file that it was given."""
    pytest.importorskip("jsonargparse")
    from lightning.pytorch import LightningModule
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("trainer: {max_epochs: 1}\nmodel: {width: 5}\n")
    command = ["fit", "--config", "c.yaml", "--trainer.logger=false"]
    monkeypatch.setattr(sys, "argv", ["train.py", *command])
    found: list[Any] = []

    class Net(LightningModule):
        def __init__(self, width: int = 2) -> None:
            super().__init__()
            found.append(collect())
            raise SystemExit  # there is nothing to train

    with pytest.raises(SystemExit):
        LightningCLI(Net)
    (values,) = values_of("lightning", found[0])
    assert values["model"] == {"width": 5}
    assert values["trainer"]["max_epochs"] == 1
    assert [file["path"] for file in found[0]["files"]] == [str(tmp_path / "c.yaml")]


def test_dataclasses_count_where_a_parser_of_them_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any other program has dataclasses that are no configuration."""

    @dataclass
    class Options:
        lr: float = 0.1

    assert collect_with(Options())["parsed"] == []
    monkeypatch.setitem(sys.modules, "tyro", sys)
    assert values_of("dataclass", collect_with(Options())) == [{"lr": 0.1}]


def test_a_parser_that_cannot_be_read_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And hides no other."""
    monkeypatch.setitem(parsers._READERS, "click", lambda: iter([1 / 0]))
    broken, found = collect_with(argparse.Namespace(a=1))["parsed"]
    assert broken == {
        "parser": "click",
        "name": "",
        "values": {},
        "missing": "ZeroDivisionError: division by zero",
    }
    assert found["values"] == {"a": 1}


# ---------------------------------------------------------------------------- nothing changes


def test_looking_keeps_no_value_alive() -> None:
    """Python's own snapshot of a function's variables would, until the function is left."""

    class Model:
        pass

    def train() -> tuple[bool, Any]:
        model = Model()
        reference = weakref.ref(model)
        seen = any(variable.value is model for variable in stack.user_variables())
        arguments.look()
        del model
        gc.collect()
        return seen, reference()

    assert train() == (True, None)


def test_what_locals_has_given_to_the_user_stays_as_it_is() -> None:
    """Reading the variables of a frame would write into it, before Python 3.13."""

    def train(lr: float) -> None:
        given_locals = locals()
        later = 3
        arguments.look()
        assert given_locals == {"lr": lr}
        assert later == 3

    train(0.1)


def test_large_and_strange_values_are_named_only() -> None:
    """A `repr` may take long, and an object may refuse to be looked at."""

    class Slow:
        def __repr__(self) -> str:
            raise AssertionError("was asked")

    inner: dict[str, Any] = {}
    inner["self"] = inner
    args = argparse.Namespace(m=Slow(), f=len, t=int, many=list(range(10_000)), inner=inner)
    (values,) = values_of("argparse", collect_with(args))
    assert values["m"].endswith("Slow")
    assert (values["f"], values["t"]) == ("len", "int")
    assert len(values["many"]) < 2_000
    assert args.inner is inner


def test_looking_is_quick() -> None:
    """Deep in a framework, with many variables: below a millisecond where nothing else runs."""
    variables = {f"name_{i}": float(i) for i in range(100)}
    found: list[Arguments] = []

    def deep(args: argparse.Namespace, levels: int) -> float:
        if levels:
            return deep(args, levels - 1)
        before = time.thread_time()
        found.append(arguments.look())
        return time.thread_time() - before

    assert min(deep(argparse.Namespace(**variables), 50) for _ in range(5)) < 0.01
    assert found[0].parsed[0].values == variables


# ---------------------------------------------------------------------------- files and params


def test_config_files_that_arguments_name_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, and from defaults of parsers; others and missing ones are not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text('{"lr": 0.1, "opt": {"name": "adam"}}')
    (tmp_path / "b.toml").write_text("depth = 3\n[opt]\nmomentum = 0.9\n")
    (tmp_path / "c.ini").write_text("[data]\npath = x\n")
    (tmp_path / "d.txt").write_text("no")
    monkeypatch.setattr(sys, "argv", ["t.py", "--config=a.json", "b.toml", "d.txt", "gone.json"])
    args = argparse.Namespace(extra=["c.ini"], lr=0.2)
    files = {Path(file["path"]).name: file for file in collect_with(args)["files"]}
    assert list(files) == ["a.json", "b.toml", "c.ini"]
    assert files["b.toml"]["format"] == "toml"
    assert sources_with(args) == {
        "extra": (["c.ini"], "argv"),
        "lr": (0.2, "argv"),
        "a.lr": (0.1, "config file"),
        "opt.name": ("adam", "config file"),
        "depth": (3, "config file"),
        "opt.momentum": (0.9, "config file"),
        "data.path": ("x", "config file"),
    }


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """Broken, binary, long, or of a format that no loaded library reads; its digest stays."""
    for name, content, reason in (
        ("broken.json", b"{", "JSONDecodeError"),
        ("binary.toml", b"\xff\xfe", "UnicodeDecodeError"),
        ("long.json", b"[" + b" " * (1 << 20) + b"]", "longer than 1 MiB"),
        ("many.json", json.dumps(list(range(30_000))).encode(), "20000 values"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        found = configs.read(file)
        assert reason in found.document["missing"]
        assert found.document["bytes"] == len(content)
        assert ("sha256" in found.document) is (name != "long.json")
        assert (found.values, found.content) == ({}, None)


def test_yaml_is_read_only_where_a_reader_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is imported for it, and a document that grows out of aliases is cut off."""
    yaml = pytest.importorskip("yaml")
    file = tmp_path / "c.yaml"
    file.write_text("a: 1\nb: [x, y]\n")
    assert configs.read(file).values == {"a": 1, "b": ["x", "y"]}
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9)]
    file.write_text("\n".join(lines))
    assert "20000 values" in configs.read(file).document["missing"]
    monkeypatch.delitem(sys.modules, "yaml")
    assert "no library" in configs.read(file).document["missing"]
    assert yaml


def test_a_file_is_kept_to_the_byte_or_without_its_secrets(tmp_path: Path) -> None:
    """A secret may stand below its name, or in a comment; then the values are kept alone."""
    file = tmp_path / "c.json"
    file.write_bytes(b'{ "lr" : 0.1 }\r\n')
    assert configs.read(file).content == file.read_bytes()
    file.write_text('{"secrets": {"first": "planted"}, "pin": {"password": 12345}, "lr": 1}')
    found = configs.read(file)
    assert json.loads(found.content or b"") == found.values
    assert found.values["lr"] == 1
    assert b"planted" not in (found.content or b"")
    assert b"12345" not in (found.content or b"")
    assert found.document["redacted"] is True
    file = tmp_path / "c.toml"
    file.write_text('lr = 1  # password = "planted"\n')
    assert configs.read(file).content == b'{"lr":1}'


def test_names_that_clash_are_kept_apart() -> None:
    """The first stays, the second stands under the name of where it was found."""
    parsed = [
        Parsed("hydra", "config", {"lr": 0.1, "seed": 1}, {"lr": "config file"}),
        Parsed("argparse", "args", {"lr": 0.2, "seed": 1}),
    ]
    assert given.params(Arguments(parsed, None, [], []), []) == [
        ("lr", 0.1, "config file"),
        ("seed", 1, "argv"),
        ("args.lr", 0.2, "argv"),
    ]


# ---------------------------------------------------------------------------- in a record


@pytest.mark.parametrize("store", ["sqlite:///{}/runs.sqlite", "parquet:///{}/runs"])
def test_what_was_given_is_recorded_and_what_is_said_counts_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """Parameters with their sources, and the config file to the byte; without a call."""
    monkeypatch.chdir(tmp_path)
    content = b'{ "depth": 3, "width": 8 }'
    (tmp_path / "base.json").write_bytes(content)
    url = store.format(tmp_path)

    def train(args: argparse.Namespace) -> str:
        with tachograph.start_run(config={"backend": url}, params={"lr": 0.5}) as run:
            run.log_params({"depth": 9}, source="framework")
            run._recorder.flush()  # what is read beside the training comes after that
        return run.run_id if args.lr else ""

    run_id = train(argparse.Namespace(config="base.json", lr=0.1, epochs=2))
    with tachograph.open(url) as opened:
        record = opened.run(run_id)
        found = {row["path"]: (row["value"], row["source"]) for row in opened.params(run_id)}
        (file,) = record.provenance["arguments"]["files"]
        (kept,) = [row for row in record.artifacts if row["kind"] == "config"]
        assert opened.open_artifact(kept["sha256"]).read() == content
    assert found == {
        "config": ("base.json", "argv"),
        "lr": (0.5, "user"),
        "epochs": (2, "argv"),
        "depth": (9, "framework"),
        "width": (8, "config file"),
    }
    assert (kept["path"], kept["sha256"]) == (file["artifact"], file["sha256"])
