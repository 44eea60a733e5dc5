"""How far a server has got with each writer, and what of it is on the disk.

Knows numbers; knows no journal, no store and no route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tachograph.errors import Busy

KEPT = 5_000
"""Marks that are held without looking for some that are no longer needed."""

MOST = 300_000
"""Marks that are held at all, some 100 MB; there are more only while the store is away."""


@dataclass(slots=True)
class Mark:
    """The high-water mark of a writer.

    Attributes
    ----------
    next : int
        The record expected next.
    position : int
        Number in the journal behind the record that carries what was received last; 0 where all is
        in the store.
    durable : int
        What `next` was when everything was on the disk for the last time.
    """

    next: int
    position: int = 0
    durable: int = 0


class Marks:
    """The marks of the writers whose last records may not be in the store yet.

    A mark that is not here is the store's cursor. Everything here is used under one lock, which is
    its owner's.
    """

    def __init__(self) -> None:
        self._marks: dict[str, Mark] = {}
        self._look_at = KEPT

    def find(self, writer: str) -> Mark | None:
        """The mark of a writer; None where the store's cursor is its mark."""
        return self._marks.get(writer)

    def advance(self, writer: str, mark: Mark, next: int, position: int, durable: int) -> None:
        """Move a mark, which was found here or made of the store's cursor.

        Parameters
        ----------
        next, position : int
            As in `Mark`.
        durable : int
            Records of the journal before this number are on the disk.
        """
        if mark.position <= durable:
            mark.durable = mark.next
        mark.next, mark.position = next, position
        self._marks[writer] = mark

    def go_back(self, durable: int) -> None:
        """Forget what is not on the disk: its clients send it again."""
        for mark in self._marks.values():
            if mark.position > durable:
                mark.next, mark.position = mark.durable, durable

    def drop(self, done: int) -> None:
        """Make room, where there are many, for others: marks before `done` are in the store."""
        if len(self._marks) < self._look_at:
            return
        kept = {writer: mark for writer, mark in self._marks.items() if mark.position > done}
        self._marks, self._look_at = kept, max(KEPT, 2 * len(kept))
        if len(kept) >= MOST:
            raise Busy(f"records of {len(kept)} writers wait for the store; this is one too many")

    def ahead(self, durable: int, done: int) -> Mapping[str, int]:
        """The record expected next of writers, as far as everything is on the disk.

        Of those whose mark is not before `done`: what is, is in the store.
        """
        return {
            writer: mark.next if mark.position <= durable else mark.durable
            for writer, mark in self._marks.items()
            if mark.position > done
        }
