"""Checks an envelope for Kafka, and encodes it as topic, key, payload, partition, headers and time.

Key: the aggregate id, so that Kafka keeps an aggregate in one partition and in order. Headers:
`Event-Id`, `Event-Type` and the user's own.
"""

import re
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from itertools import chain
from types import NoneType
from typing import NamedTuple

from ..envelope import Envelope
from ..errors import EnvelopeError
from ..publishing import header_items, utc

__all__ = [
    "ANY",
    "EVENT_ID",
    "EVENT_TYPE",
    "Headers",
    "Record",
    "are_plain",
    "check_topic",
    "encode",
    "is_plain",
    "misdated",
]

MAX_TOPIC = 249
TOPIC = re.compile(r"[A-Za-z0-9._-]+").fullmatch
EVENT_ID, EVENT_TYPE = "Event-Id", "Event-Type"
RESERVED = frozenset({"event-id", "event-type"})
MAX_PARTITION = (1 << 31) - 1
PAYLOADS = {bytes, NoneType}
ANY = -1
"""The partition that the key hashes to."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
NOW = 0
"""What librdkafka takes for the time of sending."""

Headers = list[tuple[str, str | bytes | None]]


class Record(NamedTuple):
    """An encoded envelope, as librdkafka takes it."""

    topic: str
    payload: bytes | None
    key: bytes | None
    partition: int
    headers: Headers
    timestamp: int = NOW
    """Milliseconds since 1970."""


def check_topic(topic: object) -> None:
    """Check that a topic has a valid name, whether or not it exists.

    :raises EnvelopeError: with what is wrong and what to do.
    """
    if not isinstance(topic, str):
        raise EnvelopeError(f"the topic must be a str, not {type(topic).__name__}", field="topic")
    if not topic:
        raise EnvelopeError("the topic is empty: give the envelope a Kafka topic", field="topic")
    shown = ascii(topic if len(topic) <= 80 else topic[:77] + "...")
    if len(topic) > MAX_TOPIC:
        raise EnvelopeError(
            f"topic {shown} has {len(topic)} characters, the limit is {MAX_TOPIC}: shorten it",
            field="topic",
            topic=topic,
            size=len(topic),
            limit=MAX_TOPIC,
        )
    if not TOPIC(topic) or topic in (".", ".."):
        raise EnvelopeError(
            f"topic {shown} is not a valid Kafka topic name: use only letters, digits, dots, "
            "dashes and underscores",
            field="topic",
            topic=topic,
        )


def is_plain(envelope: Envelope) -> bool:
    """Whether librdkafka takes an envelope's fields as they are; its topic is not checked.

    Most envelopes are plain, and need no `Record`: each object that is kept for a message in flight
    costs the garbage collector time again and again.
    """
    _, payload, event_id, aggregate_id, event_type, headers, partition, options, time = envelope
    return (
        (payload is None or type(payload) is bytes)
        and headers is None
        and partition is None
        and options is None
        and time is None
        and type(event_id) is str
        and event_id.isascii()
        and event_id != ""
        and (aggregate_id is None or (type(aggregate_id) is str and aggregate_id.isascii()))
        and (event_type is None or (type(event_type) is str and event_type.isascii()))
    )


def are_plain(envelopes: Sequence[Envelope], topics: Set[str]) -> bool:
    """Whether all envelopes are plain, and on these topics; False also when it is not certain.

    Checks whole columns (all payloads, all ids), which costs next to nothing per message.
    """
    if set(map(type, envelopes)) != {Envelope}:
        return False
    names, payloads, ids, aggregates, types, *rest = zip(*envelopes, strict=True)
    if not set(map(type, payloads)) <= PAYLOADS or set(map(type, chain(*rest))) != {NoneType}:
        return False
    try:
        words = "".join(ids) + "".join(filter(None, aggregates)) + "".join(filter(None, types))
        return topics >= set(names) and words.isascii() and all(ids)
    except Exception:  # not a str, or a str whose own code raises: encoded, or refused, by itself
        return False


def encode(envelope: Envelope) -> Record:
    """Check and encode an envelope; its topic must have been checked.

    :raises EnvelopeError: with what is wrong and what to do.
    """
    topic, payload, event_id, aggregate_id, event_type, headers, partition, options, time = envelope
    if not issubclass(type(event_id), str) or not event_id:
        raise _bad_event_id(event_id)
    if payload is not None and type(payload) is not bytes:
        words = f"the payload must be bytes or None, not {type(payload).__name__}"
        raise _bad(envelope, "payload", words)
    lines: Headers = [(EVENT_ID, _bytes("the event id", event_id, "event_id"))]
    key = None
    try:
        if aggregate_id is not None:
            key = _bytes("the aggregate id", aggregate_id, "aggregate_id")
        if event_type is not None:
            lines.append((EVENT_TYPE, _bytes("the event type", event_type, "event_type")))
    except AttributeError:
        words = "the aggregate id and the event type must each be a str or None"
        raise _bad(envelope, "aggregate_id", words) from None
    if headers is not None:
        lines += _user_lines(headers)
    if partition is None:
        partition = ANY
    elif type(partition) is not int or not 0 <= partition <= MAX_PARTITION:
        words = (
            f"invalid partition {partition!r:.40}: give 0 or more, or None to use the aggregate id"
        )
        raise _bad(envelope, "partition", words)
    if options is not None:
        words = "PublishOptions are for JetStream only: leave the options out for Kafka"
        raise _bad(envelope, "options", words)
    return Record(topic, payload, key, partition, lines, NOW if time is None else _time(time))


def _time(timestamp: datetime) -> int:
    """A timestamp as Kafka has it.

    :raises EnvelopeError: when it is none.
    """
    return (utc(timestamp) - EPOCH) // MILLISECOND or 1  # the nearest that is not taken for NOW


def misdated(record: Record, config: Mapping[str, str], now: float) -> str | None:
    """Why a topic refuses a record for its time; None if it does not, or that is not known.

    Brokers refuse a whole request for one such record, and with it records that are right.

    :arg config: The topic's configuration; empty if it is not known.
    :arg now: Seconds since 1970.
    """
    if record.timestamp == NOW or config.get("message.timestamp.type") != "CreateTime":
        return None
    ahead = record.timestamp - int(now * 1000)
    for name, milliseconds, where in (
        ("message.timestamp.after.max.ms", ahead, "in the future"),
        ("message.timestamp.before.max.ms", -ahead, "in the past"),
    ):
        limit = config.get(name)
        if limit is not None and milliseconds > int(limit):
            return (
                f"its timestamp is {milliseconds / 1000:,.0f} s {where}, and topic {record.topic} "
                f"takes at most {int(limit) / 1000:,.0f} s: correct it, or raise the topic's {name}"
            )
    return None


def _bytes(what: str, text: str, field: str) -> bytes:
    """UTF-8, or the bytes that surrogates stand for: what was read from Kafka may not be text."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise EnvelopeError(
            f"{what} {text[:80]!r} has lone surrogates, which are not text: remove them",
            field=field,
        ) from None


def _bad_event_id(event_id: object) -> EnvelopeError:
    if event_id is None or event_id == "":
        return EnvelopeError(
            "the event id is missing: give one, or a repeated message cannot be recognized",
            field="event_id",
        )
    return EnvelopeError(
        f"the event id must be a str, not {type(event_id).__name__}", field="event_id"
    )


def _bad(envelope: Envelope, field: str, words: str) -> EnvelopeError:
    return EnvelopeError(words, field=field, topic=envelope.topic, event_id=envelope.event_id)


def _user_lines(headers: object) -> Headers:
    lines: Headers = []
    for name, value in header_items(headers):
        if not isinstance(name, str) or not name or "\0" in name:
            raise EnvelopeError(
                f"invalid header name {name!r:.80}: give a str that is not empty and has no NUL",
                field="headers",
            )
        if name.lower() in RESERVED:
            raise EnvelopeError(
                f"header {name:.80} is reserved: use the envelope's fields", field="headers"
            )
        if isinstance(value, str):
            value = _bytes(f"header {name:.80}", value, "headers")
        elif not isinstance(value, bytes | None):
            raise EnvelopeError(
                f"header {name:.80} must be a str, bytes or None, not {type(value).__name__}",
                field="headers",
            )
        lines.append((name, value))
    return lines
