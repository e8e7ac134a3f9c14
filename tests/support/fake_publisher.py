"""A broker inside the process, for tests of the pool: it answers, keeps silent, refuses or breaks
as told.
"""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.publishing import (
    Outgoing,
    Policy,
    PublisherEvents,
    Receipt,
    Refusal,
    Route,
    Singles,
    Wire,
    prepare_each,
)

__all__ = ["POLICY", "FakePublisher", "silent", "stored"]

POLICY = Policy(
    delivery_timeout=60.0,
    ack_timeout=60.0,
    one_per_aggregate=True,
    window=100_000,
    window_bytes=1 << 30,
    max_send=512,
)

Answer = Receipt | Refusal | None


@dataclass(frozen=True)
class Sent:
    """One attempt."""

    number: int
    index: int
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
        self.sends = 0
        self.starts = 0
        self.closes = 0
        self.flush_hints = 0
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

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Wire | EnvelopeError]:
        self.prepared.append(len(envelopes))
        return prepare_each(self._prepare, envelopes)

    def duplicate_window(self, topic: str) -> float | None:
        """None: not known."""
        return None

    def route(self, topic: str) -> Route | None:
        return None

    def _prepare(self, envelope: Envelope) -> bytes:
        if envelope.topic == "bad":
            raise EnvelopeError("the topic is bad: choose another")
        return envelope.payload or b""

    def send(self, outgoing: Outgoing) -> None:
        assert isinstance(outgoing, Singles), "there are no routes"
        if self.fail_send is not None:
            raise self.fail_send
        self.sends += 1
        sent = [Sent(outgoing.number, at, each) for at, each in enumerate(outgoing.envelopes)]
        self.sent += sent
        self.loop.call_soon(self._answer_all, sent)

    def flush_hint(self) -> float:
        self.flush_hints += 1
        return self.again

    def transit(self) -> tuple[int, int]:
        """Not known here."""
        return 0, 0

    async def close(self) -> None:
        self.closes += 1
        self.on_close()

    def statistics(self) -> dict[str, int]:
        return {"sends": self.sends}

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
                self.events.acked(one.number, one.index, answer)
            else:
                self.events.refused(one.number, one.index, answer)
        self.events.process()
