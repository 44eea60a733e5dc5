"""Laws of the configuration: where values come from, what wins, and what errors say."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph import config_files
from tachograph.config import (
    SETTINGS,
    Config,
    HealthConfig,
    RecordConfig,
    is_disabled,
    load_config,
)
from tachograph.errors import ConfigError
from tachograph.values import flatten

DESIGN = """\
project = "churn"
backend = ["parquet:////data/runs", "sqlite:///runs.sqlite"]
journal_limit = "10 GiB"

[tags]
team = "vision"
"odd.key" = 4

[record]
weights = "full"   # a comment
every = 100
budget = 0.05
console = true
"""


def load(
    folder: Path, config: Any = None, environ: dict[str, str] | None = None, **more: Any
) -> Config:
    """Load without the environment of the test run."""
    return load_config(config, environ=environ or {}, cwd=folder, arguments=more or None)


def fail(
    folder: Path, config: Any = None, environ: dict[str, str] | None = None, **more: Any
) -> str:
    """The message of the error that loading raises."""
    with pytest.raises(ConfigError) as caught:
        load(folder, config, environ, **more)
    return str(caught.value)


# ---------------------------------------------------------------------------- values


def test_defaults_are_those_of_the_table(tmp_path: Path) -> None:
    """Without a file everything is the default, and says so."""
    config = load(tmp_path)
    assert config.backend == (f"sqlite:///{tmp_path}/.tachograph/runs.sqlite",)
    assert config.record == RecordConfig()
    assert (config.project, config.user, config.journal, config.file) == (None,) * 4
    assert config.journal_limit == 100 * 2**30
    assert config.tags == {}
    assert {str(origin) for origin in config.origins.values()} == {"default"}


def test_file_values_carry_their_lines(tmp_path: Path) -> None:
    """Each value is the file's, checked and converted, with the line it stands in."""
    path = tmp_path / "tachograph.toml"
    path.write_text(DESIGN)
    config = load(tmp_path)
    assert config.project == "churn"
    assert config.backend == ("parquet:////data/runs", f"sqlite:///{tmp_path}/runs.sqlite")
    assert config.journal_limit == 10 * 2**30
    assert config.tags == {"team": "vision", "odd.key": "4"}
    assert config.record == RecordConfig("full", every=100, budget=0.05, console=True)
    assert config.file == path
    assert str(config.origins["record.every"]) == f"{path}, line 11"
    assert str(config.origins["tags.team"]) == f"{path}, line 6"
    assert str(config.origins["record.durability"]) == "default"


def test_every_setting_can_be_set_in_every_way(tmp_path: Path) -> None:
    """No key is forgotten in the file, the environment, the arguments or the result."""
    samples = {
        "project": ("p", "p"),
        "backend": ("memory://x,sqlite:////a.db", ("memory://x", "sqlite:////a.db")),
        "user": ("ada", "ada"),
        "tags": ("a=1,b=x y", {"a": "1", "b": "x y"}),
        "journal": ("/j", "/j"),
        "journal_limit": ("1.5 GB", 1_500_000_000),
        "record.weights": ("off", "off"),
        "record.gradients": ("full", "full"),
        "record.every": ("7", 7),
        "record.updates": ("off", False),
        "record.histograms": ("off", "off"),
        "record.snapshots": ("10, 20", (10, 20)),
        "record.budget": ("0.5", 0.5),
        "record.durability": ("call", "call"),
        "record.code": ("refuse", "refuse"),
        "record.on_error": ("raise", "raise"),
        "record.console": ("yes", True),
        "record.system": ("0", False),
        "record.system_interval": ("2", 2.0),
        "record.checkpoints": ("copy", "copy"),
        "record.exit_deadline": ("0", 0.0),
        "health.enabled": ("off", False),
        "health.nan": ("no", False),
        "health.vanishing_gradient": ("1e-3", 1e-3),
        "health.exploding_gradient": ("20", 20.0),
        "health.dead_units": ("off", False),
        "health.frozen_weights": ("30", 30),
        "health.update_ratio_high": ("0.5", 0.5),
        "health.update_ratio_low": ("false", False),
        "health.divergence": ("2", 2.0),
        "health.plateau": ("500", 500),
        "health.stalled": ("0", False),
        "health.patience": ("3", 3),
    }
    assert list(samples) == [setting.key for setting in SETTINGS]
    for setting in SETTINGS:
        text, expected = samples[setting.key]
        section, _, name = setting.key.rpartition(".")
        by_environment = load(tmp_path, environ={setting.variable: text})
        found = _setting(by_environment, setting.key)
        assert found == expected
        assert isinstance(found, bool) == isinstance(expected, bool)
        given = list(expected) if isinstance(expected, tuple) else expected
        for config in (
            load(tmp_path, {section: {name: given}} if section else {name: given}),
            load_config(arguments={setting.key: given}, environ={}, cwd=tmp_path),
        ):
            assert _setting(config, setting.key) == expected


def _setting(config: Config, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)


def test_settings_document_every_key() -> None:
    """The table is complete, and each row says what it is for."""
    for table, of in (("record.", RecordConfig), ("health.", HealthConfig)):
        fields = {f"{table}{name}" for name in of._fields}
        assert {s.key for s in SETTINGS if s.key.startswith(table)} == fields
    assert all(s.help.endswith(".") and s.type for s in SETTINGS)
    assert next(s for s in SETTINGS if s.key == "record.weights").choices == (
        "off",
        "stats",
        "full",
    )


def test_precedence(tmp_path: Path) -> None:
    """Argument over environment over file over default; tags are put together."""
    (tmp_path / "tachograph.toml").write_text(
        'project = "file"\ntags = { a = "file", b = "file", c = "file" }\nrecord.every = 1\n'
    )
    environ = {"TACHOGRAPH_PROJECT": "variable", "TACHOGRAPH_TAGS": "b=variable,c=variable"}
    config = load(tmp_path, environ=environ)
    assert config.project == "variable"
    assert str(config.origins["project"]) == "environment TACHOGRAPH_PROJECT"
    config = load(tmp_path, environ=environ, project="argument", tags={"c": 3}, every=None)
    assert config.project == "argument"
    assert str(config.origins["project"]) == "argument"
    assert config.tags == {"a": "file", "b": "variable", "c": "3"}
    assert config.record.every == 1


def test_argument_may_leave_out_the_table(tmp_path: Path) -> None:
    """A callback's keyword 'weights' is the key 'record.weights'."""
    config = load(tmp_path, weights="off", every=3)
    assert (config.record.weights, config.record.every) == ("off", 3)
    assert str(config.origins["record.weights"]) == "argument"


def test_empty_variable_is_not_set(tmp_path: Path) -> None:
    """`TACHOGRAPH_PROJECT= python train.py` takes the file's value."""
    assert load(tmp_path, environ={"TACHOGRAPH_PROJECT": ""}).project is None


def test_other_variables_are_left_alone(tmp_path: Path) -> None:
    """Variables that are no settings neither fail nor leak into the result."""
    names = ("DISABLED", "TOKEN", "RUN_ID", "LAUNCH_ID", "SOMETHING")
    environ = {f"TACHOGRAPH_{name}": "hunter2" for name in names}
    assert "hunter2" not in repr(load(tmp_path, environ=environ))


def test_mapping_takes_the_place_of_the_file(tmp_path: Path) -> None:
    """With config={…} no file is read, the environment still wins."""
    (tmp_path / "tachograph.toml").write_text("broken")
    config = load(tmp_path, {"project": "p", "record": {"every": 2}}, {"TACHOGRAPH_USER": "u"})
    assert (config.project, config.user, config.record.every) == ("p", "u", 2)
    assert config.file is None
    assert str(config.origins["project"]) == "config"


def test_result_is_frozen_and_travels(tmp_path: Path) -> None:
    """Nobody changes a shared configuration; a worker gets an equal one."""
    config = load(tmp_path, tags={"a": "b"})
    with pytest.raises(AttributeError):
        config.project = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.tags["a"] = "c"  # type: ignore[index]
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


# ---------------------------------------------------------------------------- finding the file


def test_nearest_file_wins(tmp_path: Path) -> None:
    """Found upwards; a pyproject without our table does not stop the walk."""
    inner = tmp_path / "a/b/c"
    inner.mkdir(parents=True)
    (tmp_path / "tachograph.toml").write_text('project = "outer"')
    (tmp_path / "a/b/pyproject.toml").write_text('[project]\nname = "tachograph-user"\n')
    assert load(inner).project == "outer"
    assert load(inner).backend == (f"sqlite:///{tmp_path}/.tachograph/runs.sqlite",)
    (tmp_path / "a/pyproject.toml").write_text('[tool.tachograph]\nproject = "inner"\n')
    config = load(inner)
    assert config.project == "inner"
    assert str(config.origins["project"]) == f"{tmp_path}/a/pyproject.toml, line 2"
    (tmp_path / "a/tachograph.toml").write_text('project = "own file"')
    assert load(inner).project == "own file"


def test_foreign_broken_pyproject_is_passed_over(tmp_path: Path) -> None:
    """A file that has nothing to do with us cannot stop a training."""
    (tmp_path / "pyproject.toml").write_text("[project\n")
    assert load(tmp_path).file is None


def test_named_file(tmp_path: Path) -> None:
    """By argument or TACHOGRAPH_CONFIG, the argument first; a missing one is an error."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/mine.toml").write_text('project = "mine"\njournal = "j"')
    (tmp_path / "other.toml").write_text('project = "other"')
    environ = {"TACHOGRAPH_CONFIG": "sub/mine.toml"}
    config = load(tmp_path, environ=environ)
    assert (config.project, config.journal) == ("mine", f"{tmp_path}/sub/j")
    assert load(tmp_path, Path("other.toml"), environ).project == "other"
    assert fail(tmp_path, "gone.toml") == f"there is no config file {tmp_path}/gone.toml"
    assert "cannot be read" in fail(tmp_path, tmp_path / "sub")
    assert "must be a path or a mapping" in fail(tmp_path, 3)


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    """What is remembered of a file ends when the file changes, appears or goes."""
    path = tmp_path / "tachograph.toml"
    assert load(tmp_path).project is None
    path.write_text('project = "one"')
    assert load(tmp_path).project == "one"
    path.write_text('project = "three"')
    assert load(tmp_path).project == "three"
    path.unlink()
    assert load(tmp_path).project is None


def test_relative_paths_start_where_they_are_written(tmp_path: Path) -> None:
    """In a file from its folder, in a variable or an argument from the working directory."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "tachograph.toml").write_text('backend = "parquet:///runs"')
    assert load(inner).backend == (f"parquet:///{tmp_path}/runs",)
    environ = {"TACHOGRAPH_BACKEND": "parquet:///runs"}
    assert load(inner, environ=environ).backend == (f"parquet:///{inner}/runs",)
    assert load(inner, backend="parquet:///runs").backend == (f"parquet:///{inner}/runs",)


def test_yaml_of_the_same_shape(tmp_path: Path) -> None:
    """YAML is read with its lines, and 'off' is the text that it looks like."""
    pytest.importorskip("yaml")
    path = tmp_path / "tachograph.yaml"
    path.write_text("project: churn\nuser:\nrecord:\n  weights: off\n  system: false\n")
    config = load(tmp_path)
    assert (config.project, config.record.weights, config.record.system) == ("churn", "off", False)
    assert str(config.origins["record.weights"]) == f"{path}, line 4"
    path.write_text("project: churn\nrecord:\n  wieghts: off\n")
    expected = f"{path}, line 3: unknown key 'record.wieghts'; did you mean 'record.weights'?"
    assert fail(tmp_path) == expected
    path.write_text("project: [churn\nuser: x")
    assert fail(tmp_path).startswith(f"{path}, line 2: not valid YAML: ")
    path.write_text("- a\n")
    assert fail(tmp_path) == f"{path}, line 1: must be a mapping of settings"
    path.write_text("")
    assert load(tmp_path).file == path


def test_yaml_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyYAML is needed for YAML files alone."""
    (tmp_path / "tachograph.yml").write_text("project: x")
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "pip install 'tachograph[yaml]'" in fail(tmp_path)


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "[record]\nwieghts = 1",
            2,
            "unknown key 'record.wieghts'; did you mean 'record.weights'?",
        ),
        (
            "[recrod]\nweights = 1",
            2,
            "unknown key 'recrod.weights'; did you mean 'record.weights'?",
        ),
        ("\nevery = 1", 2, "unknown key 'every'; did you mean 'record.every'?"),
        ("zzz = 1", 1, "unknown key 'zzz'"),
        ("\n\n[zzz]", 3, "unknown key 'zzz'"),
        ("record = 3", 1, "'record' must be a table, got 3"),
        ("[[record]]\nevery = 1", 1, "'record' must be a table, got [{'every': 1}]"),
        ("project = 3", 1, "'project' must be text, got 3"),
        ('project = " "', 1, "'project' must be text, got ' '"),
        ("tags = { a = [1] }", 1, "'tags.a' must be text, a number, true or false, got [1]"),
        (
            "backend = []",
            1,
            "'backend' must be the URL of a store, or a list of several, got []",
        ),
        (
            "backend = 'sqllite:///a'",
            1,
            "'backend': no store has the scheme 'sqllite'; did you mean 'sqlite'?",
        ),
        (
            "journal_limit = '5 apples'",
            1,
            "'journal_limit' must be bytes, as a whole number or as in '10 GiB', got '5 apples'",
        ),
        (
            "[record]\n\nevery = 'atuo'",
            3,
            "'record.every' must be 'auto' or a whole number above 0, got 'atuo'",
        ),
        (
            "[record]\nevery = 0",
            2,
            "'record.every' must be 'auto' or a whole number above 0, got 0",
        ),
        (
            "[record]\nevery = true",
            2,
            "'record.every' must be 'auto' or a whole number above 0, got True",
        ),
        (
            "[record]\nbudget = 2",
            2,
            "'record.budget' must be a number above 0, at most 1, got 2",
        ),
        (
            "[record]\nbudget = nan",
            2,
            "'record.budget' must be a number above 0, at most 1, got nan",
        ),
        ("[record]\nconsole = 'no'", 2, "'record.console' must be true or false, got 'no'"),
        (
            "[record]\nweights = 'stat'",
            2,
            "'record.weights' must be one of 'off', 'stats', 'full', got 'stat'; did you "
            "mean 'stats'?",
        ),
        (
            "record.code = ['a']",
            1,
            "'record.code' must be one of 'snapshot', 'allow', 'refuse', got ['a']",
        ),
        (
            "api_token = 'x'",
            1,
            "unknown key 'api_token'; secrets belong into the environment variable "
            "TACHOGRAPH_TOKEN",
        ),
    ],
)
def test_error_names_file_line_and_key(tmp_path: Path, text: str, line: int, message: str) -> None:
    """Whoever reads the message knows where to put the cursor and what to type."""
    path = tmp_path / "tachograph.toml"
    path.write_text(text)
    assert fail(tmp_path) == f"{path}, line {line}: {message}"


@pytest.mark.parametrize(
    ("text", "line"), [("user = 'a'\nproject 'b'\n\n", 2), ("user = 'a'\n\nx = [1,\n", 3)]
)
def test_syntax_error_names_the_line(tmp_path: Path, text: str, line: int) -> None:
    """The words are those of the standard library's parser, the place is ours to say."""
    path = tmp_path / "tachograph.toml"
    path.write_text(text)
    assert fail(tmp_path).startswith(f"{path}, line {line}: not valid TOML: ")


def test_errors_of_other_places_name_them(tmp_path: Path) -> None:
    """A variable, an argument and a mapping have no line but a name."""
    assert fail(tmp_path, environ={"TACHOGRAPH_RECORD_EVERY": "often"}) == (
        "environment TACHOGRAPH_RECORD_EVERY: 'record.every' must be 'auto' or a whole number"
        " above 0, got 'often'"
    )
    assert fail(tmp_path, environ={"TACHOGRAPH_TAGS": "a"}).startswith(
        "environment TACHOGRAPH_TAGS"
    )
    assert fail(tmp_path, wieghts="off") == (
        "argument: unknown key 'wieghts'; did you mean 'record.weights'?"
    )
    assert fail(tmp_path, {"record": {"evry": 1}}) == (
        "config: unknown key 'record.evry'; did you mean 'record.every'?"
    )


def test_secret_in_a_url_is_not_repeated(tmp_path: Path) -> None:
    """The message ends up in logs and records."""
    path = tmp_path / "tachograph.toml"
    path.write_text('project = "x"\nbackend = "https://ada:hunter2@lab.example"')
    message = fail(tmp_path)
    assert message.startswith(f"{path}, line 2: 'backend': ")
    assert "TACHOGRAPH_TOKEN" in message
    assert "hunter2" not in message


def test_wrong_encoding_is_said(tmp_path: Path) -> None:
    """Bytes that are no text are an error of ours, not a traceback; a BOM is nothing."""
    path = tmp_path / "tachograph.toml"
    path.write_bytes(b'project = "\xff"')
    assert "is not UTF-8" in fail(tmp_path)
    path.write_bytes(b'\xef\xbb\xbfproject = "x"\r\nuser = "u"\r\n')
    assert str(load(tmp_path).origins["user"]) == f"{path}, line 2"


def test_pyproject_table_that_is_none(tmp_path: Path) -> None:
    """`tool.tachograph = 3` is an error with its line; a named file must have the table."""
    path = tmp_path / "pyproject.toml"
    path.write_text("\n[tool]\ntachograph = 3\n")
    assert fail(tmp_path) == f"{path}, line 3: 'tool.tachograph' must be a table"
    path.write_text("[tool.other]\n")
    assert fail(tmp_path, path) == f"{path} has no table [tool.tachograph]"


# ---------------------------------------------------------------------------- lines of TOML

TRICKY = '''\
# [comment]
a = """
b = 1
""" # c = 2
"quoted.key" = 'x = ['
[ d . "e" ]
f = [ # g = 1
  { h = 1 }, [1, "]"],
  2024-01-01 10:00:00,
]
i.j = { k = 1, l = { m = "}" } }
n = \'\'\'
o = \'\'\'\'\'
[[p]]
q = ""
r = -1.5e3
'''


def test_lines_of_tricky_toml() -> None:
    """Strings, arrays, inline tables and comments do not lead the line finder astray."""
    tomllib.loads(TRICKY)
    assert config_files._toml_lines(TRICKY) == {
        "a": 2, "quoted.key": 5, "d": 6, "d.e": 6, "d.e.f": 7, "d.e.f.h": 8, "d.e.i": 11,
        "d.e.i.j": 11, "d.e.i.j.k": 11, "d.e.i.j.l": 11, "d.e.i.j.l.m": 11, "d.e.n": 12,
        "p": 14, "p.q": 15, "p.r": 16,
    }  # fmt: skip


_NAMES = st.sampled_from(["a", "b", '"c d"', "'#e'", '"[f]"', "a-b", "1"])
_SCALARS = st.sampled_from(
    [
        *("1", "-2.5", "true", "07:32:00", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00"),
        *('"x"', "'# ]'", '"\\"]"', '""', "''", '""""""', "''''''"),
        *('"""\n[x]\ny = 1\n"""', "'''\n}'''"),
    ]
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n # ] \n" + " ,\n".join(items) + "]"),
        st.lists(inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"k{n} = {item}" for n, item in enumerate(items)) + "}"
        ),
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(_NAMES, _NAMES, _VALUES, st.booleans()), max_size=8))
def test_every_key_of_any_toml_has_its_line(items: list[tuple[str, str, str, bool]]) -> None:
    """Compared with the standard parser: no key is missed, and each line shows its key."""
    text = ""
    for number, (table, name, value, blank) in enumerate(items):
        text += "\n # x = 1\n" if blank else ""
        text += f"[t{number}.{table}]\n{name} . n{number} = {value}\n"
    document, lines = tomllib.loads(text), config_files._toml_lines(text)
    source = text.split("\n")
    for number in range(len(items)):
        found = [key for key in lines if key.rpartition(".")[2] == f"n{number}"]
        assert [source[lines[key] - 1].count(f". n{number} =") for key in found] == [1]
    for key in flatten(document):
        assert key in lines


# ---------------------------------------------------------------------------- switches and cost


def test_disabled_takes_words() -> None:
    """1, true, yes and on switch off; all else does not."""
    assert all(is_disabled({"TACHOGRAPH_DISABLED": word}) for word in ("1", "true", "YES", " on "))
    assert not any(is_disabled({"TACHOGRAPH_DISABLED": word}) for word in ("", "0", "off", "nah"))
    assert not is_disabled({})


def _cpu_ms(repeats: int, folder: Path) -> float:
    started = time.process_time()
    for _ in range(repeats):
        load_config(cwd=folder, arguments={"weights": "off", "tags": {"a": "b"}})
    return (time.process_time() - started) / repeats * 1000


def test_repeated_load_is_cheap(tmp_path: Path) -> None:
    """A callback may load the configuration at each fit: at most 0.3 ms of CPU time."""
    folder = tmp_path.joinpath(*"abcdefgh")
    folder.mkdir(parents=True)
    (tmp_path / "tachograph.toml").write_text(DESIGN)
    assert min(_cpu_ms(20, folder) for _ in range(40)) <= 0.3  # others use the caches too


def test_first_load_is_quick_and_light(tmp_path: Path) -> None:
    """The first load of a process takes at most 10 ms and imports no YAML, store or difflib."""
    (tmp_path / "tachograph.toml").write_text(DESIGN)
    code = (
        "import sys, time\n"
        "from tachograph.config import load_config\n"
        "started = time.process_time()\n"
        "load_config()\n"
        "print(time.process_time() - started)\n"
        "bad = {'yaml', 'sqlite3', 'difflib', 'importlib.metadata'}\n"
        "print(sorted(m for m in sys.modules if m in bad or m.startswith('tachograph.backends')))\n"
    )
    command = [sys.executable, "-I", "-c", code]
    runs = [
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    outputs = [run.stdout.splitlines() for run in runs]
    assert {output[1] for output in outputs} == {"[]"}
    assert min(float(output[0]) for output in outputs) <= 0.010
