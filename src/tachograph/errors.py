"""What can go wrong, as one tree.

::

    TachographError
    ├── ConfigError         the config file, an environment variable or an argument (ValueError)
    ├── StoreError          a store cannot be opened, read or written (OSError)
    │   ├── StoreNotFound   nothing is there (FileNotFoundError)
    │   ├── StoreTooNew     written by a newer format version
    │   ├── Gap             a batch leaves out records; says which is expected
    │   ├── Locked          others write to the store; to ask again is all there is to do
    │   ├── Busy            a server takes nothing now; says when to ask again
    │   │   └── Full        its disk is full
    │   └── AccessDenied    a server does not know the token, or it may not do this
    ├── WireError           bytes that are no batch of the protocol (ValueError)
    │   └── TooLarge        more bytes than are taken at once
    ├── QueryError          a filter, column or run that does not exist (ValueError)
    │   └── RunNotFound     no run with that id (KeyError)
    └── RecordError         a value that cannot be recorded (TypeError)

    TachographWarning       said once, inside training, where raising is forbidden
"""

from __future__ import annotations


class TachographError(Exception):
    """Root of everything that Tachograph raises on purpose."""


class ConfigError(TachographError, ValueError):
    """A setting is unknown, of the wrong type, or not usable. The message names its origin."""


class StoreError(TachographError, OSError):
    """A store cannot be opened, read or written."""


class StoreNotFound(StoreError, FileNotFoundError):
    """There is no store at that place."""


class StoreTooNew(StoreError):
    """The store was written by a newer Tachograph than this one."""


class Gap(StoreError):
    """A batch starts behind the record that the store expects next.

    Attributes
    ----------
    expected : int
        The sequence number that the store expects next from that writer.
    """

    def __init__(self, writer: str, expected: int, first: int) -> None:
        super().__init__(f"writer {writer}: expected record {expected} next, got {first}")
        self.writer = writer
        self.expected = expected
        self.first = first


class Locked(StoreError):
    """Other processes write to a store, for longer than this one waits for its turn."""


class Busy(StoreError):
    """A server takes nothing now: it is overloaded, full, or the token's share is used up.

    Attributes
    ----------
    retry_after : float
        Seconds after which to ask again.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Full(Busy):
    """The disk of a server is full, or fails."""


class AccessDenied(StoreError, PermissionError):
    """A server does not know the token, or the token may not do this."""


class WireError(TachographError, ValueError):
    """Bytes that are no batch of the protocol; the message says what is wrong and where."""


class TooLarge(WireError):
    """A body, or what it unpacks to, has more bytes than are taken at once."""


class QueryError(TachographError, ValueError):
    """A query names something that does not exist, or is not a safe expression."""


class RunNotFound(QueryError, KeyError):
    """No run has that id, or an abbreviated id fits several."""

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return str(self.args[0]) if self.args else ""


class RecordError(TachographError, TypeError):
    """A value cannot be recorded as what it was given for."""


class TachographWarning(UserWarning):
    """Something could not be recorded; the training goes on."""
