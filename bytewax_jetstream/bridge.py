"""What was read from one broker, as an envelope for another: key, headers and order are kept, and
the id is stable.

A message keeps its identity however often it is read and published again: by default its place
(stream and sequence; topic, partition and offset), or, with `own_id`, the event id that it was
published with.
"""

from collections.abc import Mapping
from typing import Protocol

from .envelope import Envelope
from .jetstream.message import JetStreamMessage

__all__ = ["from_jetstream", "from_kafka"]


class _Record(Protocol):
    """What is needed of Bytewax's `KafkaSourceMessage`."""

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

    A message without a key belongs with its partition, as it did there; one without a value (a
    tombstone) becomes an empty payload. What of key and headers is not UTF-8 is kept for Kafka and
    rejected by JetStream, which has no place for it.

    :arg record: What `jop.input` with `KafkaSettings` yields.
    :arg topic: Where to publish it.
    :arg own_id: Prefer the event id it was published with, where there is one.
    """
    headers = {name: _text(value) for name, value in record.headers}
    place = f"{record.topic}-{record.partition}-{record.offset}"
    key = record.key
    return Envelope(
        topic,
        record.value or b"",
        event_id=_event_id(headers, place, own_id=own_id),
        aggregate_id=_text(key) if key is not None else f"{record.topic}-{record.partition}",
        event_type=_header(headers, "event-type"),
        headers=_kept(headers),
    )


def from_jetstream(message: JetStreamMessage, topic: str, *, own_id: bool = False) -> Envelope:
    """A JetStream message as an envelope: order is kept per aggregate or, where there is none, per
    subject.

    :arg message: What `jop.input` with `JetStreamSettings` yields.
    :arg topic: Where to publish it.
    :arg own_id: Prefer the event id it was published with, where there is one.
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
"""Headers that are fields of an envelope."""


def _event_id(headers: Mapping[str, str], place: str, *, own_id: bool) -> str:
    # The message id last: where both are there it is a digest of the event id.
    return (own_id and (_header(headers, "event-id") or _header(headers, "nats-msg-id"))) or place


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)


def _kept(headers: Mapping[str, str]) -> dict[str, str] | None:
    """The user's own; what a server reads as an order to itself stays behind."""
    kept = {
        name: value
        for name, value in headers.items()
        if name.lower() not in OURS and name[:5].lower() != "nats-"
    }
    return kept or None


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "surrogateescape")
