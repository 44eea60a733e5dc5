"""What a server is told when it starts.

Knows no route and no store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PROTOCOL = 1
"""Version of the protocol, the number in ``/v1``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request, or a token, may take.

    Attributes
    ----------
    body_bytes : int
        Of a request as it comes, before it is decompressed; artifacts are not counted.
    batch_bytes : int
        Of a batch when it is decompressed.
    in_flight_bytes : int
        Of all bodies together that are being read or decoded.
    artifact_bytes : int or None
        Of one file; None is no limit.
    answer_rows : int
        Rows of one answer.
    request_seconds : float
        Within which the body of a request must have come.
    token_bytes, token_points : int or None
        Per second and token, over a minute; None is no limit.
    """

    body_bytes: int = 16 << 20
    batch_bytes: int = 64 << 20
    in_flight_bytes: int = 64 << 20
    answer_rows: int = 1_000_000
    request_seconds: float = 60.0
    artifact_bytes: int | None = None
    token_bytes: int | None = None
    token_points: int | None = None


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is told when it starts.

    Attributes
    ----------
    stores : tuple of str
        Absolute URLs; readers are answered from the first.
    folder : Path
        For what belongs to the server alone: tokens, journal, uploads.
    limits : Limits
    """

    stores: tuple[str, ...]
    folder: Path
    limits: Limits = field(default_factory=Limits)
