"""`Parser`: reads the NATS protocol from a server, and no stored message can break it.

nats-py's own parser stops for good at messages that a server accepts and stores: a subject that is
not UTF-8 or has a VT or FF in it, a header block without a blank line. This one splits lines only
at CRLF and spaces, as the protocol says
(https://docs.nats.io/reference/reference-protocols/nats-protocol), and leaves subjects and headers
as bytes. A message goes to its subscription's raw handler if there is one, else to nats-py.
"""

import json
from collections.abc import Callable
from typing import Any, Protocol

from nats.errors import Error as NatsError

__all__ = ["BulkReader", "MessageHandler", "Parser", "ProtocolError"]

MessageHandler = Callable[[bytes, bytes, bytes | None, bytes], None]
"""Called with subject, reply subject, header block (None if there is none) and payload; must not
raise or block.
"""

BulkReader = Callable[[bytes, int], int]
"""Called with the bytes that were read and an index; returns the index after the complete messages
that it took from there.

For example 40 PubAcks of 100 bytes from index 0: returns 4000. The same index means that it took
none.
"""

MAX_LINE = 64 * 1024
"""Most bytes of a line. The longest that a NATS server sends is INFO, with many cluster URLs."""


class ProtocolError(NatsError):
    """The bytes are not the NATS protocol; nats-py's error of that name does not show the bytes."""


class Receiver(Protocol):
    """What the parser calls for each message and command."""

    handlers: dict[int, MessageHandler]
    """Raw handlers by subscription id; they need no task or object per message."""

    take_bulk: BulkReader | None
    """Takes frequent messages, many at a time, before the rest is read line by line."""

    async def on_message(
        self, sid: int, subject: bytes, reply: bytes, payload: bytes, header: bytes | None
    ) -> None:
        """A message of a subscription without a raw handler."""

    async def on_ping(self) -> None:
        """The server sent PING, and waits for PONG."""

    async def on_pong(self) -> None:
        """The server answered our PING."""

    async def on_info(self, info: dict[str, Any]) -> None:
        """The server describes itself, or what has changed in its cluster."""

    async def on_error(self, message: str) -> None:
        """The server sent an error."""


class Parser:
    """Splits what was read into messages; an incomplete one waits for the next reads."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.reset()

    def reset(self) -> None:
        """Forget an incomplete message; nats-py calls this too, for a new connection."""
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._needed = 0

    async def parse(self, data: bytes) -> None:
        """Pass on every message that is complete.

        :raises ProtocolError: when the bytes are not the NATS protocol.
        """
        if self._rest:
            # Joined only when the message is complete: a large one comes in many reads.
            self._rest.append(data)
            self._rest_size += len(data)
            if self._rest_size < self._needed:
                return
            data = b"".join(self._rest)
            self.reset()
        receiver, handlers = self._receiver, self._receiver.handlers
        take_bulk = receiver.take_bulk
        at, needed = 0, 0
        if take_bulk is not None:
            at = take_bulk(data, at)
        while (end := data.find(b"\r\n", at)) >= 0:
            line = data[at:end]
            if line.startswith((b"MSG ", b"HMSG ")):
                subject, sid, reply, header_size, size = _message_line(line)
                start = end + 2
                stop = start + size
                if len(data) < stop + 2:
                    needed = stop + 2 - at
                    break
                if not data.startswith(b"\r\n", stop):
                    raise ProtocolError(
                        f"a message is longer than its first line says: {line[:80]!r}"
                    )
                header = data[start : start + header_size] if header_size else None
                payload = data[start + header_size : stop]
                at = stop + 2
                handler = handlers.get(sid)
                if handler is not None:
                    handler(subject, reply, header, payload)
                else:
                    await receiver.on_message(sid, subject, reply, payload, header)
                if take_bulk is not None:
                    at = take_bulk(data, at)
                continue
            at = end + 2
            if line == b"PING":
                await receiver.on_ping()
            elif line == b"PONG":
                await receiver.on_pong()
            elif line.startswith(b"INFO "):
                await receiver.on_info(_info(line))
            elif line.startswith(b"-ERR"):
                await receiver.on_error(line[4:].decode("utf-8", "replace").strip().strip("'"))
            elif not line.startswith(b"+OK"):
                raise ProtocolError(f"not the NATS protocol: {line[:40]!r}")
        if at < len(data):
            rest = data[at:] if at else data
            if not needed and len(rest) > MAX_LINE:
                raise ProtocolError(f"no end of line in {len(rest)} bytes")
            self._rest, self._rest_size, self._needed = [rest], len(rest), needed


def _message_line(line: bytes) -> tuple[bytes, int, bytes, int, int]:
    """Split `MSG subject sid [reply] size` or `HMSG subject sid [reply] header_size size`."""
    words = line.split(b" ")
    count = len(words)
    try:
        if words[0] == b"MSG":
            header_size, size = 0, int(words[-1])
        else:
            header_size, size, count = int(words[-2]), int(words[-1]), count - 1
        if 4 <= count <= 5 and 0 <= header_size <= size:
            return words[1], int(words[2]), words[3] if count == 5 else b"", header_size, size
    except ValueError:
        pass
    raise ProtocolError(f"malformed message line: {line[:80]!r}")


def _info(line: bytes) -> dict[str, Any]:
    try:
        info = json.loads(line[5:])
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise ProtocolError(f"malformed INFO: {line[:80]!r}")
    return info
