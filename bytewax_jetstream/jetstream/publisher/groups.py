"""Groups: the envelopes of one aggregate that are stored all or none, as one atomic batch.

Source: ADR-50; nats-server 2.15 `server/stream.go`, `server/jetstream_batching.go`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...dispatch.segment import places_by_aggregate
from ...envelope import Envelope
from ...errors import EnvelopeError

__all__ = ["group_frames", "reject_impossible"]

MOST = 1_000
"""Envelopes of a group: the server takes no larger batch."""
LINES = 160
"""Bytes of the headers that make a message one of a group, at most."""


def reject_impossible(
    envelopes: Sequence[Envelope],
    wires: list[Any],
    stream_of: Callable[[str], str | None],
    max_payload: int,
) -> None:
    """Give all of a group the error of the one that can never be stored, or of the group that can
    never be one.

    :arg wires: Of each envelope its wire form or its error; changed in place.
    """
    for places in places_by_aggregate(envelopes):
        if len(places) == 1:
            continue
        group = [(envelopes[place], wires[place]) for place in places]
        reason = _why_not(
            group, {stream_of(str(envelope.topic)) for envelope, _ in group}, max_payload
        )
        if reason is not None:
            for place in places:
                if type(wires[place]) is not EnvelopeError:
                    envelope = envelopes[place]
                    wires[place] = EnvelopeError(
                        reason, topic=envelope.topic, event_id=envelope.event_id
                    )


def _why_not(
    group: list[tuple[Envelope, Any]], streams: set[str | None], max_payload: int
) -> str | None:
    if len(group) > MOST:
        return (
            f"its group has {len(group)} envelopes, and the limit for storing all or none is "
            f"{MOST}: emit the aggregate's envelopes in smaller batches"
        )
    for envelope, wire in group:
        if type(wire) is EnvelopeError:
            return f"envelope {envelope.event_id!r:.80} of the same group cannot be stored: {wire}"
        if len(wire) + LINES > max_payload:
            return (
                f"envelope {envelope.event_id!r:.80} of the same group has {len(wire)} bytes, and "
                f"in a group the limit is {max_payload - LINES}: shorten it or raise the server's "
                f"max_payload of {max_payload}"
            )
    if len(streams) > 1:
        return (
            f"its group goes to streams {' and '.join(sorted(map(str, streams)))}, and only one "
            "stream can store it all or none: let one stream cover all its topics"
        )
    return None


def group_frames(
    topics: Sequence[str], wires: Sequence[bytes], reply: bytes, batch: bytes
) -> Iterator[bytes]:
    """The frames of a group, from what `encode` made of each envelope.

    Each asks for an answer, for an error can come to any; what is none is empty but the last.
    """
    for number, (topic, wire) in enumerate(zip(topics, wires, strict=True), start=1):
        sizes, start, rest = wire.split(b"\r\n", 2)
        lines = b"Nats-Batch-Id: %s\r\nNats-Batch-Sequence: %d\r\n" % (batch, number)
        if number == len(wires):
            lines += b"Nats-Batch-Commit: 1\r\n"
        header_size, size = (int(word) + len(lines) for word in sizes.split())
        yield b"HPUB %s %s %d %d\r\n%s\r\n%s%s" % (
            topic.encode(),
            reply,
            header_size,
            size,
            start,
            lines,
            rest,
        )
