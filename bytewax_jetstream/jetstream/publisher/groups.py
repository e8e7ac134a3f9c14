"""Groups: the envelopes of one aggregate that are stored all or none, as one atomic batch.

Which groups can never be stored, and the frames of the others.
Source: ADR-50; nats-server 2.15 `server/stream.go`, `server/jetstream_batching.go`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...envelope import Envelope, PublishOptions
from ...errors import EnvelopeError
from ...publishing import Alone, AskFirst, indices_by_aggregate

__all__ = [
    "LINES",
    "check_group",
    "group_frames",
    "reject_impossible",
    "several_streams",
    "several_times",
]

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
    may_be_known: Callable[[Iterable[Envelope]], bool],
) -> None:
    """Reject a whole group when one of its envelopes can never be stored, or the group cannot.

    Before that its ids are asked for. An earlier run may have stored some of it: the limits were
    higher, or the source has cut its batches elsewhere.

    :arg wires: The wire form of each envelope, or its error; changed in place.
    :arg may_be_known: Whether the server can say which of these envelopes are stored.
    """
    for indexes in indices_by_aggregate(envelopes):
        if len(indexes) == 1:
            continue
        group = [(envelopes[index], wires[index]) for index in indexes]
        reasons = _why_not(group, stream_of, max_payload)
        if not reasons:
            continue
        good = [index for index in indexes if type(wires[index]) is not EnvelopeError]
        if may_be_known([envelopes[index] for index in good]):
            for at, reason in reasons.items():
                index = indexes[at]
                wires[index] = AskFirst(_error(envelopes[index], reason))
            continue
        reason = next(iter(reasons.values()))
        for index in good:
            wire = wires[index]
            own = type(wire) is AskFirst
            wires[index] = wire.error if own else _error(envelopes[index], reason)


def _error(envelope: Envelope, reason: str) -> EnvelopeError:
    return EnvelopeError(reason, topic=envelope.topic, event_id=envelope.event_id)


def _why_not(
    group: list[tuple[Envelope, Any]], stream_of: Callable[[str], str | None], max_payload: int
) -> dict[int, str]:
    """Because of which envelopes a group cannot be stored, and why; empty if it can. Once these are
    known to be stored, the rest can be a group.
    """
    for envelope, wire in group:
        if type(wire) is EnvelopeError:  # it is rejected, so all others must be stored already
            good = [at for at, (_, each) in enumerate(group) if type(each) is not EnvelopeError]
            return dict.fromkeys(good, f"{_which(envelope)} cannot be stored: {wire}")
    sizes = {at: _too_large(*each, max_payload) for at, each in enumerate(group)}
    large = {at: reason for at, reason in sizes.items() if reason is not None}
    if large:
        return large
    if len(group) > MOST:
        return {
            0: f"its group has {len(group)} envelopes, and the limit for storing all or none is "
            f"{MOST}: emit the aggregate's envelopes in smaller batches"
        }
    again = [at for at, (_, wire) in enumerate(group) if type(wire) is Alone]
    repeated = several_times([envelope for envelope, _ in group]) if again else None
    if repeated is not None:
        return dict.fromkeys(again, repeated)
    several = several_streams({stream_of(envelope.topic) for envelope, _ in group})
    return {0: several} if several is not None else {}


def _too_large(envelope: Envelope, wire: Any, max_payload: int) -> str | None:
    if type(wire) is AskFirst:
        return f"{_which(envelope)} cannot be stored: {wire.error}"
    if len(wire) + LINES <= max_payload:
        return None
    return (
        f"{_which(envelope)} has {len(wire)} bytes, and in a group the limit is "
        f"{max_payload - LINES}: shorten it or raise the server's max_payload of {max_payload}"
    )


def _which(envelope: Envelope) -> str:
    return f"envelope {envelope.event_id!r:.80} of the same group"


def several_times(envelopes: Sequence[Envelope]) -> str | None:
    """Why a group with an event id that is several times in it cannot be stored, or None."""
    ids = [envelope.event_id for envelope in envelopes]
    if len(set(ids)) == len(ids):
        return None
    again = next(event_id for event_id in ids if ids.count(event_id) > 1)
    return (
        f"envelope {again!r:.80} is {ids.count(again)} times in its group, and the server stores "
        "no group with an event id twice: emit it once, or give each of them an id of its own"
    )


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
