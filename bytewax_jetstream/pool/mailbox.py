"""`Mailbox`: a lane's deliveries and what it has unsettled, between ACK workers and its thread."""

import threading
from collections import deque

from ..envelope import Outcome, PublishResult
from ..metrics import LaneCounts
from .results import Delivery

__all__ = ["Mailbox"]


class Mailbox:
    """Counts what a lane has unsettled, and keeps its deliveries in order until they are taken.

    :arg worker: The dataflow worker that the results name.
    :arg counts: Of the lane's step and worker.
    """

    def __init__(self, worker: int, counts: LaneCounts | None = None) -> None:
        self.worker = worker
        self.counts = counts
        self._deliveries: deque[Delivery] = deque()
        self._news = threading.Condition()
        self._unsettled = 0
        self._stop: PublishResult | None = None
        self.unknown_taken = 0
        """How many unknown results were taken."""

    def __len__(self) -> int:
        return len(self._deliveries)

    @property
    def unsettled(self) -> int:
        """How many envelopes were accepted and have no result yet."""
        return self._unsettled

    @property
    def stop(self) -> PublishResult | None:
        """The first result for which a dataflow must not commit, once there is one."""
        return self._stop

    def expect(self, messages: int) -> None:
        """So many more envelopes are accepted."""
        with self._news:
            self._unsettled += messages

    def deliver(self, delivery: Delivery, stop: PublishResult | None) -> None:
        """Results have come; called by an ACK worker."""
        with self._news:
            if stop is not None and self._stop is None:
                # Before anybody can take these results and pass them on.
                self._stop = stop
            self._deliveries.append(delivery)
            self._unsettled -= len(delivery.oks) + len(delivery.errs)
            self._news.notify_all()

    def take(self) -> list[Delivery]:
        """The deliveries that are there, without waiting."""
        deliveries = self._deliveries
        taken = [deliveries.popleft() for _ in range(len(deliveries))]
        if self._stop is not None:
            errs = [result for delivery in taken for result in delivery.errs]
            self.unknown_taken += sum(result.outcome is Outcome.UNKNOWN for result in errs)
        return taken

    def wait(self, below: int, seconds: float) -> bool:
        """Wait for the next delivery, unless fewer than `below` envelopes are unsettled; returns
        whether they are.
        """
        with self._news:
            if self._unsettled >= below and seconds > 0:
                self._news.wait(seconds)
            return self._unsettled < below
