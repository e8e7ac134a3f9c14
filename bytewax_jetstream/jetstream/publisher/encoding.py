"""Checks an envelope for JetStream, and encodes it as a NATS frame, once for all of its attempts.

A frame begins with `HPUB <subject> <reply> <header bytes> <total bytes>`. The reply subject is new
with each attempt, so only what follows it is encoded here.
Source: NATS client protocol; header names of JetStream from ADR-4, ADR-8, ADR-43,
ADR-51.
"""

import re
from collections.abc import Sequence, Set
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from types import NoneType
from typing import cast

from ...envelope import Envelope, PublishOptions
from ...errors import EnvelopeError
from ...publishing import header_items, utc
from ..headers import (
    NULL_PAYLOAD,
    encode_name,
    encode_value,
    encoded_line,
    is_safe,
    timestamp_line,
)

__all__ = ["check_topic", "encode", "encode_all", "message_id"]

HEADER_LINE = b"NATS/1.0\r\n"
MAX_HEADERS = 64 * 1024 - 1
"""Bytes of all headers; the server refuses more (error 10097)."""
MAX_TOPIC = 1024
"""Bytes of a subject. The whole HPUB line may have 4,096 bytes; beyond that the server closes the
connection.
"""
MAX_TTL = timedelta(days=73_000)
"""200 years, because the server counts nanoseconds since 1970 in 64 bits."""
MAX_SEQUENCE = (1 << 63) - 1
"""The server misreads a larger sequence, and does not check it."""

BYTES_OR_NONE = {bytes, NoneType}
PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}").fullmatch
PLAIN_ID_BYTES = bytes(byte for byte in range(128) if PLAIN_ID(chr(byte)))
BAD_TOPIC = re.compile(r"[\x00-\x20\x7f*>]").search
UNPRINTABLE = re.compile(r"[\x80-\x9f\ud800-\udfff]").search
"""The other control characters, and lone surrogates. What is merely invisible, such as a zero-width
joiner, is part of the text of many languages."""
RESERVED = re.compile(r"nats-|(?:event-id|event-type|aggregate-id)\Z", re.IGNORECASE).match


def check_topic(topic: object) -> None:
    """Check that a subject is safe to publish on, whether or not a stream covers it.

    :raises EnvelopeError: with what is wrong and what to do.
    """
    if not isinstance(topic, str):
        raise EnvelopeError(f"the topic must be a str, not {type(topic).__name__}", field="topic")
    if not topic:
        raise EnvelopeError("the topic is empty: give the envelope a subject", field="topic")
    size = len(topic.encode("utf-8", "replace"))
    if size > MAX_TOPIC:
        raise EnvelopeError(
            f"topic {_shown(topic)} has {size} bytes, the limit is {MAX_TOPIC}: shorten it",
            field="topic",
            topic=topic,
            size=size,
            limit=MAX_TOPIC,
        )
    if BAD_TOPIC(topic):
        raise _bad_topic(topic, "has a wildcard, white space or a control character: replace it")
    if UNPRINTABLE(topic):
        raise _bad_topic(topic, "has characters that cannot be printed: replace them")
    if "" in topic.split("."):
        raise _bad_topic(topic, "has an empty token: remove the extra dot")
    if topic.startswith(("$", "_INBOX")):
        raise _bad_topic(
            topic, "is reserved for the server: choose one that does not start with $ or _INBOX"
        )


def _bad_topic(topic: str, what: str) -> EnvelopeError:
    return EnvelopeError(f"topic {_shown(topic)} {what}", field="topic", topic=topic)


def _shown(topic: str) -> str:
    return repr(topic if len(topic) <= 80 else topic[:77] + "...")


def message_id(event_id: object, *, dedupe: bool = True) -> bytes:
    """The header lines of an event id: `Nats-Msg-Id`, by which the server drops a repeated message.

    Servers and clients strip header values. The ids `a` and `a ` would become the same, and the
    second message would be dropped as a duplicate. So only a plain id goes as it is; any other goes
    as its SHA-256, with the id itself in `Event-Id`.

    :arg dedupe: If False, only the `Event-Id` line, which the server ignores.
    """
    if event_id is not None and not isinstance(event_id, str):
        raise EnvelopeError(
            f"the event id must be a str, not {type(event_id).__name__}", field="event_id"
        )
    if not event_id:
        raise EnvelopeError(
            "the event id is missing: give one, or a retry would be stored twice", field="event_id"
        )
    if not dedupe:
        return b"Event-Id: %s\r\n" % _id_value(event_id)
    if PLAIN_ID(event_id):
        return b"Nats-Msg-Id: %s\r\n" % event_id.encode()
    value = _id_value(event_id)
    return b"Nats-Msg-Id: ~%s\r\nEvent-Id: %s\r\n" % (sha256(value).hexdigest().encode(), value)


def _id_value(event_id: str) -> bytes:
    if not is_safe(event_id):
        raise EnvelopeError(
            f"the event id {event_id[:80]!r} has control characters, or spaces at either end: "
            "remove them",
            field="event_id",
        )
    return event_id.encode()


def encode_all(
    envelopes: Sequence[Envelope],
    topics_checked: Set[str],
    max_payload: int,
    *,
    dedupe: bool = True,
) -> list[bytes] | None:
    """The same as `encode` for each envelope, at a third of the cost; None if one needs `encode`.

    That is the case if a topic was not checked, an envelope has headers or options of its own, an
    id is not plain or comes twice, or anything is wrong. Whole columns are checked (all ids, all
    payloads), so almost no Python code runs per message.
    """
    if set(map(type, envelopes)) != {Envelope}:
        return None
    topics, payloads, ids, aggregates, types, headers, _, options, times = zip(
        *envelopes, strict=True
    )
    number = len(topics)
    kinds, time_kinds = set(map(type, payloads)), set(map(type, times))
    if not kinds <= BYTES_OR_NONE or set(map(type, headers + options)) != {NoneType}:
        return None
    try:
        if not topics_checked >= set(topics) or (dedupe and len(set(ids)) != number):
            return None
        joined = "\n".join(ids).encode()
        lengths = set(map(len, ids))
        lines = list(map(_known_lines, aggregates, types))
        if NoneType in kinds:
            lines = [
                line if payload is not None else line + NULL_PAYLOAD
                for line, payload in zip(lines, payloads, strict=True)
            ]
            payloads = tuple([payload or b"" for payload in payloads])
        if time_kinds != {NoneType}:
            lines = [
                line if time is None else line + timestamp_line(utc(time))
                for line, time in zip(lines, times, strict=True)
            ]
    except (TypeError, UnicodeError, EnvelopeError):
        return None
    if (
        joined.translate(None, PLAIN_ID_BYTES) != b"\n" * (number - 1)
        or min(lengths) < 1
        or max(lengths) > 128
    ):
        return None
    name = b"Nats-Msg-Id" if dedupe else b"Event-Id"
    fixed = len(HEADER_LINE) + len(name) + 6  # a colon, a blank and two line ends
    if (
        fixed + max(lengths) + max(map(len, lines)) > MAX_HEADERS
        or max(map(len, payloads)) > max_payload - MAX_HEADERS
    ):
        return None
    frame = b" %%d %%d\r\n%s%s: %%b\r\n%%b\r\n%%b\r\n" % (HEADER_LINE, name)
    wires = []
    for event_id, line, payload in zip(joined.split(b"\n"), lines, payloads, strict=True):
        header_size = fixed + len(event_id) + len(line)
        wires.append(frame % (header_size, header_size + len(payload), event_id, line, payload))
    return wires


def encode(
    envelope: Envelope, max_payload: int, *, dedupe: bool = True, takes_ttl: bool = True
) -> bytes:
    """Check and encode an envelope; its topic must have been checked.

    :arg takes_ttl: Whether the server knows a message's time to live.

    :returns: The frame from behind the reply subject to the end.
    :raises EnvelopeError: with what is wrong and what to do.
    """
    lines = message_id(envelope.event_id, dedupe=dedupe)
    payload = envelope.payload
    if payload is not None and type(payload) is not bytes:
        words = f"the payload must be bytes or None, not {type(payload).__name__}"
        raise _bad(envelope, "payload", words)
    try:
        known, encoded = _fields(envelope.aggregate_id, envelope.event_type)
    except TypeError:  # from the cache: one of them cannot be hashed
        words = "the aggregate id and the event type must each be a str or None"
        raise _bad(envelope, "aggregate_id", words) from None
    lines += known
    if envelope.headers is not None:
        more, also_encoded = _user_lines(envelope.headers)
        lines, encoded = lines + more, encoded + also_encoded
    if encoded:
        lines += encoded_line(encoded)
    if payload is None:
        lines += NULL_PAYLOAD
        payload = b""
    if envelope.timestamp is not None:
        lines += timestamp_line(utc(envelope.timestamp))
    if envelope.options is not None:
        lines += _option_lines(envelope.options, takes_ttl=takes_ttl)
    header_size = len(HEADER_LINE) + len(lines) + 2
    size = header_size + len(payload)
    if header_size > MAX_HEADERS:
        words = f"the headers have {header_size} bytes, the limit is {MAX_HEADERS}: shorten them"
        raise _bad(envelope, "headers", words, header_size, MAX_HEADERS)
    if size > max_payload:
        words = (
            f"payload and headers have {size} bytes, the server's limit is {max_payload}: "
            "split the message or raise the server's max_payload"
        )
        raise _bad(envelope, "payload", words, size, max_payload)
    return b" %d %d\r\n%s%s\r\n%s\r\n" % (header_size, size, HEADER_LINE, lines, payload)


def _bad(
    envelope: Envelope, field: str, words: str, size: int | None = None, limit: int | None = None
) -> EnvelopeError:
    topic, event_id = envelope.topic, envelope.event_id
    return EnvelopeError(words, field=field, topic=topic, event_id=event_id, size=size, limit=limit)


Lines = tuple[bytes, tuple[bytes, ...]]
"""Header lines, and the names of those that are encoded."""


@lru_cache(maxsize=65_536)
def _fields(aggregate_id: str | None, event_type: str | None) -> Lines:
    """The header lines of an aggregate id and an event type; cached, because both recur."""
    lines = b""
    encoded: tuple[bytes, ...] = ()
    for what, name, field, value in (
        ("the aggregate id", b"Aggregate-Id", "aggregate_id", aggregate_id),
        ("the event type", b"Event-Type", "event_type", event_type),
    ):
        if value is None:
            continue
        if not isinstance(value, str):
            raise EnvelopeError(f"{what} must be a str, not {type(value).__name__}", field=field)
        if is_safe(value):
            lines += b"%s: %s\r\n" % (name, value.encode())
        else:  # a Kafka key, which may be any bytes
            lines += b"%s: %s\r\n" % (name, _encoded(what, value, field))
            encoded += (name,)
    return lines, encoded


@lru_cache(maxsize=65_536)
def _known_lines(aggregate_id: str | None, event_type: str | None) -> bytes:
    """The same with the line that lists what is encoded, for an envelope without other headers."""
    lines, encoded = _fields(aggregate_id, event_type)
    return lines + encoded_line(encoded)


def _encoded(what: str, value: str | None, field: str) -> bytes:
    try:
        return encode_value(value)
    except UnicodeEncodeError:
        shown = "" if value is None else value[:80]
        raise EnvelopeError(
            f"{what} {shown!r} has lone surrogates, which are not text: remove them", field=field
        ) from None


def _user_lines(headers: object) -> Lines:
    pairs: list[tuple[bytes, str | None]] = []
    encoded: dict[bytes, None] = {}
    for name, value in header_items(headers):
        if not isinstance(name, str) or not name:
            raise EnvelopeError(
                f"invalid header name {name!r:.80}: give a str that is not empty", field="headers"
            )
        if isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        elif value is not None and not isinstance(value, str):
            raise EnvelopeError(
                f"header {name:.80} must be a str, bytes or None, not {type(value).__name__}",
                field="headers",
            )
        written, is_encoded = _name(name)
        if is_encoded or value is None or not is_safe(value):
            encoded[written] = None
        pairs.append((written, value))
    lines = b""
    for written, value in pairs:
        if written in encoded or value is None:  # all of a name, as only names are listed
            shown = f"header {written.decode():.80}"
            lines += b"%s: %s\r\n" % (written, _encoded(shown, value, "headers"))
        else:
            lines += b"%s: %s\r\n" % (written, value.encode())
    return lines, tuple(encoded)


@lru_cache(maxsize=4_096)
def _name(name: str) -> tuple[bytes, bool]:
    """A header's name as it is written, and whether it is encoded; cached, because names recur."""
    if RESERVED(name):
        raise EnvelopeError(
            f"header {name:.80} is reserved: use the envelope's fields or PublishOptions",
            field="headers",
        )
    try:
        encoded = encode_name(name)
    except UnicodeEncodeError:
        raise EnvelopeError(
            f"header name {name[:80]!r} has lone surrogates, which are not text: remove them",
            field="headers",
        ) from None
    return encoded or name.encode(), encoded is not None


def _option_lines(options: PublishOptions, *, takes_ttl: bool) -> bytes:
    if not isinstance(options, PublishOptions):
        raise EnvelopeError(
            f"the options must be PublishOptions, not {type(options).__name__}", field="options"
        )
    lines = b""
    if options.ttl is not None:
        seconds = _ttl_seconds("ttl", options.ttl)
        if not takes_ttl:
            raise EnvelopeError(
                f"this server ignores the ttl {options.ttl}, and would keep the message: use "
                "nats-server 2.11 or later, or leave the ttl out",
                field="options",
            )
        lines += b"Nats-TTL: %d\r\n" % seconds
    lines += _schedule_lines(options.schedule, options.schedule_target, options.schedule_ttl)
    for name, value in (
        (b"Nats-Expected-Last-Sequence", options.expected_last_sequence),
        (b"Nats-Expected-Last-Subject-Sequence", options.expected_last_subject_sequence),
    ):
        if value is not None:
            if type(value) is not int or not 0 <= value <= MAX_SEQUENCE:
                # Without the value: Python refuses to print an integer of thousands of digits.
                raise EnvelopeError(
                    "invalid expected last sequence: give 0 or a stream sequence", field="options"
                )
            lines += b"%s: %d\r\n" % (name, value)
    return lines


def _ttl_seconds(name: str, ttl: object) -> int:
    if not isinstance(ttl, timedelta):
        raise EnvelopeError(
            f"the {name} must be a timedelta, not {type(ttl).__name__}", field="options"
        )
    if not timedelta(seconds=1) <= ttl <= MAX_TTL or ttl.microseconds:
        raise EnvelopeError(
            f"invalid {name} {ttl}: give whole seconds, at least 1 and at most 200 years",
            field="options",
        )
    return ttl // timedelta(seconds=1)


def _schedule_lines(schedule: object, target: object, ttl: object) -> bytes:
    """The header lines of a message that the server shall publish later (ADR-51)."""
    if schedule is None:
        if target is None and ttl is None:
            return b""
        raise EnvelopeError(
            "schedule_target and schedule_ttl are of use with a schedule only: give one, or leave "
            "them out",
            field="options",
        )
    if isinstance(schedule, datetime):
        if schedule.tzinfo is None:
            raise EnvelopeError(
                f"the schedule {schedule} has no time zone: give a datetime with one, such as "
                "timezone.utc",
                field="options",
            )
        try:
            when = b"@at %s" % schedule.astimezone(UTC).isoformat().encode()
        except OverflowError:
            raise EnvelopeError(
                f"invalid schedule {schedule}: give a time that is in years 1 to 9999 in UTC, too",
                field="options",
            ) from None
    elif not isinstance(schedule, str):
        raise EnvelopeError(
            f"the schedule must be a datetime or a str, not {type(schedule).__name__}",
            field="options",
        )
    elif not schedule or not schedule.isprintable() or schedule != schedule.strip():
        raise EnvelopeError(
            f"invalid schedule {schedule[:80]!r}: give a time, `@every 5m`, or six cron fields, "
            "without control characters, or spaces at either end",
            field="options",
        )
    else:
        when = schedule.encode()
    try:
        check_topic(target)
    except EnvelopeError as error:
        raise EnvelopeError(
            f"the schedule needs a schedule_target: {error}", field="options"
        ) from None
    lines = b"Nats-Schedule: %s\r\nNats-Schedule-Target: %s\r\n" % (
        when,
        cast(str, target).encode(),
    )
    if ttl is not None:
        lines += b"Nats-Schedule-TTL: %ds\r\n" % _ttl_seconds("schedule_ttl", ttl)
    return lines
