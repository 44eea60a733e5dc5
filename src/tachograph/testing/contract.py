"""All laws of a store in one class."""

from __future__ import annotations

from tachograph.testing.abilities_laws import ArtifactLaws, CompactLaws, GCLaws, SQLLaws
from tachograph.testing.keyed_laws import KeyedLaws
from tachograph.testing.model_laws import ModelLaws
from tachograph.testing.query_laws import QueryLaws
from tachograph.testing.summaries_laws import SummaryLaws
from tachograph.testing.values_laws import ValueLaws
from tachograph.testing.write_laws import WriteLaws


class BackendContract(
    WriteLaws,
    ValueLaws,
    KeyedLaws,
    SummaryLaws,
    QueryLaws,
    ModelLaws,
    SQLLaws,
    ArtifactLaws,
    GCLaws,
    CompactLaws,
):
    """The laws that every backend and every wrapper obeys; subclass it in a test file.

    ::

        class TestMyStore(BackendContract):
            backend_class = MyBackend

            @pytest.fixture
            def backend_url(self, tmp_path):
                return f"mystore:///{tmp_path}/store"

    Where a store cannot obey a law by its nature, override that test and say why.
    """
