"""`from_kafka`, `from_jetstream`: a message read from one broker as an envelope for another.

Payload, key, time, headers and order are kept: a tombstone stays one, headers keep their order,
repeated names, bytes and null values. A message has the same event id however often it is read and
published: by default its position, or with `own_id` the event id that it was published with.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol
from urllib.parse import quote_from_bytes

from .envelope import Envelope, HeaderPairs, HeaderValue, as_mapping
from .jetstream.headers import is_safe
from .jetstream.message import JetStreamMessage

__all__ = ["from_jetstream", "from_kafka"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
NO_TIME = 0
"""The type of a record's time if it has none."""


class _Record(Protocol):
    """The part of Bytewax's `KafkaSourceMessage` that is always used here.

    Used where it is there: `timestamp`, `cluster`, `topic_id`.
    """

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def topic(self) -> str | None: ...
    @property
    def partition(self) -> int | None: ...
    @property
    def offset(self) -> int | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


def from_kafka(record: _Record, topic: str, *, own_id: bool = False) -> Envelope:
    """A Kafka message as an envelope: the key becomes the aggregate id, so its order is kept.

    A message without a key keeps its order among the messages of its partition. Kept as they are:
    a tombstone (payload None), the record's time, keys and headers that are not text. Left out are
    the headers `Event-Id`, `Event-Type` and `Aggregate-Id`, which are fields of the envelope, and
    `Nats-...`, which tell a NATS server what to do.

    By default the event id is made of the cluster, the topic's id, and topic, partition and offset,
    so that a topic made again gets other ids. Messages of Bytewax's own Kafka source do not name
    cluster and topic id; there the id is topic, partition and offset, which may repeat.

    :arg record: A message of `jop.input` with `KafkaSettings`.
    :arg topic: Where to publish it.
    :arg own_id: Use the event id that it was published with, if there is one. What is not text in
        it is percent-encoded.
    """
    pairs = tuple([(name, _value(value)) for name, value in record.headers or ()])
    position = f"{record.topic}-{record.partition}-{record.offset}"
    made_in = [getattr(record, name, None) for name in ("cluster", "topic_id")]
    if any(made_in):
        position = ":".join([*map(str, filter(None, made_in)), position])
    key = record.key
    return Envelope(
        topic,
        record.value,
        _event_id(pairs, position, own_id=own_id),
        _text(key) if key is not None else f"{record.topic}-{record.partition}",
        _field(pairs, "event-type"),
        _kept(pairs),
        timestamp=_time(getattr(record, "timestamp", None)),
    )


def from_jetstream(message: JetStreamMessage, topic: str, *, own_id: bool = False) -> Envelope:
    """A JetStream message as an envelope: each aggregate keeps its order, and so does each subject
    whose messages have no aggregate.

    The timestamp is the one that the message was published with. For the time at which the stream
    stored it: `from_jetstream(message, topic)._replace(timestamp=message.time)`.

    By default the event id is made of stream, sequence and time of storage, so that a stream made
    again gets other ids.

    :arg message: A message of `jop.input` with `JetStreamSettings`.
    :arg topic: Where to publish it.
    :arg own_id: Use the event id that it was published with, if there is one.
    """
    pairs = message.header_pairs
    microseconds = (message.time - EPOCH) // MICROSECOND
    aggregate_id = _field(pairs, "aggregate-id")
    return Envelope(
        topic,
        message.payload,
        _event_id(pairs, f"{message.stream}-{message.sequence}-{microseconds}", own_id=own_id),
        message.subject if aggregate_id is None else aggregate_id,
        _field(pairs, "event-type"),
        _kept(pairs),
        timestamp=message.timestamp,
    )


OURS = frozenset({"event-id", "event-type", "aggregate-id"})
"""Headers that become fields of the envelope."""


def _event_id(pairs: HeaderPairs, position: str, *, own_id: bool) -> str:
    if not own_id:
        return position
    # The message id last: where both exist, it is a digest of the event id.
    own = _field(pairs, "event-id") or _field(pairs, "nats-msg-id")
    if not own:
        return position
    return own if is_safe(own) else quote_from_bytes(own.encode("utf-8", "surrogateescape"))


def _field(pairs: HeaderPairs, name: str) -> str | None:
    for key, value in pairs:
        if key.lower() == name:
            return value if value is None or isinstance(value, str) else _text(value)
    return None


def _kept(pairs: HeaderPairs) -> Mapping[str, HeaderValue] | None:
    """The user's own headers, without those that tell a NATS server what to do."""
    kept = tuple(
        [
            pair
            for pair in pairs
            if (name := pair[0].lower()) not in OURS and not name.startswith("nats-")
        ]
    )
    return as_mapping(kept) if kept else None


def _value(value: bytes | None) -> HeaderValue:
    """Text where it is UTF-8, else the bytes."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _time(timestamp: tuple[int, int] | None) -> datetime | None:
    """A record's time; None if it has none, or one outside the years 1 to 9999."""
    if timestamp is None or timestamp[0] == NO_TIME:
        return None
    try:
        return EPOCH + timedelta(milliseconds=timestamp[1])
    except OverflowError:
        return None
