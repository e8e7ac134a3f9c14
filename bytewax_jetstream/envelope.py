"""`Envelope`, `PublishResult`, `Checkpoint`: what users give to this package and get back.

All are `NamedTuple`s, which are immutable and picklable. They are also the fastest such type to
make: 0.66 us each, 0.12 us in bulk, against 0.96 us for a frozen dataclass and 1.28 us for one with
slots.
"""

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, cast

__all__ = [
    "Checkpoint",
    "Envelope",
    "HeaderPairs",
    "HeaderValue",
    "Headers",
    "Outcome",
    "PublishOptions",
    "PublishResult",
    "as_mapping",
    "first_values",
    "payload_size",
    "payload_sizes",
    "picklable",
]

JUST_BYTES = frozenset({bytes})
HeaderValue = str | bytes | None
"""A header's value. Bytes that are UTF-8 come back as a str."""
HeaderPairs = tuple[tuple[str, HeaderValue], ...]
"""Names and values of headers, in order; a name may come more than once."""


class Headers(Mapping[str, HeaderValue]):
    """All headers in their order, repeated names included; as a mapping it has the first value of
    each name.
    """

    __slots__ = ("_first", "pairs")

    def __init__(self, pairs: Iterable[tuple[str, HeaderValue]]) -> None:
        self.pairs: HeaderPairs = tuple(pairs)
        self._first = first_values(self.pairs)

    def __getitem__(self, name: str) -> HeaderValue:
        return self._first[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Headers):
            return self.pairs == other.pairs
        if not isinstance(other, Mapping):
            return NotImplemented
        return len(self.pairs) == len(self._first) and self._first == dict(other.items())

    __hash__ = None  # type: ignore[assignment]  # as a dict: envelopes are compared, never hashed

    def __repr__(self) -> str:
        return f"Headers({list(self.pairs)!r})"


def as_mapping(pairs: HeaderPairs) -> dict[str, HeaderValue] | Headers:
    """The simplest mapping that says the same: a dict, unless a name is repeated."""
    values = dict(pairs)
    return values if len(values) == len(pairs) else Headers(pairs)


def first_values(pairs: Iterable[tuple[str, HeaderValue]]) -> dict[str, HeaderValue]:
    """The first value of each name."""
    values: dict[str, HeaderValue] = {}
    for name, value in pairs:
        values.setdefault(name, value)
    return values


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
    schedule: datetime | str | None = None
    """When the stream shall publish the message (header `Nats-Schedule`, nats-server 2.12): once at
    a time with a time zone, or again and again, as `@every 5m`, `@hourly` or six cron fields say.
    Until then it is kept under this envelope's topic, where it replaces whatever is stored: give
    each schedule a topic of its own. What is published has your headers, and no event id.
    """
    schedule_target: str | None = None
    """The topic on which it is published then; the same stream must cover it."""
    schedule_ttl: timedelta | None = None
    """How long the stream keeps what it publishes: whole seconds, at least 1."""
    group: str | None = None
    """Only with `atomic=True`: neighbours of one aggregate are stored all or none if they have the
    same name here, instead of all that are submitted together. Name a group after its cause, such
    as an order, and emit it in one batch: then it is the same at every replay, wherever the source
    cuts its batches."""


class Envelope(NamedTuple):
    """One message to publish; it is checked when a lane accepts it.

    An invalid envelope comes back as a rejected result that says what to fix, and does not affect
    other envelopes.
    """

    topic: str
    """JetStream subject or Kafka topic; no wildcards, white space or control characters."""
    payload: bytes | None
    """None is a tombstone: Kafka stores a null value, JetStream an empty payload with a header that
    says so."""
    event_id: str
    """Identity of the message, the same on every replay; by it a broker recognises duplicates."""
    aggregate_id: str | None = None
    """Envelopes of one aggregate are stored in the order in which their lane got them."""
    event_type: str | None = None
    headers: Mapping[str, HeaderValue] | Sequence[tuple[str, HeaderValue]] | None = None
    """Your own headers. Pairs keep their order and repeated names. What NATS cannot carry, such as
    line ends, bytes or None, is percent-encoded there, and decoded by this package's source."""
    partition: int | None = None
    """Kafka only: the partition to write to, instead of the one the aggregate id hashes to."""
    options: PublishOptions | None = None
    timestamp: datetime | None = None
    """When it happened, with a time zone. It becomes the time of the Kafka record, to the
    millisecond; JetStream keeps it in a header. None: Kafka takes the time of sending."""

    @property
    def header_pairs(self) -> HeaderPairs:
        """All headers in order, repeated names included; empty if there are none."""
        headers = self.headers
        if headers is None:
            return ()
        if isinstance(headers, Headers):
            return headers.pairs
        return tuple(headers.items() if isinstance(headers, Mapping) else headers)


def payload_size(envelope: Envelope) -> int:
    """Payload bytes that count against budget and window; 0 if there are none, or the payload is
    not bytes, which is rejected.
    """
    payload = envelope.payload
    return len(payload) if type(payload) is bytes else 0


def payload_sizes(envelopes: Sequence[Envelope]) -> int:
    """Payload bytes of all of these together, as `payload_size` counts them; where every payload is
    bytes, no Python code runs for each.
    """
    payloads = [envelope[1] for envelope in envelopes]
    if JUST_BYTES.issuperset(map(type, payloads)):
        return sum(map(len, cast(list[bytes], payloads)))
    return sum(map(payload_size, envelopes))


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
        if isinstance(value, Mapping) and not isinstance(value, dict | Headers):
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
    """How many of the stored envelopes the broker had before, at least: of some in batches it does
    not say."""
    rejected: int
    last_event_id: str
    """The event id of the envelope that was settled last."""
