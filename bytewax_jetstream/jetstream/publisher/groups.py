"""Groups: the envelopes of one aggregate that are stored all or none, as one atomic batch.

Which groups can never be stored, and the frames of the others.
Source: ADR-50; nats-server 2.15 `server/stream.go`, `server/jetstream_batching.go`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...envelope import Envelope, PublishOptions
from ...errors import EnvelopeError
from ...publishing import indices_by_aggregate

__all__ = ["check_group", "group_frames", "reject_impossible", "several_streams"]

MOST = 1_000
"""Envelopes of a group; the server takes no larger atomic batch."""
LINES = 160
"""Most bytes that the three batch headers add to a message."""


def check_group(options: object, *, atomic: bool) -> None:
    """Check the name of an envelope's group, if it has one.

    :raises EnvelopeError: when it is not a name, or the settings do not store groups.
    """
    name: object = options.group if isinstance(options, PublishOptions) else None
    if name is None:
        return
    if not isinstance(name, str) or not name:
        raise EnvelopeError(
            f"invalid group {name!r:.80}: give a str that is not empty", field="options"
        )
    if not atomic:
        raise EnvelopeError(
            f"group {name!r:.80} needs atomic=True in the settings: set it, or leave the group out",
            field="options",
        )


def reject_impossible(
    envelopes: Sequence[Envelope],
    wires: list[Any],
    stream_of: Callable[[str], str | None],
    max_payload: int,
) -> None:
    """Reject a whole group when one of its envelopes can never be stored, or the group cannot.

    :arg wires: The wire form of each envelope, or its error; changed in place.
    """
    for indexes in indices_by_aggregate(envelopes):
        if len(indexes) == 1:
            continue
        group = [(envelopes[index], wires[index]) for index in indexes]
        reason = _why_not(
            group, {stream_of(str(envelope.topic)) for envelope, _ in group}, max_payload
        )
        if reason is not None:
            for index in indexes:
                if type(wires[index]) is not EnvelopeError:
                    envelope = envelopes[index]
                    wires[index] = EnvelopeError(
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
    return several_streams(streams)


def several_streams(streams: Iterable[str | None]) -> str | None:
    """Why a group on topics of these streams cannot be stored, or None; a topic whose stream is not
    known (None) is not counted.
    """
    known = sorted({stream for stream in streams if stream is not None})
    if len(known) < 2:
        return None
    return (
        f"its group goes to streams {' and '.join(known)}, and only one stream can store it all or "
        "none: let one stream cover all its topics"
    )


def group_frames(
    topics: Sequence[str], wires: Sequence[bytes], reply: bytes, batch: bytes
) -> Iterator[bytes]:
    """The frames of a group, made from each envelope's wire form; the last one commits the batch.

    Each asks for a reply, because the server may report an error at any of them. If all is well,
    the replies are empty, and the last is the PubAck of the group.
    """
    for sequence, (topic, wire) in enumerate(zip(topics, wires, strict=True), start=1):
        sizes, start, rest = wire.split(b"\r\n", 2)
        lines = b"Nats-Batch-Id: %s\r\nNats-Batch-Sequence: %d\r\n" % (batch, sequence)
        if sequence == len(wires):
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
