"""Changes that people make to runs afterwards: just another writer, with its own sequence.

Knows which columns may be edited; knows no medium.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tachograph.errors import QueryError
from tachograph.reading.facts import nearest
from tachograph.reading.live import LiveReader
from tachograph.reading.lookup import family_of
from tachograph.records import TABLES, Batch, Row, now_us, uuid7
from tachograph.security.redaction import redact_value
from tachograph.security.texts import redact_text

EDITABLE = ("name", "project", "description", "hypothesis", "verdict")


class Editor:
    """Writes edits straight into a store.

    Parameters
    ----------
    reader : LiveReader
        The store, with the tails of journals, so that an edit is later than what it changes.
    """

    def __init__(self, reader: LiveReader) -> None:
        self._reader = reader
        self._writer = uuid7()
        self._next = 0

    def write(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Write rows of keyed tables or events; their bookkeeping columns are filled in."""
        change = {"writer": self._writer, "seq": self._next, "changed_at": self._time(rows)}
        complete = {
            table: [
                {name: row.get(name) for name in TABLES[table].columns}
                | {name: value for name, value in change.items() if name in TABLES[table].columns}
                | ({} if TABLES[table].grows else {"deleted": row.get("deleted") or 0})
                for row in changes
            ]
            for table, changes in rows.items()
        }
        self._reader.backend.write(Batch(self._writer, self._next, self._next + 1, rows=complete))
        self._next += 1
        self._reader.forget()

    def tag(self, run_id: str, tags: Mapping[str, str | None]) -> None:
        """Set tags of a run; None takes one away."""
        rows = [
            {
                "run_id": run_id,
                "key": key,
                "value": None if value is None else redact_value(key, value),
                "deleted": int(value is None),
            }
            for key, value in tags.items()
        ]
        self.write({"tags": rows})

    def note(self, run_id: str, text: str) -> None:
        """Add a note to the events of a run."""
        event = {"run_id": run_id, "time": now_us(), "level": "info", "kind": "note"}
        self.write({"events": [event | {"message": redact_text(text), "data": "{}"}]})

    def update(self, run_id: str, columns: Mapping[str, str]) -> None:
        """Change columns of a run."""
        for name in columns:
            if name not in EDITABLE:
                known = f"; editable are {', '.join(EDITABLE)}"
                raise QueryError(f"{name!r} cannot be edited{nearest(name, EDITABLE) or known}")
        changed = {name: redact_text(text) for name, text in columns.items()}
        self.write({"runs": [{"run_id": run_id} | changed]})

    def delete(self, run_ids: Sequence[str]) -> list[str]:
        """Put tombstones on runs and all their descendants; return their ids."""
        gone = sorted(family_of(self._reader, run_ids))
        if gone:
            self.write({"runs": [{"run_id": run_id, "deleted": 1} for run_id in gone]})
        return gone

    # ------------------------------------------------------------------ inside

    def _time(self, rows: Mapping[str, Sequence[Row]]) -> int:
        """Now, or just behind the latest change to the same runs where that is later."""
        latest = [now_us()]
        for table, changes in rows.items():
            run_ids = sorted({row["run_id"] for row in changes})
            if not TABLES[table].grows:
                seen = self._reader.changes(table, run_ids)
                latest += [row["changed_at"] + 1 for row in seen]
        return max(latest)
