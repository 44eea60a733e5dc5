"""Columns of text side by side; rich alone takes twenty times as long for a list of all runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

_GAP = "  "


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
    head : Text
    cells : list of Text
    is_right : bool
        Whether it is aligned on the right.
    style : str
        Of the cells that have none of their own.
    """

    name: str
    head: Text
    cells: Sequence[Text]
    is_right: bool
    style: str

    @cached_property
    def width(self) -> int:
        """Of the widest cell."""
        return max(text.cell_len for text in (self.head, *self.cells))

    @cached_property
    def has_lines(self) -> bool:
        """Whether a cell has more than one line."""
        return any("\n" in text.plain for text in (self.head, *self.cells))


def print_columns(out: Console, columns: Sequence[Column], spare: Sequence[str] = ()) -> None:
    """Print columns, without those of `spare` that the terminal is too narrow for."""
    kept = list(columns)
    for name in spare:
        if _width(kept) > out.width:
            kept = [column for column in kept if column.name != name]
    if _width(kept) > out.width or any(column.has_lines for column in kept):
        out.print(_folded(kept))
    else:
        _print_lines(out, kept)


def _width(columns: Collection[Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _print_lines(out: Console, columns: Sequence[Column]) -> None:
    for row in zip(*((column.head, *column.cells) for column in columns), strict=True):
        line = Text()
        for column, text in zip(columns, row, strict=True):
            space = " " * (column.width - text.cell_len)
            line.append(_GAP if line else "")
            line.append(space if column.is_right else "")
            line.append(text.plain, text.style or column.style)
            line.append("" if column.is_right else space)
        line.rstrip()
        out.print(line, soft_wrap=True)


def _folded(columns: Sequence[Column]) -> Table:
    """As a table that breaks long texts into lines."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        justify: JustifyMethod = "right" if column.is_right else "left"
        table.add_column(column.head, justify=justify, style=column.style, overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table
