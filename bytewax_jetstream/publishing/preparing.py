"""What both brokers share when they check envelopes: one bad one harms no other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..envelope import Envelope, Headers
from ..errors import EnvelopeError
from .outgoing import Wire

__all__ = ["AskFirst", "header_items", "prepare_each", "refuse_conflicts", "utc"]


class AskFirst:
    """Takes the place of a wire form: the envelope cannot be sent as it is, but an earlier run may
    have stored it. So it goes as a single, and the publisher asks the broker for its event id.

    :arg error: Why it cannot be sent: the reason of its rejection if its id is not known.
    """

    def __init__(self, error: EnvelopeError) -> None:
        self.error = error


def prepare_each(
    prepare: Callable[[Envelope], Wire], envelopes: Iterable[Envelope]
) -> list[Wire | EnvelopeError]:
    """For each envelope its wire form, or the `EnvelopeError` that says why it cannot have one."""
    prepared: list[Wire | EnvelopeError] = []
    for envelope in envelopes:
        try:
            wire = prepare(envelope)
        except EnvelopeError as error:
            wire = error
        except Exception as error:  # an unforeseen value must harm its own envelope only
            wire = EnvelopeError(
                f"it cannot be encoded ({type(error).__name__}): "
                "give its fields the types that Envelope names"
            )
        prepared.append(wire)
    return prepared


def header_items(headers: object) -> list[tuple[object, object]]:
    """Names and values of an envelope's headers, in order; the broker has to check them.

    :raises EnvelopeError: when the headers are neither a mapping nor pairs, or cannot be read.
    """
    if type(headers) is dict:
        return list(headers.items())
    if isinstance(headers, Headers):
        return list(headers.pairs)
    if not isinstance(headers, Mapping | Sequence) or isinstance(headers, str | bytes | bytearray):
        raise _bad_headers(type(headers).__name__)
    try:
        if isinstance(headers, Mapping):
            return list(dict(headers).items())
        items = list(headers)
    except Exception as error:  # the user's own mapping may raise anything
        raise EnvelopeError(
            f"the headers cannot be read ({type(error).__name__}): give a dict, or a list of pairs",
            field="headers",
        ) from None
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise _bad_headers(f"a {type(headers).__name__} that holds {item!r:.80}")
    return [(name, value) for name, value in items]


def _bad_headers(found: str) -> EnvelopeError:
    return EnvelopeError(
        f"the headers must be a mapping, or a sequence of (name, value) pairs, not {found}: "
        "give a dict, or a list of pairs",
        field="headers",
    )


def utc(timestamp: object) -> datetime:
    """An envelope's timestamp in UTC.

    :raises EnvelopeError: when it is no time, or does not say in which time zone it is.
    """
    if type(timestamp) is datetime and timestamp.tzinfo is UTC:
        return timestamp
    if not isinstance(timestamp, datetime):
        raise EnvelopeError(
            f"the timestamp must be a datetime, not {type(timestamp).__name__}", field="timestamp"
        )
    if timestamp.utcoffset() is None:
        raise EnvelopeError(
            f"timestamp {timestamp} has no time zone: give one, such as datetime.now(UTC)",
            field="timestamp",
        )
    try:
        return timestamp.astimezone(UTC)
    except OverflowError:
        raise EnvelopeError(
            f"timestamp {timestamp} is outside the years 1 to 9999 in UTC: give one inside them",
            field="timestamp",
        ) from None


def refuse_conflicts(
    envelopes: Sequence[Envelope],
    wires: list[Any],
    stream_of: Callable[[str], str | None],
) -> list[int]:
    """Refuse each envelope that has the event id of an earlier one, and is another message: a
    stream that knows event ids would drop it and call it stored.

    Example: `(orders.new, b"1", "e-1"), (orders.paid, b"2", "e-1"), (orders.new, b"1", "e-1")` on
    one stream. The first is sent, the second refused, and the third is the first again.

    :arg wires: The wire form of each envelope, or its error; changed in place.
    :arg stream_of: The stream of a topic, None if it is not known. Two streams may each have a
        message of the same event id.
    :returns: The indices of those that are an earlier one again, with equal topic and payload.
    """
    first: dict[tuple[str | None, str | None, str], int] = {}
    again: list[int] = []
    for index, (envelope, wire) in enumerate(zip(envelopes, wires, strict=True)):
        if type(wire) is EnvelopeError:
            continue
        topic, event_id = envelope.topic, envelope.event_id
        # Topics of unknown streams may be on different ones: only an equal topic is certain.
        stream = stream_of(topic)
        earlier = first.setdefault((stream, topic if stream is None else None, event_id), index)
        if earlier == index:
            continue
        known = envelopes[earlier]
        if (known.topic, known.payload) == (topic, envelope.payload):
            again.append(index)
            continue
        wires[index] = EnvelopeError(
            f"event id {event_id!r:.80} belongs to two different messages, one on "
            f"{_described(known)}, which was handed over first, and this one on "
            f"{_described(envelope)}; a stream keeps only the first message of an event id: give "
            "each message an id of its own",
            field="event_id",
            topic=topic,
            event_id=event_id,
        )
    return again


def _described(envelope: Envelope) -> str:
    payload = envelope.payload
    size = "no payload" if payload is None else f"{len(payload)} bytes"
    kind = f" of type {envelope.event_type!r:.40}" if envelope.event_type is not None else ""
    return f"{envelope.topic:.80}{kind} ({size})"
