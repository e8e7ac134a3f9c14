"""Publishes to the broker in memory as to JetStream: batches, singles, event ids it knows."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import cast

from ...envelope import Envelope
from ...errors import EnvelopeError
from ...publishing import (
    Append,
    Ask,
    Outgoing,
    Policy,
    PublisherEvents,
    Receipt,
    Refusal,
    Route,
    Singles,
    Wire,
    prepare_each,
    refuse_conflicts,
)
from ...settings import PoolSettings
from .checks import check
from .connection import Answer, Connection
from .faults import Faults
from .storage import STREAM, Storage

__all__ = ["JetStreamLike"]

FLOW_INTERVAL = 500
"""Messages of a batch after which the broker sends a flow ack."""


class _Batch:
    """What the broker knows of a batch."""

    def __init__(self, key: str) -> None:
        self.key = key
        """By which it is decided whether answers to it are lost."""
        self.stored = 0
        """How many of its first messages are."""
        self.over = False


class JetStreamLike:
    """Stores each event id once, however often the pool sends it; loses what it is told to lose.

    :arg identity: Of the broker: its lanes share one connection.
    :arg batches: Whether its stream takes batches.
    """

    broker = "jetstream"

    def __init__(
        self,
        faults: Faults,
        storage: Storage,
        pool: PoolSettings,
        *,
        identity: Hashable,
        batches: bool,
    ) -> None:
        self._faults = faults
        self._storage = storage
        self._pool = pool
        self._identity = identity
        self._route = Route(STREAM, replicated=False, fresh=True) if batches else None
        self._events: PublisherEvents
        self._connection: Connection | None = None
        self._batches: dict[int, _Batch] = {}

    @property
    def identity(self) -> Hashable:
        """That of the broker."""
        return self._identity

    @property
    def policy(self) -> Policy:
        """That of the JetStream publisher."""
        return Policy(
            delivery_timeout=self._pool.delivery_timeout,
            ack_timeout=self._pool.ack_timeout,
            one_per_aggregate=True,
            window=8_192,
            window_bytes=8 * 1024 * 1024,
            max_send=512,
            flow_interval=FLOW_INTERVAL,
        )

    async def start(self, events: PublisherEvents) -> None:
        """Connect.

        :raises ConnectError: when the broker is down.
        """
        self._events = events
        self._connection = Connection(
            self._faults, events, on_up=events.connected, on_down=self._disconnected
        )
        events.connected()

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Wire | EnvelopeError]:
        """Check envelopes; each is its own wire form."""
        wires = prepare_each(check, envelopes)
        refuse_conflicts(envelopes, wires, lambda topic: STREAM)
        return wires

    def duplicate_window(self, topic: str) -> float | None:
        """None: it remembers event ids as long as it lives."""
        return None

    def route(self, topic: str) -> Route | None:
        """The one stream, if it takes batches."""
        return self._route

    def send(self, outgoing: Outgoing) -> None:
        """Have the broker take it, and its answers come back."""
        if isinstance(outgoing, Append):
            self._append(outgoing)
            return
        if isinstance(outgoing, Ask):
            self._ask(outgoing)
            return
        assert isinstance(outgoing, Singles), "there are no groups"
        for index, envelope in enumerate(outgoing.envelopes):
            if self._faults.loses_request(envelope.event_id):
                continue
            answer = self._take(envelope)
            if isinstance(answer, Receipt):
                tell = partial(self._events.acked, outgoing.number, index, answer)
            else:
                tell = partial(self._events.refused, outgoing.number, index, answer)
            self._answer(envelope.event_id, tell)

    def flush_hint(self) -> float:
        """Nothing ever lingers here."""
        return float("inf")

    def transit(self) -> tuple[int, int]:
        """Not known here."""
        return 0, 0

    async def close(self) -> None:
        """Let go of the connection; nothing is waited for."""
        if self._connection is not None:
            self._connection.close()

    def statistics(self) -> dict[str, int]:
        """Counters of the connection."""
        return {"reconnects": self._connection.resets if self._connection is not None else 0}

    def _disconnected(self, reason: str) -> None:
        self._batches.clear()
        self._events.disconnected(reason)

    def _answer(self, key: str, answer: Answer) -> None:
        if self._connection is not None and not self._faults.loses_answer(key):
            self._connection.answer(answer)

    def _take(self, envelope: Envelope) -> Receipt | Refusal:
        """A message reaches the broker: it is known already, or refused, or stored."""
        return (
            self._storage.duplicate_of(envelope.event_id)
            or self._faults.refuses(envelope)
            or self._storage.store(envelope)
        )

    def _ask(self, ask: Ask) -> None:
        """Say which event ids it knows."""
        receipts = [self._storage.duplicate_of(each.event_id) for each in ask.envelopes]
        if self._connection is not None:
            self._connection.answer(partial(self._events.known, ask.number, receipts))

    # Batches

    def _append(self, append: Append) -> None:
        """Store the next messages of a batch, and none from a lost or refused one on."""
        number, events = append.number, self._events
        envelopes = cast(list[Envelope], append.wires)
        batch = self._batches.get(number)
        if batch is None and append.first:  # it has ended, and the broker has forgotten it
            self._answer(append.topic, partial(events.batch_ended, number, 0))
            return
        if batch is None:
            batch = self._batches[number] = _Batch(f"batch of {envelopes[0].event_id}")
        for index, envelope in enumerate(envelopes, start=append.first):
            if self._faults.loses_request(envelope.event_id):
                continue
            if index != batch.stored:  # one before it is lost
                batch.over = True
                break
            answer = self._take(envelope)
            if isinstance(answer, Refusal):
                batch.over = True
                self._answer(batch.key, partial(events.refused, number, index, answer))
                break
            batch.stored += 1  # a known event id counts, and is not said to be one
            if batch.stored % append.flow == 0:
                self._answer(batch.key, partial(events.batch_stored, number, batch.stored))
        if append.last and not self._faults.loses_request(batch.key):
            batch.over = True
        if batch.over:
            del self._batches[number]
            self._answer(batch.key, partial(events.batch_ended, number, batch.stored))
