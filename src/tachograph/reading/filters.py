"""The filter language: a text such as ``metrics.val_loss < 0.1 and params.lr > 1e-4``.

Owns its grammar and what a name in it means; knows no store. A filter is parsed here by hand and
becomes closures: nothing is evaluated as Python and nothing becomes SQL.

::

    expression  or, and, not, parentheses; comparisons may be chained: 0 < metrics.loss < 1
    comparison  == != < <= > >=   in (…)   not in (…)   like '…%'   not like   is null   is not null
    constant    'text'  "text"  1  -2.5e-3  true  false  null  nan  inf  ago('7d')
    run column  status, project, kind, name, host, started_at, …
    metric      metrics.val_loss     metrics.val_loss.min     (.max .mean .count .last)
                metrics['val/loss', phase='test'].min
    parameter   params.optimizer.lr  params['optimizer.lr']
    tag         tags.stage           tags['my stage']
    package     packages.torch >= '2.4'     (compared as versions)

A missing value is SQL's NULL: every comparison with it is unknown, and so is its negation; only
``is null`` holds. Texts and numbers never equal each other and have no order between them.
Times are compared with ISO dates (local time where they name no zone) or microseconds.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

from tachograph.errors import QueryError
from tachograph.merge import like_pattern
from tachograph.reading import facts as known
from tachograph.reading.facts import Facts, Getter, Needs, Path, version_key
from tachograph.reading.truth import COMPARE, Test, all_of, any_of, is_text, negation
from tachograph.records import now_us


class _Constant(NamedTuple):
    position: int
    content: Any
    kind: str = "plain"


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled filter."""

    text: str
    test: Test
    needs: Needs

    def matches(self, facts: Facts) -> bool:
        """Whether the filter holds for a run.

        Raises
        ------
        QueryError
            A metric is in several contexts and the filter does not say which.
        """
        return self.test(facts) is True


def compile_filter(text: str) -> Filter:
    """Parse a filter.

    Raises
    ------
    QueryError
        The text is no filter, or names a column that runs do not have; shows the place.
    """
    parser = _Parser(text)
    try:
        test = parser.filter()
    except RecursionError:
        raise QueryError("the filter is nested too deeply") from None
    return Filter(text, test, functools.reduce(operator.or_, parser.needs, Needs()))


def compile_path(text: str) -> Path:
    """Parse one name, such as ``metrics.val_loss.min``, ``params.lr`` or ``started_at``."""
    return _Parser(text).only_path()


# ---------------------------------------------------------------------------- times

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _microseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).astimezone().timestamp() * 1e6)


def _ago(text: str) -> int | None:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", text)
    if not found:
        return None
    return now_us() - round(float(found[1]) * _UNITS[found[2]] * 1e6)


# ---------------------------------------------------------------------------- the parser

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
    | (?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    | (?P<name>[A-Za-z_][\w/-]*(?:\.[\w/@:-]+)*)
    | (?P<sign><=|>=|==|!=|<>|[=<>()\[\],.]))""",
    re.VERBOSE,
)
_QUOTES = "'\""
_ALIASES = {"=": "==", "<>": "!="}
_SIGNS = (*COMPARE, *_ALIASES, "is", "not")
_KINDS = ("plain", "time", "version")
_WORDS = ("and", "or", "not", "in", "is", "like")
_LITERALS: dict[str, Any] = {
    "true": True,
    "false": False,
    "null": None,
    "none": None,
    "nan": math.nan,
    "inf": math.inf,
}


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


def _literal(token: _Token) -> Any:
    if token.kind == "string":
        return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
    whole = token.text.lstrip("+-").isdigit() and len(token.text) < 300
    return int(token.text) if whole else float(token.text)


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.needs: list[Needs] = []
        self._tokens = self._tokenise()
        self._next = 0

    def _tokenise(self) -> list[_Token]:
        tokens: list[_Token] = []
        position, end = 0, len(self.text.rstrip())
        while position < end:
            found = _TOKEN.match(self.text, position)
            if found is None or found.lastgroup is None:
                position += len(self.text[position:]) - len(self.text[position:].lstrip())
                self.fail("this is not part of the filter language", position)
            kind, text = found.lastgroup, found[found.lastgroup]
            if kind == "name" and text.lower() in _WORDS:
                kind, text = "word", text.lower()
            tokens.append(_Token(kind, text, found.start(found.lastgroup)))
            position = found.end()
        return [*tokens, _Token("end", "", end)]

    def fail(self, message: str, position: int, length: int = 1) -> NoReturn:
        """Raise QueryError that shows the text with a mark under the place."""
        line = self.text.replace("\n", " ").replace("\t", " ")
        mark = " " * position + "^" * max(length, 1)
        raise QueryError(f"{message}\n  {line}\n  {mark}")

    # -- tokens

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> str | None:
        token = self._token
        if token.kind in ("sign", "word") and token.text in texts:
            self._next += 1
            return token.text
        return None

    def _expect(self, text: str) -> None:
        if not self._take(text):
            self._unexpected(f"{text!r}")

    def _unexpected(self, wanted: str) -> NoReturn:
        token = self._token
        found = f"'{token.text.strip(_QUOTES)}'" if token.text else "the end"
        self.fail(f"expected {wanted}, found {found}", token.position, len(token.text))

    # -- expressions

    def filter(self) -> Test:
        test = self._or()
        if self._token.kind != "end":
            self._unexpected("'and', 'or' or the end")
        return test

    def only_path(self) -> Path:
        token = self._token
        if token.kind != "name":
            self._unexpected("a name")
        self._next += 1
        path = self._path(token)
        if self._token.kind != "end":
            self._unexpected("the end")
        return path

    def _or(self) -> Test:
        tests = [self._and()]
        while self._take("or"):
            tests.append(self._and())
        return any_of(tests)

    def _and(self) -> Test:
        tests = [self._not()]
        while self._take("and"):
            tests.append(self._not())
        return all_of(tests)

    def _not(self) -> Test:
        if self._take("not"):
            return negation(self._not())
        if self._take("("):
            test = self._or()
            self._expect(")")
            return test
        return self._comparison()

    def _comparison(self) -> Test:
        left = self._operand()
        tests: list[Test] = []
        while sign := self._take(*_SIGNS):
            test, left = self._compare(left, sign)
            tests.append(test)
        if tests:
            return all_of(tests)
        if isinstance(left, _Constant):
            self._unexpected("a comparison")
        value = left.value
        return lambda facts: None if (found := value(facts)) is None else bool(found)

    def _compare(self, left: Path | _Constant, sign: str) -> tuple[Test, Path | _Constant]:
        negated = sign == "not"
        if negated and not (sign := self._take("in", "like") or ""):
            self._unexpected("'in' or 'like'")
        if sign == "is":
            negated = bool(self._take("not"))
        right = self._list() if sign == "in" else self._operand()
        test = self._test(left, _ALIASES.get(sign, sign), right)
        return (negation(test) if negated else test), right

    def _test(self, left: Path | _Constant, sign: str, right: Path | _Constant) -> Test:
        if isinstance(right, _Constant) and right.content is None and sign in ("is", "==", "!="):
            value, wanted = self._getter(left, "plain"), sign != "!="
            return lambda facts: (value(facts) is None) is wanted
        if sign == "is":
            self.fail("'is' takes null or not null", right.position)
        kind = "plain" if sign == "like" else max(left.kind, right.kind, key=_KINDS.index)
        first, second = self._getter(left, kind), self._getter(right, kind)
        if sign == "like":
            second = self._pattern(right)
        compare = COMPARE[sign]

        def test(facts: Facts) -> bool | None:
            a, b = first(facts), second(facts)
            return None if a is None or b is None else compare(a, b)

        return test

    def _pattern(self, operand: Path | _Constant) -> Getter:
        if isinstance(operand, Path) or not is_text(operand.content):
            self.fail("'like' takes a text, such as 'resnet%'", operand.position)
        pattern = like_pattern(operand.content)
        return lambda facts: pattern

    def _getter(self, operand: Path | _Constant, kind: str) -> Getter:
        if isinstance(operand, _Constant):
            content = self._convert(operand, kind)
            return lambda facts: content
        value = operand.value
        if kind != "version":
            return value
        return lambda facts: None if (text := value(facts)) is None else version_key(str(text))

    def _convert(self, constant: _Constant, kind: str) -> Any:
        """Read a text as the time or version that it is compared with."""
        content = constant.content
        if isinstance(content, tuple):
            return [self._convert(item, kind) for item in content]
        if kind == "time" and is_text(content):
            try:
                return _microseconds(content)
            except (ValueError, OverflowError, OSError):
                self.fail(f"{content!r} is not an ISO date or time", constant.position)
        if kind == "version" and content is not None:
            return version_key(str(content))
        return content

    # -- operands

    def _operand(self) -> Path | _Constant:
        token = self._token
        if token.kind not in ("number", "string", "name"):
            self._unexpected("a name or a value")
        self._next += 1
        if token.kind != "name":
            return _Constant(token.position, _literal(token))
        if token.text.lower() in _LITERALS:
            return _Constant(token.position, _LITERALS[token.text.lower()])
        if self._take("("):
            return self._call(token)
        path = self._path(token)
        self.needs.append(path.needs)
        return path

    def _call(self, function: _Token) -> _Constant:
        if function.text != "ago":
            self.fail("the only function is ago('7d')", function.position, len(function.text))
        argument = self._token
        if argument.kind != "string" or (time := _ago(_literal(argument))) is None:
            wanted = "ago takes a text such as '90s', '15m', '6h', '7d', '2w'"
            self.fail(wanted, argument.position, len(argument.text))
        self._next += 1
        self._expect(")")
        return _Constant(argument.position, time)

    def _list(self) -> _Constant:
        start = self._token.position
        opened = self._take("(", "[")
        if not opened:
            self._unexpected("a list such as ('a', 'b')")
        closing = ")" if opened == "(" else "]"
        items: list[_Constant] = []
        while not self._take(closing):
            items.append(self._constant("a value"))
            if not self._take(",") and self._token.text != closing:
                self._unexpected(f"',' or {closing!r}")
        return _Constant(start, tuple(items))

    def _path(self, token: _Token) -> Path:
        root, _, name = token.text.partition(".")
        if root == "metrics":
            return self._metric(token, name)
        if root not in known.ROOTS:
            return self._column(token)
        name = name or self._bracket(root)[0]
        getter, needs = known.NAMED[root](name)
        kind: known.Kind = "version" if root == "packages" else "plain"
        return Path(self._since(token), token.position, getter, needs, kind)

    def _column(self, token: _Token) -> Path:
        name = token.text
        if name not in known.RUN_COLUMNS:
            hint = known.nearest(name.partition(".")[0], [*known.RUN_COLUMNS, *known.ROOTS])
            hint = hint or f"; a metric is metrics.{name}, a parameter params.{name}"
            self.fail(f"runs have no column {name!r}{hint}", token.position, len(name))
        getter, needs = known.column(name)
        kind: known.Kind = "time" if name in known.TIME_COLUMNS else "plain"
        return Path(name, token.position, getter, needs, kind)

    def _metric(self, token: _Token, name: str) -> Path:
        wanted: dict[str, Any] = {}
        statistic = name.rpartition(".")[2] if "." in name else "last"
        if not name:
            name, wanted = self._bracket("metrics")
            statistic = self._statistic() if self._take(".") else "last"
        elif statistic in known.STATISTICS:
            name = name.removesuffix(f".{statistic}")
        else:
            statistic = "last"
        getter, needs = known.metric(name, wanted, statistic)
        text = self._since(token)

        def value(facts: Facts) -> Any:
            try:
                return getter(facts)
            except QueryError as error:
                self.fail(str(error), token.position, len(text))

        return Path(text, token.position, value, needs)

    def _since(self, token: _Token) -> str:
        last = self._tokens[self._next - 1]
        return self.text[token.position : last.position + len(last.text)]

    def _bracket(self, root: str) -> tuple[str, dict[str, Any]]:
        if not self._take("["):
            self._unexpected(f"a name, as in {root}.x or {root}['x']")
        name = self._constant("a name in quotes")
        wanted: dict[str, Any] = {}
        while root == "metrics" and self._take(","):
            key = self._token
            if key.kind != "name":
                self._unexpected("a key of the context, as in phase='test'")
            self._next += 1
            self._expect("=")
            wanted[key.text] = self._constant("a value").content
        self._expect("]")
        return str(name.content), wanted

    def _constant(self, wanted: str) -> _Constant:
        operand = self._operand()
        if isinstance(operand, Path):
            self.fail(f"expected {wanted}, found a name", operand.position, len(operand.text))
        return operand

    def _statistic(self) -> str:
        token = self._token
        if token.text not in known.STATISTICS:
            self._unexpected("one of " + ", ".join(known.STATISTICS))
        self._next += 1
        return token.text
