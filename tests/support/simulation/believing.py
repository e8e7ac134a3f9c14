"""A mutation of the batches, for tests that must see it turn red."""

from bytewax_jetstream.dispatch.batch import Batch
from bytewax_jetstream.dispatch.batches import Batches
from bytewax_jetstream.dispatch.retries import Why
from bytewax_jetstream.publishing import Refusal, Route

__all__ = ["Believing"]


class Believing(Batches):
    """Believes every ack: a batch that was not answered goes again as a batch, and no stream is
    ever in doubt.
    """

    def _retry(self, batch: Batch, refusal: Refusal, why: Why, now: float, *, whole: bool) -> None:
        self._end(batch)
        for segment in batch.segments:
            self._doubts.not_in_process(segment.envelopes)
        batch.lane.queue.put_back(batch.segments)

    def _is_in_doubt(self, route: Route) -> bool:
        return False
