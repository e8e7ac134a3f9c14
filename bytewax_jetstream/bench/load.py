"""What is published: topics, ids and envelopes, the same for every strategy.

Every strategy makes them while the clock runs (0.3 us each), so that memory does not grow with
their number.
"""

import time
from collections.abc import Callable, Iterator

from ..envelope import Envelope
from .cases import Case

__all__ = ["ID_HEADERS", "STREAM", "TOPICS", "Load", "is_warm_up"]

STREAM = "BYTEWAX_JETSTREAM_BENCH"
ID_HEADERS = {"msgid": "Nats-Msg-Id", "header": "Event-Id"}
"""The header that carries the event id; by the first, the server recognises duplicates."""


TOPICS = tuple(f"bench.{number}" for number in range(5))
AGGREGATES = 1_000
WARM_UP = 1_000
"""The most messages that are published before the clock starts."""


def is_warm_up(event_id: str) -> bool:
    """Whether a message was published before the clock started."""
    return event_id.startswith("w")


class Load:
    """The envelopes of one round.

    :arg run: Begins the event ids of this round, so that no other round has them.
    """

    def __init__(self, case: Case, run: str) -> None:
        self.messages = case.messages
        self.batch = case.batch
        self._run = run
        self._rate = case.rate
        self._started = 0.0
        self._given = 0
        payload = b"x" * case.payload_bytes
        self._slots = [
            (TOPICS[number % len(TOPICS)], payload, f"aggregate-{number}", (None, None, None, None))
            for number in range(AGGREGATES)
        ]

    def warm_up(self) -> list[Envelope]:
        """The envelopes that are published, and settled, before the clock starts."""
        return self._make(f"w{self._run}-", 0, min(self.messages, WARM_UP))

    def batches(self) -> Iterator[list[Envelope]]:
        """The envelopes that are published while the clock runs."""
        for first in range(0, self.messages, self.batch):
            last = min(first + self.batch, self.messages)
            yield self._make(f"{self._run}-", first, last)
            self._given = last

    def paced(self, rest: Callable[[float], object] = time.sleep) -> Iterator[list[Envelope]]:
        """The same, each batch when it is due.

        :arg rest: Called with the seconds until then.
        """
        for batch in self.batches():
            if pause := self.seconds_until_due():
                rest(pause)
            yield batch

    def seconds_until_due(self) -> float:
        """How long the last batch has to wait; always 0 without a rate."""
        if self._rate is None:
            return 0.0
        now = time.perf_counter()
        self._started = self._started or now
        return max(0.0, self._started + (self._given + self.batch) / self._rate - now)

    def _make(self, prefix: str, first: int, last: int) -> list[Envelope]:
        slots = self._slots
        envelopes = []
        for number in range(first, last):
            topic, payload, aggregate, rest = slots[number % AGGREGATES]
            envelopes.append(
                _new(Envelope, (topic, payload, f"{prefix}{number}", aggregate, *rest))
            )
        return envelopes


_new = tuple.__new__
"""Without the keyword constructor, which costs as much as a whole publish."""
