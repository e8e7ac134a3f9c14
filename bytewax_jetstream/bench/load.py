"""What is published: topics, ids and envelopes, the same for every strategy.

Every strategy makes them while the clock runs (0.3 us each), so that memory does not grow with
their number.
"""

import secrets
import time
from array import array
from collections.abc import Callable, Iterator

from ..envelope import Envelope
from .cases import Case

__all__ = ["ID_HEADERS", "Load", "is_warm_up", "new_place", "topics_of"]

ID_HEADERS = {"msgid": "Nats-Msg-Id", "header": "Event-Id"}
"""The header that carries the event id; by the first, the server recognises duplicates."""
AGGREGATES = 1_000
REST = (None,) * (len(Envelope._fields) - 4)
"""The other fields of each envelope."""
WARM_UP = 1_000
"""The most messages that are published before the clock starts."""


def new_place() -> str:
    """The name of a stream, and the beginning of its topics, that no other run has."""
    return f"bench-{secrets.token_hex(6)}"


def topics_of(place: str) -> tuple[str, ...]:
    """The topics of a run."""
    return tuple(f"{place}.{number}" for number in range(5))


def is_warm_up(event_id: str) -> bool:
    """Whether a message was published before the clock started."""
    return event_id.startswith("w")


class Load:
    """The envelopes of one round.

    :arg run: Begins the event ids of this round, so that no other round has them.
    :arg place: The run's own stream; begins the names of its topics.
    """

    def __init__(self, case: Case, run: str, place: str) -> None:
        self.messages = case.messages
        self.place = place
        self.batch = case.batch
        self._run = run
        self._rate = case.rate
        self._started = 0.0
        self._given = 0
        self._given_at = array("d")
        """When each batch was handed out."""
        payload = b"x" * case.payload_bytes
        topics = topics_of(place)
        self._slots = [
            (topics[number % len(topics)], payload, f"aggregate-{number}", REST)
            for number in range(AGGREGATES)
        ]

    def warm_up(self) -> list[Envelope]:
        """The envelopes that are published, and settled, before the clock starts."""
        return self._make(f"w{self._run}-", 0, min(self.messages, WARM_UP))

    def batches(self) -> Iterator[list[Envelope]]:
        """The envelopes that are published while the clock runs."""
        for first in range(0, self.messages, self.batch):
            last = min(first + self.batch, self.messages)
            made = self._make(f"{self._run}-", first, last)
            self._given_at.append(time.perf_counter())
            yield made
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

    def number_of(self, event_id: str) -> int:
        """Which message of the round has this id."""
        return int(event_id[len(self._run) + 1 :])

    def given_at(self, number: int) -> float:
        """When a message was handed out, by `time.perf_counter`."""
        return self._given_at[number // self.batch]

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
