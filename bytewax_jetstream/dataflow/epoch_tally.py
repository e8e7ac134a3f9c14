"""`EpochTally`: counts one epoch's results in one lane, for the epoch's checkpoint."""

from ..envelope import Checkpoint
from ..pool.results import Delivery

__all__ = ["EpochTally"]


class EpochTally:
    """Counts the results of one epoch in one lane."""

    def __init__(self, step: str, worker: int, lane: str, epoch: int) -> None:
        self._step, self._worker, self._lane, self._epoch = step, worker, lane, epoch
        self._stored = self._duplicates = self._rejected = 0
        self._last_event_id = ""

    def add(self, delivery: Delivery) -> None:
        """Count the results of a delivery."""
        self._stored += len(delivery.oks)
        self._duplicates += delivery.duplicates
        self._rejected += len(delivery.errs)
        self._last_event_id = delivery.last_event_id

    def checkpoint(self) -> Checkpoint:
        """The epoch's checkpoint; call this when all of its envelopes are settled."""
        return Checkpoint(
            step=self._step,
            worker=self._worker,
            lane=self._lane,
            epoch=self._epoch,
            stored=self._stored,
            duplicates=self._duplicates,
            rejected=self._rejected,
            last_event_id=self._last_event_id,
        )
