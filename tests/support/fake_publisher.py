"""A broker inside the process, for tests of the pool: it answers, keeps silent, refuses or breaks
as told.
"""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from bytewax_jetstream.dispatch.flight import Flight, Leg, Policy, Route, prepare_each
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.publishing.answers import Receipt, Refusal
from bytewax_jetstream.publishing.publisher import PublisherEvents

__all__ = ["POLICY", "FakePublisher", "silent", "stored"]

POLICY = Policy(
    delivery_timeout=60.0,
    ack_timeout=60.0,
    one_per_aggregate=True,
    window=100_000,
    window_bytes=1 << 30,
    flight=512,
)

Answer = Receipt | Refusal | None


class Sent(NamedTuple):
    """One attempt."""

    flight: int
    place: int
    envelope: Envelope


def stored(envelope: Envelope) -> Answer:
    """Everything is stored."""
    return Receipt("FAKE", None, 1, duplicate=False)


def silent(envelope: Envelope) -> Answer:
    """Nothing is answered, until `release`."""
    return None


class FakePublisher:
    """Implements `Publisher`.

    :arg answer: What becomes of an envelope; None leaves it unanswered.
    :arg identity: Publishers with equal ones share the first one's connection.
    :arg connects: Whether there is a connection after the start.
    """

    broker = "fake"

    def __init__(
        self,
        answer: Callable[[Envelope], Answer] = stored,
        *,
        identity: Hashable = None,
        policy: Policy = POLICY,
        connects: bool = True,
    ) -> None:
        self.answer = answer
        self.sent: list[Sent] = []
        """All attempts, in the order they were made."""
        self.unanswered: list[Sent] = []
        self.prepared: list[int] = []
        """How many envelopes were accepted at once, in order."""
        self.flights = 0
        self.starts = 0
        self.closes = 0
        self.hurries = 0
        self.again = float("inf")
        self.fail_start: BaseException | None = None
        self.fail_send: BaseException | None = None
        self.on_close: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop
        self.events: PublisherEvents
        self._identity = identity if identity is not None else id(self)
        self._policy = policy
        self._connects = connects

    @property
    def identity(self) -> Hashable:
        return self._identity

    @property
    def policy(self) -> Policy:
        return self._policy

    async def start(self, events: PublisherEvents) -> None:
        self.starts += 1
        if self.fail_start is not None:
            raise self.fail_start
        self.loop, self.events = asyncio.get_running_loop(), events
        if self._connects:
            events.connected()

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Any]:
        self.prepared.append(len(envelopes))
        return prepare_each(self._prepare, envelopes)

    def route(self, topic: str) -> Route | None:
        return None

    def _prepare(self, envelope: Envelope) -> bytes:
        if envelope.topic == "bad":
            raise EnvelopeError("the topic is bad: choose another")
        return envelope.payload

    def send(self, flight: Flight | Leg) -> None:
        assert isinstance(flight, Flight), "there are no routes"
        if self.fail_send is not None:
            raise self.fail_send
        self.flights += 1
        sent = [
            Sent(flight.number, at, entry.envelope)
            for at, entry in enumerate(flight.entries)
            if entry is not None
        ]
        self.sent += sent
        self.loop.call_soon(self._answer_all, sent)

    def hurry(self) -> float:
        self.hurries += 1
        return self.again

    async def close(self) -> None:
        self.closes += 1
        self.on_close()

    def statistics(self) -> dict[str, int]:
        return {"flights": self.flights}

    # For tests, from any thread

    def tell(self, happen: Callable[[PublisherEvents], object]) -> None:
        """Have something happen to the connection, on the pool's thread."""
        self.loop.call_soon_threadsafe(happen, self.events)

    def release(self) -> None:
        """Answer everything that is unanswered, and everything to come."""
        self.answer = stored
        self.loop.call_soon_threadsafe(self._answer_unanswered)

    def _answer_unanswered(self) -> None:
        sent, self.unanswered = self.unanswered, []
        self._answer_all(sent)

    def _answer_all(self, sent: list[Sent]) -> None:
        for one in sent:
            answer = self.answer(one.envelope)
            if answer is None:
                self.unanswered.append(one)
            elif isinstance(answer, Receipt):
                self.events.acked(one.flight, one.place, answer)
            else:
                self.events.refused(one.flight, one.place, answer)
        self.events.turn()
