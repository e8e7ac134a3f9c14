"""What a JetStream source yields, and how it is read off the wire.

A server stores what other clients refuse to read: subjects that are not text, header blocks that
are cut off. Such a message is poison to a consumer that trips over it, for it is still there after
a restart. Here it becomes a `JetStreamError`, and the next message is read as if nothing had been.
"""

import re
from datetime import UTC, datetime
from typing import Literal, NamedTuple

__all__ = [
    "JetStreamError",
    "JetStreamMessage",
    "RawMessage",
    "Start",
    "decode",
    "parse_headers",
    "parse_place",
]

Start = Literal["first", "new"] | int | datetime
"""Where reading begins: a place in the stream, or a time."""

RawMessage = tuple[bytes, bytes, bytes | None, bytes]
"""Subject, reply subject, header block (None without) and payload."""

CONTROL = re.compile(r"[\x00-\x1f\x7f]").search


class JetStreamMessage(NamedTuple):
    """A message as the stream has it."""

    subject: str
    payload: bytes
    headers: dict[str, str]
    """Empty without any; of a name that comes twice the last value."""
    stream: str
    sequence: int
    """Its place in the stream: with the stream's name the identity of the message."""
    time: datetime
    """When the stream stored it, in UTC."""


class JetStreamError(NamedTuple):
    """A stored message that cannot be read; it is passed over, never again looked at."""

    stream: str
    sequence: int
    reason: str
    subject: bytes
    payload: bytes
    header: bytes
    """The header block as it is stored; empty without one."""


def parse_place(reply: bytes) -> tuple[int, int, int]:
    """Stream sequence, consumer sequence and stored time in nanoseconds, from a message's reply
    subject.

    Source: ADR-15: `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer
    sequence>.<time>.<pending>`, newer servers with `<domain>.<account>` before the stream and
    perhaps a random word at the end.

    :raises ValueError: when it is not one.
    """
    words = reply.split(b".")
    at = 5 if len(words) == 9 else 7
    if words[0] != b"$JS" or len(words) < at + 4:
        raise ValueError(f"not the reply subject of a stored message: {reply[:80]!r}")
    return int(words[at]), int(words[at + 1]), int(words[at + 2])


def parse_headers(block: bytes) -> dict[str, str]:
    """Names and values of a header block; blanks around a value are not part of it.

    :raises ValueError: when the block is broken.
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
) -> JetStreamMessage | JetStreamError:
    """The message, or why there is none."""
    subject, _, header, payload = raw
    try:
        text = subject.decode()
        if not text.isprintable() and CONTROL(text):
            raise ValueError("its subject has control characters")
        headers = parse_headers(header) if header else {}
    except UnicodeDecodeError as error:
        what = "subject" if error.object == subject else "header block"
        return JetStreamError(
            stream, sequence, f"its {what} is not UTF-8", subject, payload, header or b""
        )
    except ValueError as error:
        return JetStreamError(stream, sequence, str(error), subject, payload, header or b"")
    # Whole microseconds first: a float has room for them, not for nanoseconds.
    time = datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)
    return JetStreamMessage(text, payload, headers, stream, sequence, time)
