"""Laws of the filter language."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.errors import QueryError
from tachograph.reading.facts import (
    Facts,
    choose_context,
    package_versions,
    spell_metric,
    version_key,
)
from tachograph.reading.filters import compile_filter, compile_path
from tachograph.records import now_us


def summary(last: float | None, special: str | None = None, **more: Any) -> dict[str, Any]:
    """A row of the table `summaries`, as far as filters read it."""
    return {"last": last, "special": special, "min": 0.05, "max": 1.0, "mean": 0.5} | more


FACTS = Facts(
    row={
        "run_id": "r1",
        "status": "failed",
        "project": "churn",
        "name": "resnet 18",
        "started_at": 1_767_312_000_000_000,  # 2026-01-02T00:00:00Z
        "ended_at": None,
        "attempt": 2,
    },
    metrics={
        "val_loss": {"{}": summary(0.08, count=7), '{"phase":"test"}': summary(0.3)},
        "val/acc": {'{"phase":"test"}': summary(0.9)},
        "loss": {'{"phase":"test"}': summary(0.2), '{"phase":"train"}': summary(0.1)},
        "fold": {'{"fold":0,"phase":"test"}': summary(1.0), '{"fold":1}': summary(2.0)},
        "bad": {"{}": summary(None, "nan")},
        "lr-Adam/pg1": {"{}": summary(0.001)},
    },
    params={"lr": 0.001, "optimizer.lr": 0.01, "optimizer": "adam", "amp": True, "none": None},
    tags={"stage": "prod", "my tag": "x"},
    packages={"torch": "2.10.1+cu121", "scikit-learn": "1.9.0rc1"},
)

TRUE = [
    "status == 'failed'",
    "status = 'failed'",
    'status == "failed"',
    "'failed' == status",
    "status != 'finished' and project = 'churn'",
    "status in ('failed', 'lost')",
    "status in ['failed']",
    "status not in ('running',)",
    "not status in ('running')",
    "name like 'resnet%'",
    "name like 'resnet __'",
    "name not like 'RESNET%'",
    "attempt == 2",
    "attempt in (1, 2)",
    "ended_at is null",
    "ended_at == null",
    "ended_at is None",
    "started_at is not null",
    "started_at >= '2026-01-01'",
    "started_at < '2026-01-02T00:00:01Z'",
    "started_at == '2026-01-02T00:00:00+00:00'",
    "'2026-01-01T00:00:00Z' < started_at <= '2026-01-02T00:00:00Z'",
    "started_at <= ago('1s')",
    "metrics.val_loss < 0.1",
    "metrics.val_loss<1e-1",
    "metrics.val_loss > -1",
    "0 < metrics.val_loss < 1",
    "metrics.val_loss.min == .05",
    "metrics.val_loss.count == 7",
    "metrics['val_loss'].max == 1.0",
    "metrics['val_loss', phase='test'] == 0.3",
    "metrics['val/acc', phase = 'test'].mean == 0.5",
    "metrics.val/acc > 0.8",
    "metrics['loss', phase='train'] == 0.1",
    "metrics['fold', fold=0] == 1",
    "metrics['fold', fold=1] == 2",
    "metrics.lr-Adam/pg1 == 0.001",
    "metrics.bad == nan",
    "params.lr < " + "9" * 5000,
    "metrics.missing is null",
    "metrics['loss', phase='nothing'] is null",
    "params.lr == 1e-3",
    "params.optimizer.lr > params.lr",
    "params['optimizer.lr'] == 0.01",
    "params.optimizer == 'adam'",
    "params.amp",
    "params.amp == true",
    "not params.amp == false",
    "params.none is null",
    "params.lr != '0.001'",
    "tags.stage == 'prod'",
    "tags['my tag'] == 'x'",
    "packages.torch >= '2.4'",
    "packages.torch > '2.9'",
    "packages.torch < 3",
    "packages.torch == '2.10.1'",
    "packages.torch like '2.%'",
    "packages.scikit_learn < '1.9'",
    "packages.scikit-learn in ('1.9rc1', '1.8')",
    "packages.jax is null",
    "status == 'x' or status == 'failed' and attempt == 2",
    "(status == 'x' or status == 'failed') AND NOT (attempt == 3)",
    "status in ('a') or params.none or tags.stage == 'prod'",
]

FALSE = [
    "status == 'finished'",
    "metrics.missing < 1",
    "metrics.missing != 1",
    "not metrics.missing < 1",
    "params.missing == 0",
    "params.missing not in (1, 2)",
    "params.lr > '0'",
    "params.lr == '0.001'",
    "params.optimizer < 3",
    "params.missing",
    "ended_at > '2020-01-01'",
    "metrics.bad < 1",
    "metrics.bad > 1",
    "name like 'resnet'",
    "attempt like '2'",
    "packages.jax >= '0'",
    "started_at > ago('1d') and started_at < ago('2d')",
    "0 < metrics.val_loss < 0.01",
]


@pytest.mark.parametrize("text", TRUE)
def test_filter_holds(text: str) -> None:
    """Each spelling of the language means what the module's docstring says."""
    assert compile_filter(text).matches(FACTS)


@pytest.mark.parametrize("text", FALSE)
def test_filter_does_not_hold(text: str) -> None:
    """A missing value is unknown, and so is its negation; kinds have no order between them."""
    assert not compile_filter(text).matches(FACTS)


@pytest.mark.parametrize(
    ("text", "message", "mark"),
    [
        ("staus == 'failed'", "did you mean 'status'?", "^^^^^"),
        ("val_loss < 1", "a metric is metrics.val_loss", "^^^^^^^^"),
        ("metric.val_loss < 1", "did you mean 'metrics'?", "^^^^^^^^^^^^^^^"),
        ("status == ", "found the end", "          ^"),
        ("status 'failed'", "found 'failed'", "       ^^^^^^^^"),
        ("(status == 'x'", "expected ')'", "              ^"),
        ("status is 'x'", "'is' takes null", "          ^"),
        ("started_at > 'soon'", "not an ISO date", "             ^"),
        ("started_at > '0001-01-01'", "not an ISO date", "             ^"),
        ("started_at > ago('soon')", "ago takes", "                 ^^^^^^"),
        ("now() > 1", "only function", "^^^"),
        ("name like 3", "'like' takes a text", "          ^"),
        ("status in 'failed'", "expected a list", "          ^^^^^^^^"),
        ("status in (name)", "found a name", "           ^^^^"),
        ("metrics['loss', phase=train] > 1", "runs have no column", "^^^^^"),
        ("metrics['loss'].median > 1", "expected one of last", "^^^^^^"),
        ("metrics > 1", "expected a name", "        ^"),
        ("params['a', b=1] > 1", "expected ']'", "          ^"),
        ("1", "expected a comparison", " ^"),
        ("attempt ** 2", "not part of the filter language", "        ^"),
        ("   ; drop table runs", "not part of the filter language", "   ^"),
        ("status == 'open", "not part of the filter language", "          ^"),
        ("__import__('os').system('ls')", "only function", "^^^^^^^^^^"),
        ("", "found the end", "^"),
    ],
)
def test_mistake_is_shown_with_its_place(text: str, message: str, mark: str) -> None:
    """An error names what was expected, repeats the filter, and marks the place below it."""
    with pytest.raises(QueryError) as caught:
        compile_filter(text)
    first, shown, below = str(caught.value).split("\n")
    assert message in str(caught.value)
    assert first
    assert shown == "  " + text
    assert mark in below
    assert len(below) >= 3


def test_ambiguous_metric_lists_its_contexts() -> None:
    """A name in several contexts is an error that spells each of them as a filter would."""
    with pytest.raises(QueryError, match=r"metrics.'loss', phase='test'.*'train'") as caught:
        compile_filter("status == 'failed' and metrics.loss < 1").matches(FACTS)
    assert str(caught.value).endswith("\n" + " " * 25 + "^" * 12)


def test_spelled_context_is_understood() -> None:
    """What the error about contexts proposes is a path that finds that context."""
    for name, contexts in FACTS.metrics.items():
        for context, row in contexts.items():
            value = compile_path(spell_metric(name, context)).value(FACTS)
            assert value == row["last"] or math.isnan(value)


def test_context_without_keys_is_the_default() -> None:
    """The empty context wins, then the only one; none is None."""
    assert choose_context("a", ["{}", '{"x":1}']) == "{}"
    assert choose_context("a", ['{"x":1}']) == '{"x":1}'
    assert choose_context("a", []) is None
    assert choose_context("a", ['{"x":1}', '{"x":1,"y":2}'], {"x": 1}) == '{"x":1}'
    with pytest.raises(QueryError, match="several contexts"):
        choose_context("a", ['{"x":1}', '{"x":2}'])


def test_needs_name_everything_referred_to() -> None:
    """`needs` lists exactly what has to be read."""
    needs = compile_filter(
        "metrics.a.min < 1 and metrics['b', x=1] > params.c.d or tags.e == 'x'"
        " and packages.Scikit_Learn > '1' and not (status == 'x')"
    ).needs
    assert needs.metrics == {"a", "b"}
    assert needs.params == {"c.d"}
    assert needs.tags == {"e"}
    assert needs.packages == {"scikit-learn"}
    assert needs.sections == {"packages"}
    assert needs.columns == {"status"}


def test_path_gives_a_column() -> None:
    """The names of the language also choose columns; a package is its version as text."""
    assert compile_path("metrics.val_loss.max").value(FACTS) == 1.0
    assert compile_path("packages.torch").value(FACTS) == "2.10.1+cu121"
    assert compile_path("name").value(FACTS) == "resnet 18"
    with pytest.raises(QueryError, match="expected the end"):
        compile_path("name == 'x'")


def test_relative_time_is_before_now() -> None:
    """`ago` counts back from now."""
    recent = Facts({"started_at": now_us() - 3_000_000})
    assert compile_filter("started_at > ago('1m')").matches(recent)
    assert not compile_filter("started_at > ago('2s')").matches(recent)


def test_deep_nesting_is_refused() -> None:
    """A hostile filter is an error, not a crash."""
    with pytest.raises(QueryError, match="nested too deeply"):
        compile_filter("(" * 50_000 + "attempt == 1" + ")" * 50_000)


def test_versions_have_the_order_of_packages() -> None:
    """dev < a < b < rc < release < post, numbers as numbers, local parts ignored."""
    ordered = ["1.9", "2.0.dev1", "2.0a1", "2.0b2", "2.0rc1", "2.0rc10", "2", "2.0.post1", "2.10"]
    assert sorted(ordered, key=version_key) == ordered
    assert version_key("2.0+cu121") == version_key("2.0.0")


def test_packages_are_read_from_each_form_of_the_document() -> None:
    """Versions may be at the top or under a key of their own; names are normalised."""
    for document in ({"A_b": "1"}, {"versions": {"a.b": "1", "x": None}, "origins": {}}):
        assert package_versions(document) == {"a-b": "1"}
    assert package_versions(["x"]) == {}


@given(st.text(alphabet="metrics.paolsfd'\"()[],=<>! 0123-inotrue\\", max_size=60))
def test_any_text_is_a_filter_or_a_query_error(text: str) -> None:
    """No text makes the parser fail in another way, or loop."""
    with contextlib.suppress(QueryError):
        compiled = compile_filter(text)
        row = dict.fromkeys(compiled.needs.columns)
        compiled.matches(dataclasses.replace(FACTS, row=row))
