"""`Envelope`, `PublishResult`, `Checkpoint`: what users give to this package and get back.

All are `NamedTuple`s, which are immutable and picklable. They are also the fastest such type to
make: 0.66 us each, 0.12 us in bulk, against 0.96 us for a frozen dataclass and 1.28 us for one with
slots.
"""

import pickle
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple

__all__ = [
    "Checkpoint",
    "Envelope",
    "Outcome",
    "PublishOptions",
    "PublishResult",
    "payload_size",
    "picklable",
]


class PublishOptions(NamedTuple):
    """What a JetStream server does with one message; Kafka rejects an envelope that has options.

    Options take the place of `Nats-*` headers, which are rejected: a stray `Nats-Rollup` header
    empties a stream.
    """

    ttl: timedelta | None = None
    """How long the stream keeps the message: whole seconds, at least 1 (header `Nats-TTL`)."""
    expected_last_sequence: int | None = None
    """Store only if the stream's last sequence is this one."""
    expected_last_subject_sequence: int | None = None
    """Store only if the last sequence of this envelope's topic is this one."""


class Envelope(NamedTuple):
    """One message to publish; it is checked when a lane accepts it.

    An invalid envelope comes back as a rejected result that says what to fix, and does not affect
    other envelopes.
    """

    topic: str
    """JetStream subject or Kafka topic; no wildcards, white space or control characters."""
    payload: bytes
    event_id: str
    """Identity of the message, the same on every replay; by it a broker recognises duplicates."""
    aggregate_id: str | None = None
    """Envelopes of one aggregate are stored in the order in which their lane got them."""
    event_type: str | None = None
    headers: Mapping[str, str] | None = None
    partition: int | None = None
    """Kafka only: the partition to write to, instead of the one the aggregate id hashes to."""
    options: PublishOptions | None = None


def payload_size(envelope: Envelope) -> int:
    """Payload bytes that count against budget and window; 0 if the payload is not bytes, which is
    rejected.
    """
    payload = envelope.payload
    return len(payload) if type(payload) is bytes else 0


def picklable(envelope: Envelope) -> Envelope:
    """The envelope in a form that a recovery store can hold: a value that cannot be pickled becomes
    bytes, a dict or its `repr`.
    """
    try:
        pickle.dumps(envelope)
    except Exception:  # pickling runs code of the values' types
        return Envelope(*map(_picklable, envelope))
    return envelope


def _picklable(value: Any) -> Any:
    try:
        if isinstance(value, memoryview):
            return value.tobytes()
        if isinstance(value, Mapping) and type(value) is not dict:
            value = dict(value)
        pickle.dumps(value)
    except Exception:
        return object.__repr__(value)
    return value


class Outcome(StrEnum):
    """What became of an envelope: every envelope ends in one of these three."""

    STORED = "stored"
    """The broker has stored it."""
    REJECTED = "rejected"
    """It is definitely not stored, and would be rejected again if sent unchanged."""
    UNKNOWN = "unknown"
    """It may be stored, now or later: the broker did not say before the delivery timeout."""


class PublishResult(NamedTuple):
    """What became of one envelope: where it is stored, or why it is not."""

    outcome: Outcome
    event_id: str
    topic: str
    aggregate_id: str | None
    event_type: str | None
    broker: str
    """`jetstream` or `kafka`."""
    stream: str | None
    """The JetStream stream it is stored in; None on Kafka."""
    partition: int | None
    """The Kafka partition it is stored in; None on JetStream."""
    sequence: int | None
    """Its stream sequence, or its offset in the Kafka partition; None if the broker did not say."""
    duplicate: bool | None
    """True if the broker had this event id before; None if the broker does not say."""
    attempts: int
    """How often it was sent; 0 if it was rejected before it was sent."""
    ack_seconds: float
    """Seconds from its acceptance by the lane to its settlement."""
    reason: str | None
    """Why it was not stored, and what to do; None if it was stored."""
    code: int | None
    """The broker's own error code, if it gave one."""
    envelope: Envelope | None
    """The envelope if it was not stored, for a dead-letter queue; None if it was stored."""
    worker: int
    """The dataflow worker that published it (0 outside a dataflow)."""
    epoch: int
    """The dataflow epoch that it belongs to (0 outside a dataflow)."""


class Checkpoint(NamedTuple):
    """All envelopes of one epoch in one lane are settled, and none of them is unknown.

    A checkpoint comes at least once for each lane and epoch that had envelopes. After a crash it
    may come again, with the same lane and epoch.
    """

    step: str
    worker: int
    lane: str
    epoch: int
    stored: int
    """How many of the epoch's envelopes are stored, duplicates included."""
    duplicates: int
    """How many of the stored envelopes the broker had before."""
    rejected: int
    last_event_id: str
    """The event id of the envelope that was settled last."""
