"""Laws of summaries: what the points say, without reading them."""

from __future__ import annotations

import math

import pytest

from tachograph.backends.base import Backend
from tachograph.testing.builders import START, make_batch, make_block
from tachograph.testing.fixtures import StoreFixtures, read, read_one

COLUMNS = "last special last_step min max mean count finite"


class SummaryLaws(StoreFixtures):
    """A summary is kept by `write`, and is that of all the points of its series."""

    def test_summary_is_that_of_the_points(self, backend: Backend) -> None:
        """Last, extremes, mean and count of each series."""
        block = make_block("r", {"loss": [4.0, 1.0, 2.0], "acc": [0.5, 0.25, 0.75]})
        backend.write(make_batch("w", 0, blocks=[block]))
        assert read(backend, "summaries", f"name {COLUMNS} last_time", order=("name",)) == [
            ("acc", 0.75, None, 2, 0.25, 0.75, 0.5, 3, 3, START + 2000),
            ("loss", 2.0, None, 2, 1.0, 4.0, 7 / 3, 3, 3, START + 2000),
        ]

    def test_summary_goes_on_across_batches_and_objects(
        self, backend: Backend, backend_url: str
    ) -> None:
        """Later batches add to it, also after the store was opened again."""
        backend.write(make_batch("w", 0, blocks=[make_block("r", {"loss": [3.0, 1.0]})]))
        backend.write(make_batch("w", 2, blocks=[make_block("r", {"loss": [2.0]}, seqs=[2])]))
        assert read(backend, "summaries", COLUMNS) == [(2.0, None, 2, 1.0, 3.0, 2.0, 3, 3)]
        backend.close()
        again = self.open_backend(backend_url)
        again.write(make_batch("w", 3, blocks=[make_block("r", {"loss": [6.0]}, seqs=[3])]))
        assert read(again, "summaries", COLUMNS) == [(6.0, None, 3, 1.0, 6.0, 3.0, 4, 4)]
        again.close()

    def test_what_is_not_finite_counts_but_is_no_extreme(self, backend: Backend) -> None:
        """Minimum, maximum and mean are of the finite values; the last may be any."""
        values = {
            "mixed": [math.inf, 2.0, math.nan, -4.0, -math.inf],
            "never": [math.nan, math.nan, math.nan, math.inf, math.nan],
            "zero": [1.0, 1.0, 1.0, 1.0, -0.0],
        }
        backend.write(make_batch("w", 0, blocks=[make_block("r", values)]))
        expected = [
            ("mixed", None, "-inf", 4, -4.0, 2.0, -1.0, 5, 2),
            ("never", None, "nan", 4, None, None, None, 5, 0),
            ("zero", 0.0, "-0", 4, 0.0, 1.0, 0.8, 5, 5),
        ]
        assert read(backend, "summaries", f"name {COLUMNS}", order=("name",)) == expected
        more = make_block("r", {"never": [7.0]}, seqs=[5])
        backend.write(make_batch("w", 5, blocks=[more]))
        found = read(backend, "summaries", f"name {COLUMNS}", order=("name",))
        assert found[1] == ("never", 7.0, None, 5, 7.0, 7.0, 7.0, 6, 1)

    def test_mean_whose_sum_is_no_float_is_null(self, backend: Backend) -> None:
        """Values near the end of the range keep their extremes; the mean is not made up."""
        for first in (0, 2):
            block = make_block("r", {"loss": [1.5e308, 1.7e308]}, seqs=[first, first + 1])
            backend.write(make_batch("w", first, blocks=[block]))
            found = read(backend, "summaries", "min max mean count")
            assert found == [(1.5e308, 1.7e308, None, first + 2)]

    @pytest.mark.parametrize("turned", [False, True])
    def test_last_is_the_latest_record_of_all_blocks(self, backend: Backend, turned: bool) -> None:
        """A metric logged alone and among others is one series; steps may go back."""
        blocks = [
            make_block("r", {"loss": [1.0, 5.0]}, seqs=[0, 4], steps=[8, 2]),
            make_block("r", {"loss": [2.0, 3.0], "acc": [0.1, 0.2]}, seqs=[1, 3]),
        ]
        backend.write(make_batch("w", 0, blocks=blocks[::-1] if turned else blocks))
        found = read(backend, "summaries", f"name {COLUMNS}", order=("-name",))
        assert found[0] == ("loss", 5.0, None, 2, 1.0, 5.0, 2.75, 4, 4)
        assert found[1][:4] == ("acc", 0.2, None, 3)

    def test_writers_are_merged_in_the_view_only(self, backend: Backend) -> None:
        """The view has one row a series, `last` by time; raw has one a writer."""
        late = make_block("r", {"loss": [1.0, 3.0]}, seqs=[5, 6])
        early = make_block("r", {"loss": [9.0, math.nan]}, seqs=[0, 1])
        backend.write(make_batch("a", 0, blocks=[late]))
        backend.write(make_batch("b", 0, blocks=[early]))
        row = read_one(backend, "summaries")
        assert row.pop("mean") == pytest.approx(13 / 3, rel=1e-12)
        assert [row[name] for name in COLUMNS.split() if name != "mean"] == [
            *(3.0, None, 6, 1.0, 9.0),
            *(4, 3),
        ]
        assert read(backend, "summaries", f"writer {COLUMNS}", raw=True, order=("writer",)) == [
            ("a", 3.0, None, 6, 1.0, 3.0, 2.0, 2, 2),
            ("b", None, "nan", 1, 9.0, 9.0, 9.0, 2, 1),
        ]

    def test_every_attempt_has_its_summary(self, backend: Backend) -> None:
        """A later attempt starts a summary of its own and leaves the older one alone."""
        blocks = [
            make_block("r", {"loss": [1.0]}, seqs=[0]),
            make_block("r", {"loss": [2.0]}, seqs=[1], attempt=2),
        ]
        attempts = [{"run_id": "r", "attempt": 2, "first_step": 0}]
        backend.write(make_batch("w", 0, blocks=blocks, attempts=attempts))
        found = read(backend, "summaries", "attempt last count", order=("attempt",))
        assert found == [(1, 1.0, 1), (2, 2.0, 1)]
