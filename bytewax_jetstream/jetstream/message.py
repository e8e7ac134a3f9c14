"""The items of a JetStream source, `JetStreamMessage` and `UnreadableMessage`, and their decoding.

A server also stores what its clients cannot read: a subject that is not text, a header block that
is cut off. A consumer that fails at such a message fails at it again after every restart. Here it
becomes an `UnreadableMessage`, and the next message is read as usual.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from ..envelope import HeaderPairs, HeaderValue, first_values
from .headers import PREFIX, decode_pairs

__all__ = [
    "Item",
    "JetStreamMessage",
    "RawMessage",
    "Start",
    "UnreadableMessage",
    "decode",
    "parse_headers",
    "parse_pending",
    "parse_position",
]

Start = Literal["first", "new"] | int | datetime
"""Where reading begins: at an end of the stream, at a sequence, or at a time."""

RawMessage = tuple[bytes, bytes, bytes | None, bytes]
"""Subject, reply subject, header block (None if there is none) and payload."""

CONTROL = re.compile(r"[\x00-\x1f\x7f]").search


class JetStreamMessage(NamedTuple):
    """A message as the stream stores it."""

    subject: str
    payload: bytes | None
    """None if it was published as None (a tombstone), else bytes."""
    headers: Mapping[str, HeaderValue]
    """The first value of each name, decoded; a str, unless bytes or None were published."""
    stream: str
    sequence: int
    """Its position in the stream; with the stream's name it identifies the message."""
    time: datetime
    """When the stream stored it, in UTC."""
    timestamp: datetime | None = None
    """The timestamp that its envelope had, in UTC."""
    repeated: HeaderPairs | None = None
    """All headers in order if a name is repeated, else None; `header_pairs` has them always."""

    @property
    def header_pairs(self) -> HeaderPairs:
        """All headers in order, repeated names included."""
        pairs, headers = self.repeated, self.headers
        if pairs is not None and first_values(pairs) == headers:
            return pairs
        return tuple(headers.items())  # also when the user has replaced them


class UnreadableMessage(NamedTuple):
    """A stored message that cannot be decoded, with its bytes; reading goes on after it."""

    stream: str
    sequence: int
    reason: str
    subject: bytes
    payload: bytes
    header: bytes
    """The header block as it is stored; empty if there is none."""


Item = JetStreamMessage | UnreadableMessage
"""What a JetStream source emits."""


def parse_position(reply: bytes) -> tuple[int, int, int]:
    """Stream sequence, consumer sequence and stored time in nanoseconds, from a message's reply
    subject.

    Two forms are in use (ADR-15), the second perhaps with a random token at its end:
    `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>` and
    `$JS.ACK.<domain>.<account>.<stream>.<consumer>.…`, from there on the same.

    :raises ValueError: when the subject has neither form.
    """
    tokens = reply.split(b".")
    index = 5 if len(tokens) == 9 else 7
    if tokens[0] != b"$JS" or len(tokens) < index + 4:
        raise ValueError(f"not the reply subject of a stored message: {reply[:80]!r}")
    return int(tokens[index]), int(tokens[index + 1]), int(tokens[index + 2])


def parse_pending(reply: bytes) -> int:
    """How many messages waited for delivery after this one; 0 if its reply subject does not say."""
    tokens = reply.split(b".")
    index = 8 if len(tokens) == 9 else 10
    return int(tokens[index]) if len(tokens) > index and tokens[index].isdigit() else 0


def parse_headers(block: bytes) -> list[tuple[str, str]]:
    """Names and values of a header block in order, without the blanks around a value.

    :raises ValueError: when the block is malformed.
    """
    if not block.endswith(b"\r\n\r\n"):
        raise ValueError("its header block has no end")
    first, *lines = block[:-4].decode().split("\r\n")
    if not first.startswith("NATS/1.0"):
        raise ValueError("its header block does not begin with NATS/1.0")
    pairs = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name:
            raise ValueError(f"its header block has a malformed line: {line[:80]!r}")
        pairs.append((name, value.strip(" \t")))
    return pairs


def decode(
    stream: str, sequence: int, nanoseconds: int, raw: RawMessage
) -> JetStreamMessage | UnreadableMessage:
    """The message; an `UnreadableMessage` with the reason if its bytes are not valid."""
    subject, _, header, payload = raw
    try:
        text = subject.decode()
        if not text.isprintable() and CONTROL(text):
            raise ValueError("its subject has control characters")
        lines = parse_headers(header) if header else []
    except UnicodeDecodeError as error:
        what = "subject" if error.object == subject else "header block"
        return UnreadableMessage(
            stream, sequence, f"its {what} is not UTF-8", subject, payload, header or b""
        )
    except ValueError as error:
        return UnreadableMessage(stream, sequence, str(error), subject, payload, header or b"")
    # Cut to whole microseconds first: a float is exact for those, not for nanoseconds.
    time = datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)
    content: bytes | None = payload
    timestamp = repeated = None
    pairs: Sequence[tuple[str, HeaderValue]] = lines
    if header is not None and PREFIX in header:
        pairs, is_null, timestamp = decode_pairs(lines)
        if is_null and not payload:
            content = None
    headers = dict(pairs)
    if len(headers) != len(pairs):
        headers, repeated = first_values(pairs), tuple(pairs)
    return JetStreamMessage(text, content, headers, stream, sequence, time, timestamp, repeated)
