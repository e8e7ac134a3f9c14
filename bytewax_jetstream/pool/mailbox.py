"""A lane's results, between the ACK workers that settle them and the thread that collects them."""

import threading
from collections import deque

from .results import Delivery

__all__ = ["Mailbox"]


class Mailbox:
    """Counts what a lane has unsettled, and keeps its deliveries in order until they are taken.

    :arg worker: The dataflow worker that the results name.
    """

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self._deliveries: deque[Delivery] = deque()
        self._news = threading.Condition()
        self._unsettled = 0
        self._stop_reason: str | None = None

    def __len__(self) -> int:
        return len(self._deliveries)

    @property
    def unsettled(self) -> int:
        """How many envelopes were accepted and have no result yet."""
        return self._unsettled

    @property
    def stop_reason(self) -> str | None:
        """Why a dataflow must not commit, once there is a reason."""
        return self._stop_reason

    def expect(self, messages: int) -> None:
        """So many more envelopes are accepted."""
        with self._news:
            self._unsettled += messages

    def deliver(self, delivery: Delivery, stop_reason: str | None) -> None:
        """Results have come; called by an ACK worker."""
        with self._news:
            if stop_reason is not None and self._stop_reason is None:
                # Before anybody can take these results and pass them on.
                self._stop_reason = stop_reason
            self._deliveries.append(delivery)
            self._unsettled -= len(delivery.oks) + len(delivery.errs)
            self._news.notify_all()

    def take(self) -> list[Delivery]:
        """The deliveries that are there, without waiting."""
        deliveries = self._deliveries
        return [deliveries.popleft() for _ in range(len(deliveries))]

    def wait(self, below: int, seconds: float) -> bool:
        """Wait for the next delivery, unless fewer than `below` envelopes are unsettled; returns
        whether they are.
        """
        with self._news:
            if self._unsettled >= below and seconds > 0:
                self._news.wait(seconds)
            return self._unsettled < below
