"""The items of a JetStream source, `JetStreamMessage` and `UnreadableMessage`, and their decoding.

A server also stores what its clients cannot read: a subject that is not text, a header block that
is cut off. A consumer that fails at such a message fails at it again after every restart. Here it
becomes an `UnreadableMessage`, and the next message is read as usual.
"""

import re
from datetime import UTC, datetime
from typing import Literal, NamedTuple

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
    payload: bytes
    headers: dict[str, str]
    """Empty if there are none; of a name that comes twice, the last value."""
    stream: str
    sequence: int
    """Its position in the stream; with the stream's name it identifies the message."""
    time: datetime
    """When the stream stored it, in UTC."""


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


def parse_headers(block: bytes) -> dict[str, str]:
    """Names and values of a header block, without the blanks around a value.

    :raises ValueError: when the block is malformed.
    """
    if not block.endswith(b"\r\n\r\n"):
        raise ValueError("its header block has no end")
    first, *lines = block[:-4].decode().split("\r\n")
    if not first.startswith("NATS/1.0"):
        raise ValueError("its header block does not begin with NATS/1.0")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name:
            raise ValueError(f"its header block has a malformed line: {line[:80]!r}")
        headers[name] = value.strip()
    return headers


def decode(
    stream: str, sequence: int, nanoseconds: int, raw: RawMessage
) -> JetStreamMessage | UnreadableMessage:
    """The message; an `UnreadableMessage` with the reason if its bytes are not valid."""
    subject, _, header, payload = raw
    try:
        text = subject.decode()
        if not text.isprintable() and CONTROL(text):
            raise ValueError("its subject has control characters")
        headers = parse_headers(header) if header else {}
    except UnicodeDecodeError as error:
        what = "subject" if error.object == subject else "header block"
        return UnreadableMessage(
            stream, sequence, f"its {what} is not UTF-8", subject, payload, header or b""
        )
    except ValueError as error:
        return UnreadableMessage(stream, sequence, str(error), subject, payload, header or b"")
    # Cut to whole microseconds first: a float is exact for those, not for nanoseconds.
    time = datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)
    return JetStreamMessage(text, payload, headers, stream, sequence, time)
