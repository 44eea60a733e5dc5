"""Where the parts of one value lie in a text: literals in brackets or in a row, lines of a block.

As Python, JSON, JavaScript, YAML and tables write them, also in a diff. Knows no secret.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import NamedTuple

_LONGEST = 1 << 12  # characters that are looked at, so that no text makes it slow
_DEEPEST = 5
_TOKEN = r"""(?x)
    [brfuBRFU]{0,2}(?P<quote>(?P<long>\"\"\"|''')|\\{0,3}["'])
        (?P<literal>(?:(?!(?P=quote))(?:\\.|[^\n]|(?(long)\n|(?!))))*+)(?P=quote)(?P<key>\s{0,9}:)?
  | (?P<open>[(\[{]) | (?P<close>[)\]}]) | \#[^\n]*+
  | (?P<word>[^\s,()\[\]{}"':#]++)(?P<after>[ \t]*:)?"""
_WORD_END = re.compile(r"[\w)\]]")
_SETTING = r"[-+ ]?[ \t]*(?P<key>[\w.-]+)[ \t]*[=:][ \t]*(?P<rest>.*\S)"
_JOINED = r"[ \t]*(?:\+[ \t]*)?(?:\\\r?\n[-+ ]?[ \t]*)?(?=[brfuBRFU]{0,2}[\"'])"
_BLOCK = r"(?:[&!][\w!-]+[ \t]*)*(?:[|>][-+0-9]*)?[ \t]*(?:\#[^\n]*)?\r?\n"
_ENTRY = r"[ \t]*+(?:-[ \t]+)*(?:[\"']?(?P<key>[\w.-]+)[\"']?[ \t]*:(?:[ \t]+|$))?(?P<rest>.*\S)?"


class Part(NamedTuple):
    """A part of a value: where it begins and ends, and the key that it stands under in it."""

    start: int
    end: int
    key: str = ""


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def quoted_parts(text: str, start: int, *, bare: bool = False) -> list[Part]:
    """The literals of a value that begins with a quote, a bracket or the end of its line.

    Parameters
    ----------
    text : str
    start : int
        Where the value begins.
    bare : bool, default False
        Whether words without quotes are literals too, as in YAML.

    Returns
    -------
    list of Part
        Of a literal of several lines one part a line. Empty where the value begins otherwise, or
        its bracket does not close.
    """
    continued = _compiled(r"\\\r?\n[-+ ]?[ \t]*").match(text, start)
    start = continued.end() if continued else start
    if text[start : start + 1] in ("(", "[", "{"):
        return _in_brackets(text, start, bare)
    parts: list[Part] = []
    while token := _compiled(_TOKEN).match(text, start, start + _LONGEST):
        if token["quote"] is None:
            break
        parts += _lines(text, *token.span("literal"))
        joined = _compiled(_JOINED).match(text, token.end("literal") + len(token["quote"]))
        if joined is None:
            break
        start = joined.end()
    return parts


def _in_brackets(text: str, start: int, bare: bool) -> list[Part]:
    """Literals up to the bracket that closes; what stands in calls is code."""
    bare = bare and text[start] != "("
    parts: list[Part] = []
    depth, call, key = 0, 0, ""
    for token in _compiled(_TOKEN).finditer(text, start, start + _LONGEST):
        depth += bool(token["open"]) - bool(token["close"])
        if depth == 0:
            return parts
        if depth > _DEEPEST:
            break
        if token["open"] and not call and _WORD_END.match(text[token.start() - 1]):
            call = depth
        elif depth < call:
            call = 0
        elif call:
            continue
        elif token["key"] or token["after"]:
            key = token["literal"] or token["word"] or ""
        elif token["quote"]:
            parts += _lines(text, *token.span("literal"), key)
        elif bare and token["word"]:
            parts.append(Part(*token.span("word"), key))
    return []


def _lines(text: str, start: int, end: int, key: str = "") -> Iterator[Part]:
    """What stands on each line, without the marker of a diff and white space around it."""
    for number, line in enumerate(text[start:end].split("\n")):
        shown = line[1:] if number and line[:1] in ("+", "-") else line
        if word := shown.strip():
            at = start + line.index(word, len(line) - len(shown))
            yield Part(at, at + len(word), key)
        start += len(line) + 1


def block_parts(text: str, indent: int, start: int) -> list[Part]:
    """The values on the lines below a key of YAML; empty where it has its value on its own line.

    Parameters
    ----------
    text : str
    indent : int
        Of the key, in characters from the beginning of its line.
    start : int
        Where a value on that line would begin.
    """
    head = _compiled(_BLOCK).match(text, start)
    if head is None:
        return []
    parts: list[Part] = []
    at = head.end()
    for line in text[at : at + _LONGEST].splitlines(keepends=True):
        plain = (" " + line[1:] if line[:1] in ("+", "-") else line).rstrip()
        depth = len(plain) - len(plain.lstrip())
        below = depth > indent or (depth == indent and plain.lstrip().startswith("- "))
        if plain and not below:
            break
        entry = _compiled(_ENTRY).match(plain)
        if entry and entry["rest"]:
            parts.append(Part(at + entry.start("rest"), at + entry.end("rest"), entry["key"] or ""))
        at += len(line)
    return parts


def section_parts(text: str, start: int) -> list[Part]:
    """The values of a section of TOML or INI, up to the head of the next one.

    Parameters
    ----------
    text : str
    start : int
        Where the line below the section's head begins.
    """
    parts: list[Part] = []
    for line in text[start : start + _LONGEST].splitlines(keepends=True):
        if line.lstrip("-+ ").startswith(("[", "@@", "diff ")):
            break
        if setting := _compiled(_SETTING).match(line):
            first, end = setting.span("rest")
            parts.append(Part(start + first, start + end, setting["key"]))
        start += len(line)
    return parts


def column_parts(
    text: str, start: int, separator: str, columns: Collection[int], width: int
) -> tuple[list[Part], int]:
    """The values of some columns of a table, and where the table ends: at a line of other width.

    Parameters
    ----------
    text : str
    start : int
        Where the line below the head begins.
    separator : str
        Of the columns.
    columns : collection of int
        Which of them, counted from 0.
    width : int
        How many there are.
    """
    parts: list[Part] = []
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        values = text[start:end].rstrip("\r").split(separator)
        if len(values) != width:
            break
        for column, value in enumerate(values):
            shown = value[1:] if column == 0 and value[:1] in ("+", "-", " ") else value
            if column in columns and (word := shown.strip('"')):
                at = start + value.index(word, len(value) - len(shown))
                parts.append(Part(at, at + len(word), str(column)))
            start += len(value) + len(separator)
        start = end + 1
    return parts, start
