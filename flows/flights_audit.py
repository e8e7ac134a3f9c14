"""What is in a stream, read by a client that shares nothing with the publisher whose work it
checks.

NATS is a text protocol, so a hundred lines read a stream at the server's own pace (measured: the
year's 334,264 messages in an eighth of the time that nats-py takes). Plain TCP, as the embedded
server is reached.
"""

import json
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

from bytewax_jetstream.settings import JetStreamSettings

__all__ = [
    "AuditError",
    "Counted",
    "Reader",
    "Stored",
    "StreamReader",
    "count_flights",
    "tail_numbers",
]

PULL = 50_000
"""Messages asked for at once: more would let the server run far ahead of the reader."""
TIMEOUT = 10.0
"""Seconds without a byte from the server."""
STREAM_NOT_FOUND = 10059
FRAME = re.compile(
    rb"(?:(HMSG|MSG) \S+ 1 (?:\S+ )??(?:(\d+) )?(\d+)|(PING|PONG|INFO|-ERR) ?([^\r\n]*))\r\n"
)
MESSAGE_ID = re.compile(rb"\r\nNats-Msg-Id: (\S+)\r\n").search
ROW = re.compile(rb'\{"row":(\d+),').match


class AuditError(Exception):
    """The stream could not be read; what is in it is untouched."""


class Stored(NamedTuple):
    """A message as the server hands it out."""

    header: bytes
    payload: bytes


class Reader(Protocol):
    """What a count needs of a broker."""

    def count(self, stream: str) -> int:
        """How many messages a stream or topic has; none when there is none of that name yet."""

    def read(self, stream: str) -> Iterator[Stored]:
        """Every message; those of an aggregate in their order."""

    def event_id(self, message: Stored) -> bytes | None:
        """The event id a message was published with."""


class StreamReader:
    """Reads streams from their first message to their last, and leaves nothing behind.

    For one thread. Its consumer is ephemeral and acknowledges nothing.
    """

    def __init__(self, settings: JetStreamSettings) -> None:
        if settings.wants_tls or settings.nkey_seed or settings.credentials_file:
            raise AuditError(
                "the count speaks plain NATS with user and password or a token: "
                "run the dataflow itself with python -m bytewax.run flows.flights:flow"
            )
        self._api = settings.js_prefix
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._buffer, self._at = b"", 0
        server = settings.servers[0]
        url = urlsplit(server if "://" in server else f"nats://{server}")
        try:
            self._socket = socket.create_connection((url.hostname or "", url.port or 4222), TIMEOUT)
        except OSError as error:
            raise AuditError(f"no connection to {server}: {error.strerror or error}") from None
        login = {
            "user": settings.user,
            "pass": settings.password and settings.password.get_secret_value(),
            "auth_token": settings.token and settings.token.get_secret_value(),
        }
        options = {
            "verbose": False,
            "headers": True,
            "no_responders": True,
            "name": "flights audit",
        }
        self._send(f"CONNECT {json.dumps(options | {k: v for k, v in login.items() if v})}\r\n")
        self._send(f"SUB {self._inbox} 1\r\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def count(self, stream: str) -> int:
        """How many messages a stream has; none when there is no such stream yet."""
        info = self._request(f"STREAM.INFO.{stream}", {})
        if info.get("error", {}).get("err_code") == STREAM_NOT_FOUND:
            return 0
        return int(_checked(info)["state"]["messages"])

    def event_id(self, message: Stored) -> bytes | None:
        """The id that the server knows duplicates by."""
        found = MESSAGE_ID(message.header)
        return found and found[1]

    def read(self, stream: str) -> Iterator[Stored]:
        """Every message, in the order of the stream."""
        config = {
            "deliver_policy": "all",
            "ack_policy": "none",
            "mem_storage": True,
            "inactive_threshold": 60 * 10**9,
        }
        request = {"stream_name": stream, "config": config}
        consumer = _checked(self._request(f"CONSUMER.CREATE.{stream}", request))
        left = consumer["num_pending"]
        while left:
            batch = min(left, PULL)
            pull = {"batch": batch, "expires": int(TIMEOUT * 10**9)}
            self._publish(f"CONSUMER.MSG.NEXT.{stream}.{consumer['name']}", pull)
            for _ in range(batch):
                message = self._next()
                if not message.payload and message.header.startswith(b"NATS/1.0 "):
                    raise AuditError(f"stream {stream} ended early: {message.header!r}")
                yield message
            left -= batch
        self._request(f"CONSUMER.DELETE.{stream}.{consumer['name']}", {})

    def _request(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        self._publish(subject, body)
        answer: dict[str, Any] = json.loads(
            self._next().payload or b'{"error": {"description": "nobody answers"}}'
        )
        return answer

    def _publish(self, subject: str, body: dict[str, Any]) -> None:
        payload = json.dumps(body)
        self._send(f"PUB {self._api}.{subject} {self._inbox} {len(payload)}\r\n{payload}\r\n")

    def _send(self, text: str) -> None:
        self._socket.sendall(text.encode())

    def _next(self) -> Stored:
        """The next message; what is between messages is the protocol's."""
        while True:
            frame = FRAME.match(self._buffer, self._at)
            if frame is None:
                self._receive()
                continue
            kind, header_size, size, word, text = frame.groups()
            start = frame.end()
            if kind is None:
                self._at = start
                if word == b"PING":
                    self._send("PONG\r\n")
                elif word == b"-ERR":
                    raise AuditError(f"the server says {text.decode()}")
                continue
            end = start + int(size)
            if len(self._buffer) < end + 2:
                self._receive()
                continue
            self._at = end + 2
            body = start + int(header_size or 0)
            return Stored(self._buffer[start:body], self._buffer[body:end])

    def _receive(self) -> None:
        try:
            received = self._socket.recv(1 << 20)
        except TimeoutError:
            raise AuditError(f"the server said nothing for {TIMEOUT:g} s") from None
        if not received:
            raise AuditError("the server closed the connection")
        self._buffer = self._buffer[self._at :] + received
        self._at = 0


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if error := answer.get("error"):
        raise AuditError(f"the JetStream API says {error.get('description')}")
    return answer


class Counted(NamedTuple):
    """What the streams have, message by message."""

    stored: int
    dead_lettered: int
    duplicates: int
    missing: int
    order_violations: int


def count_flights(reader: Reader, flights: str, dead_letters: str, lines: Sequence[str]) -> Counted:
    """Compare two streams with the input: every row once, in one of them, and an aircraft's rows in
    order.

    A message is a duplicate when its id or its row came before; it is then no witness of the order,
    because a replay, where it is stored again, comes late by its nature.
    """
    tails = tail_numbers(lines)
    seen = bytearray(len(lines))
    ids: set[bytes] = set()
    latest: dict[str, int] = {}
    sizes = dict.fromkeys((flights, dead_letters), 0)
    duplicates = order_violations = 0
    for stream in sizes:
        for message in reader.read(stream):
            event_id, number = reader.event_id(message), ROW(message.payload)
            if event_id is None or number is None or (row := int(number[1])) >= len(lines):
                raise AuditError(
                    f"{stream} has a message that is no row of the input: {message.payload[:80]!r}"
                )
            sizes[stream] += 1
            repeated = bool(seen[row]) or event_id in ids
            duplicates += repeated
            seen[row] = 1
            ids.add(event_id)
            if stream == flights and not repeated:
                order_violations += row < (last := latest.get(tails[row], -1))
                latest[tails[row]] = max(row, last)
    return Counted(
        stored=sizes[flights],
        dead_lettered=sizes[dead_letters],
        duplicates=duplicates,
        missing=seen.count(0),
        order_violations=order_violations,
    )


def tail_numbers(lines: Sequence[str]) -> list[str]:
    """The aircraft of each row; empty where it is not known."""
    return [line.split(",", 4)[3] for line in lines]
