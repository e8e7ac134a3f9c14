"""Parameters of tests that promise the same in several ways, and publishing in each of them."""

from collections.abc import Sequence

import pytest
from bytewax.errors import BytewaxRuntimeError

from bytewax_jetstream.envelope import Envelope, PublishResult
from bytewax_jetstream.errors import JetStreamPipelineError
from bytewax_jetstream.settings import BrokerSettings
from tests.support.dataflows import Envelopes, publishing, root_cause, run
from tests.support.lanes import opened

__all__ = ["both_ways", "publish_by", "workers_1_2"]

both_ways = pytest.mark.parametrize("way", ["pool", "dataflow"])
workers_1_2 = pytest.mark.parametrize("workers", [1, 2])


def publish_by(
    way: str, settings: BrokerSettings, batch: Sequence[Envelope]
) -> list[PublishResult]:
    """Publish with the bare pool or in a dataflow; an error of ours comes out as it is."""
    if way == "pool":
        with opened(settings) as (_, lane):
            lane.submit(batch)
            return lane.flush()
    made = publishing(Envelopes(batch), settings)
    try:
        run(made.flow)
    except BytewaxRuntimeError as error:
        cause = root_cause(error)
        assert isinstance(cause, JetStreamPipelineError), "a traceback without a sentence"
        raise cause from None
    return made.oks + made.errs
