"""`from_kafka`, `from_jetstream`: a message read from one broker as an envelope for another.

Key, headers and order are kept. A message has the same event id however often it is read and
published: by default its position (stream and sequence; topic, partition and offset), or with
`own_id` the event id that it was published with.
"""

from collections.abc import Mapping
from typing import Protocol

from .envelope import Envelope
from .jetstream.message import JetStreamMessage

__all__ = ["from_jetstream", "from_kafka"]


class _Record(Protocol):
    """The part of Bytewax's `KafkaSourceMessage` that is used here."""

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
    def headers(self) -> list[tuple[str, bytes]]: ...


def from_kafka(record: _Record, topic: str, *, own_id: bool = False) -> Envelope:
    """A Kafka message as an envelope: the key becomes the aggregate id, so its order is kept.

    A message without a key keeps its order among the messages of its partition; one without a value
    (a tombstone) gets an empty payload. A key or header that is not UTF-8 is kept for Kafka;
    JetStream cannot hold it and rejects the envelope.

    :arg record: A message of `jop.input` with `KafkaSettings`.
    :arg topic: Where to publish it.
    :arg own_id: Use the event id that it was published with, if there is one.
    """
    headers = {name: _text(value) for name, value in record.headers}
    position = f"{record.topic}-{record.partition}-{record.offset}"
    key = record.key
    return Envelope(
        topic,
        record.value or b"",
        event_id=_event_id(headers, position, own_id=own_id),
        aggregate_id=_text(key) if key is not None else f"{record.topic}-{record.partition}",
        event_type=_header(headers, "event-type"),
        headers=_kept(headers),
    )


def from_jetstream(message: JetStreamMessage, topic: str, *, own_id: bool = False) -> Envelope:
    """A JetStream message as an envelope: each aggregate keeps its order, and so does each subject
    whose messages have no aggregate.

    :arg message: A message of `jop.input` with `JetStreamSettings`.
    :arg topic: Where to publish it.
    :arg own_id: Use the event id that it was published with, if there is one.
    """
    headers = message.headers
    return Envelope(
        topic,
        message.payload,
        event_id=_event_id(headers, f"{message.stream}-{message.sequence}", own_id=own_id),
        aggregate_id=_header(headers, "aggregate-id") or message.subject,
        event_type=_header(headers, "event-type"),
        headers=_kept(headers),
    )


OURS = frozenset({"event-id", "event-type", "aggregate-id"})
"""Headers that become fields of the envelope."""


def _event_id(headers: Mapping[str, str], position: str, *, own_id: bool) -> str:
    # The message id last: where both exist, it is a digest of the event id.
    own = own_id and (_header(headers, "event-id") or _header(headers, "nats-msg-id"))
    return own or position


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)


def _kept(headers: Mapping[str, str]) -> dict[str, str] | None:
    """The user's own headers, without those that tell a NATS server what to do."""
    kept = {
        name: value
        for name, value in headers.items()
        if name.lower() not in OURS and name[:5].lower() != "nats-"
    }
    return kept or None


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "surrogateescape")
