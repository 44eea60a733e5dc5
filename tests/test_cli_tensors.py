"""The command on tensors: the table, curves and maps, in the terminal and as pictures."""

from __future__ import annotations

import collections
import functools
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

import tachograph
from tachograph.callbacks import tensors_host
from tachograph.cli import heatmaps, main, pictures
from tachograph.cli.page import cost_line
from tachograph.cli.render import short_name
from tachograph.tensors import histograms
from tachograph.tensors.grids import histogram_grid

Call = Callable[..., tuple[int, str, str]]
LAYERS = ("embed.weight", "layers.0.weight", "layers.1.weight", "head.bias")
STEPS = (*range(0, 20, 2), *range(20, 100, 16))


def record(folder: Path, url: str) -> None:
    """A run with a gradient that turns into NaN, one that vanishes, and a weight with updates."""
    random = np.random.default_rng(0)
    names = [*((name, "gradient") for name in LAYERS), ("w", "weight"), ("w", "update")]
    meter = tensors_host.Meter()
    config = {"backend": url, "record": {"system": False, "console": False}}
    with tachograph.start_run(name="net", config=config) as run:
        keys = None
        for step in STEPS:
            arrays = [random.normal(0, 1, (4, 8)).astype(np.float32) for _ in names]
            arrays[1] *= np.float32(1e-5)
            arrays[5] = arrays[4] * np.float32(0.01)
            if step > 50:
                arrays[2][0, :3] = np.nan
            if keys is None:
                pairs = zip(names, arrays, strict=True)
                keys = tuple(tensors_host.key(name, kind, array) for (name, kind), array in pairs)
            packed = tensors_host.pack([meter.measure(array) for array in arrays])
            found = [tensors_host.histogram(array) for array in arrays] if step % 4 == 0 else None
            run.log_statistics(keys, packed, step, histograms=found)
            run.log({"loss": 1 / (step + 1)}, step=step)
            run.log({"gradient_norm": 2.0}, step=step, context={"phase": "train"})
        costs = {"share": 0.013, "milliseconds": 0.21, "bytes": 3.4e6, "dropped": 0}
        named = {f"recording/{name}": value for name, value in costs.items()}
        run.log(named, step=100, context={"phase": "recording"})
        run.event("health", "NaN in the gradient of layers.1.weight", level="error")
    with tachograph.start_run(name="empty", config=config):
        pass


@pytest.fixture(scope="module", params=["sqlite", "parquet"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose configured store holds the runs."""
    folder = tmp_path_factory.mktemp("tensors")
    url = f"{request.param}:///runs" + ".sqlite" * (request.param == "sqlite")
    (folder / "tachograph.toml").write_text(f'backend = "{url}"\n')
    record(folder, f"{request.param}:///{folder}/{url.rpartition('/')[2]}")
    return folder


@pytest.fixture
def call(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Run a command line in that folder; returns status, output and errors."""
    monkeypatch.chdir(recorded)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    yield run
    for picture in recorded.glob("picture.*"):
        picture.unlink()


# ---------------------------------------------------------------------------- the table


def test_tensors_are_listed_the_worst_first(call: Call) -> None:
    """NaN, then what is far from its peers; what is shown is said."""
    status, out, _ = call("tensors", "net")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].strip() == "step 84"
    assert "layers.1.weight" in lines[2]
    assert "3 NaN of 32" in lines[2]
    assert "layers.0.weight" in lines[3]
    assert "below peers" in lines[3]
    assert "4×8" in out
    assert len(lines) == 2 + 6
    assert "5 more" in call("tensors", "net", "--limit", "1")[1]


def test_tensors_as_json_are_complete(call: Call) -> None:
    """All of them, with every statistic, for programs; NaN is null."""
    rows = json.loads(call("tensors", "net", "--json")[1])
    assert len(rows) == 6
    assert (rows[0]["name"], rows[0]["nan"], rows[0]["context"]) == ("layers.1.weight", 3, {})
    weight = next(row for row in rows if row["kind"] == "weight")
    assert weight["update_ratio"] == pytest.approx(0.01, rel=1e-4)
    assert weight["shape"] == [4, 8]
    assert len(json.loads(call("tensors", "net", "-k", "weight", "--json")[1])) == 1
    one = json.loads(call("tensors", "net", "--name", "layers.*", "--step", "4", "--json")[1])
    assert [row["step"] for row in one] == [4, 4]


def test_tensors_are_sorted_as_asked(call: Call) -> None:
    """By a column up or down, or in the order of recording."""

    def names(*options: str) -> list[str]:
        rows = json.loads(call("tensors", "net", "-k", "gradient", "--json", *options)[1])
        return [row["name"] for row in rows]

    assert names("--sort", "l2")[0] == "layers.0.weight"
    assert names("--sort", "-l2")[-1] == "layers.0.weight"
    assert names("--sort", "model") == list(LAYERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tensors", "empty"), "no tensors are recorded"),
        (("tensors", "net", "--kind", "gradients"), "did you mean 'gradient'"),
        (("tensors", "net", "--name", "hed.bias"), "did you mean 'head.bias'"),
        (("tensors", "net", "--step", "first"), "a number or 'last'"),
        (("tensors", "net", "--step", "3"), "at step 3; there are some from 0 to 84"),
        (("tensors", "net", "--sort", "norm"), "--sort takes 'worst', 'model' or a column"),
        (("plot", "net", "-t", "nothing"), "has no tensor nothing"),
        (("plot", "net", "--layers", "--statistic", "mode"), "no statistic 'mode'; there are: l2"),
        (("plot", "net", "--layers", "-m", "loss"), "--metric is for curves of metrics"),
        (("plot", "net", "empty", "--layers"), "a map is of one run"),
        (("plot", "net", "--histogram"), "choose with --tensor one of: embed.weight"),
        (("plot", "net", "--layers", "-o", "x.gif"), "ends with .png, .svg, .pdf"),
        (("plot", "net", "-o", "no/such/folder.png"), "cannot write no/such/folder.png"),
    ],
)
def test_mistakes_are_told(call: Call, arguments: tuple[str, ...], message: str) -> None:
    """On the error stream, with a status, and with what to do."""
    status, out, err = call(*arguments)
    assert (status, out) == (1, "")
    assert message in err


# ---------------------------------------------------------------------------- curves and maps


def test_curves_of_tensors(call: Call) -> None:
    """Names or patterns, a statistic, and the points for programs."""
    out = call("plot", "net", "-t", "layers.*", "--statistic", "std", "--log")[1]
    assert "std of the gradient" in out
    assert "net: layers.0.weight" in out
    curves = json.loads(call("plot", "net", "-t", "w", "--statistic", "update_ratio", "--json")[1])
    assert curves[0]["steps"] == list(STEPS)
    assert curves[0]["values"] == [pytest.approx(0.01, rel=1e-4)] * len(STEPS)


def test_map_of_layers(call: Call) -> None:
    """A row per tensor, within 80 columns, with NaN marked and a legend."""
    out = call("plot", "net", "--layers")[1]
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == list(LAYERS)  # in the order of the model
    assert "×" in lines[3]
    assert not any("×" in line for line in (lines[1], lines[2], lines[4]))
    assert "▁" in lines[2]
    assert lines[5].split() == ["step", "0", "42", "84"]
    assert "logarithmic; × NaN or Inf" in lines[6]
    grid = json.loads(call("plot", "net", "--layers", "--json")[1])
    assert (grid["steps"], len(grid["values"])) == (list(STEPS), 4)


@pytest.mark.parametrize(
    "arguments", [("--layers",), ("--histogram", "-t", "head.bias"), ("--layers", "-t", "w")]
)
@pytest.mark.parametrize("colours", ["truecolor", "standard"])
def test_maps_fit_a_terminal(
    call: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], colours: Any
) -> None:
    """In 80 columns, with many or few colours, which tell values apart."""
    terminal = functools.partial(Console, width=80, force_terminal=True, color_system=colours)
    monkeypatch.setattr(heatmaps, "console", terminal)
    texts = [Text.from_ansi(line) for line in call("plot", "net", *arguments)[1].splitlines()]
    assert max(text.cell_len for text in texts) <= 80
    styles = {str(span.style) for text in texts[1:-2] for span in text.spans}
    assert len(styles) >= (4 if colours == "truecolor" else 2)


def test_map_of_values(call: Call) -> None:
    """Shares of the values by steps; a row for zero, both signs, exact counts for programs."""
    out = call("plot", "net", "--histogram", "-t", "head.bias")[1]
    assert "values of head.bias (gradient)" in out
    assert "share of the values" in out
    grid = json.loads(call("plot", "net", "--histogram", "-t", "head.bias", "--json")[1])
    assert grid["steps"] == [step for step in STEPS if step % 4 == 0]
    assert grid["edges"] == sorted(grid["edges"])
    assert len(grid["counts"]) == len(grid["edges"]) - 1
    assert [sum(column) for column in zip(*grid["counts"], strict=True)] == [32] * len(
        grid["steps"]
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--layers",),
        ("--histogram", "--tensor", "layers.1.weight"),
        ("--tensor", "layers.*"),
        ("--metric", "loss", "--log"),
    ],
)
@pytest.mark.parametrize("recorded", ["sqlite"], indirect=True)
def test_pictures(call: Call, recorded: Path, arguments: tuple[str, ...]) -> None:
    """Each view as PNG and as SVG; the names of the layers are in it."""
    status, out, _ = call("plot", "net", *arguments, "--output", "picture.png")
    assert (status, out) == (0, "picture.png\n")
    png = (recorded / "picture.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") >= 1000
    assert call("plot", "net", *arguments, "-o", "picture.svg")[0] == 0
    root = ElementTree.parse(recorded / "picture.svg").getroot()
    assert root.tag.endswith("svg")
    if arguments == ("--layers",):
        svg = (recorded / "picture.svg").read_text()
        assert all(f"<!-- {name} -->" in svg for name in LAYERS)
        assert "red: NaN or Inf" in svg


def test_without_matplotlib_it_says_what_to_install(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else works without it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, _, err = call("plot", "net", "--layers", "-o", "picture.png")
    assert status == 1
    assert "pip install 'tachograph[plot]'" in err
    assert call("plot", "net", "--layers")[0] == 0


# ---------------------------------------------------------------------------- the page


def test_show_tells_of_tensors_health_and_cost(call: Call) -> None:
    """Health first; the worst tensors; the cost in one line and not among the metrics."""
    out = call("show", "net")[1]
    assert out.index("Health") < out.index("Metrics") < out.index("Tensors")
    assert "⚠ NaN in the gradient of layers.1.weight" in out
    assert out.count("NaN in the gradient") == 1
    assert "1 weight, 4 gradients, 1 update; 15 times from step 0 to 84" in out
    assert "gradient_norm 2, at most 2 (phase=train)" in out
    assert "3 NaN of 32" in out
    assert "took 1.3 % of the time, 0.21 ms a step, 3.2 MiB; nothing dropped" in out
    assert "recording/" not in out
    document = json.loads(call("show", "net", "--json")[1])
    assert {row["name"] for row in document["tensors"]} == {*LAYERS, "w"}
    assert "Tensors" not in call("show", "empty")[1]


def test_cost_in_words() -> None:
    """What is known is said; what was lost always."""
    assert cost_line({}) == cost_line({"dropped": 0.0}) == ""
    lost = {"share": 0.05, "tensor_milliseconds": 12.3, "dropped": 1200.0, "lag_seconds": 70.0}
    assert cost_line(lost) == (
        "took 5 % of the time, 12 ms a record of tensors; 1,200 records dropped;"
        " stores at most 70.0 s behind"
    )


def test_short_names_keep_what_tells_them_apart() -> None:
    """Long parts are cut, numbers stay."""
    long = "encoder.layers.{}.self_attention.output_projection.weight"
    cut = {short_name(long.format(number), 30) for number in range(12)}
    assert len(cut) == 12
    assert max(map(len, cut)) <= 30
    assert short_name("fc.weight", 30) == "fc.weight"
    assert len(short_name("a" * 50, 20)) == 20
    assert len(short_name(".".join("abcdefghijklmnop"), 20)) == 20


def test_classes_of_values_are_whole_bins() -> None:
    """So that counts stay exact; the picture has as many classes as it can show."""
    edges = {histograms.edge(bin_) for bin_ in range(-1100, 1100)}
    values = np.random.default_rng(1).normal(0, 1, 1000).astype(np.float32)
    pairs = tuple(tensors_host.histogram(values))
    row = {"name": "w", "context": "{}", "run_id": "r", "step": 0, "histogram": pairs}
    row |= {"min": float(values.min()), "max": float(values.max())}
    for classes in (5, 21, pictures.CLASSES):
        grid = histogram_grid([row], classes)
        assert len(grid.counts) <= classes + 2
        assert set(grid.edges) <= edges
        expected, _ = np.histogram(values, grid.edges)
        assert [count for (count,) in grid.counts] == expected.tolist()


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        ([1.0, 1.1], [1.0, 1.25]),
        ([-1.1, -1.2], [-1.25, -1.0]),
        ([0.0, 0.0], [0.0, histograms.edge(1)]),
        ([-1.1, 0.0, 1.1], [-1.25, -1.0, 1.0, 1.25]),
    ],
)
def test_classes_end_where_the_values_end(values: list[float], edges: list[float]) -> None:
    """No room is taken by what does not occur; zero has a class between both signs."""
    counts = collections.Counter(map(histograms.bin_of, values))
    row = {"name": "w", "context": "{}", "run_id": "r", "step": 0, "histogram": (*counts.items(),)}
    grid = histogram_grid([row | {"min": min(values), "max": max(values)}], 21)
    occupied = [at for at, (count,) in enumerate(grid.counts) if count]
    assert (occupied[0], occupied[-1]) == (0, len(grid.counts) - 1)
    found = [grid.edges[0], *(e for e in grid.edges if e in edges), grid.edges[-1]]
    assert sorted(set(found)) == edges
