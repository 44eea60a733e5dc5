"""How much goes into one request, learnt from how long requests take; and batches cut to that.

Knows batches and their bytes, no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from tachograph.batches import until
from tachograph.records import Batch
from tachograph.wire.encoding import encode

_TOLERANCE = 1.5  # a batch that is hardly too large is not worth a request more


@dataclass(slots=True)
class Pace:
    """A size of requests that approaches what takes a certain time.

    Attributes
    ----------
    size : int
        Bytes that a request should have now, before they are compressed.
    least, most : int
        Between these it stays.
    seconds : float
        What a request should take.
    """

    size: int
    least: int
    most: int
    seconds: float

    def took(self, sent: int, seconds: float) -> None:
        """Learn from a request; what is small for its size says nothing."""
        if 2 * sent >= self.size:
            self._scale(min(max(self.seconds / max(seconds, 1e-6), 0.5), 1.25))

    def failed(self, sent: int) -> None:
        """Learn from a request that was not done in time, or was cut: send half of that."""
        if sent >= self.least:  # else it was not the size
            self.size = min(self.size, sent)
            self._scale(0.5)

    def refused(self, sent: int) -> None:
        """Learn that so much is too large for the other side: never send it again."""
        self.most = self.size = max(sent // 2, 1)

    def _scale(self, factor: float) -> None:
        self.size = min(max(int(self.size * factor), self.least), self.most)


def cut(batch: Batch, size: int) -> tuple[Batch, bytes]:
    """The beginning of a batch that has about `size` bytes, at least a record, and its bytes."""
    payload = encode(batch)
    while len(payload) > _TOLERANCE * size and batch.next - batch.first > 1:
        share = min(size / len(payload), 0.5)
        batch = until(batch, batch.first + max(1, int((batch.next - batch.first) * share)))
        payload = encode(batch)
    return batch, payload
