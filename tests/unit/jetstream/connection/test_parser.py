import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import Error as NatsError

from bytewax_jetstream.jetstream.connection.parser import (
    MAX_LINE,
    BulkReader,
    MessageHandler,
    Parser,
    ProtocolError,
)

Event = tuple[Any, ...]
HANDLED = 7
"""The subscription whose messages go to a handler; all others go to the client."""


class Recorder:
    """Keeps what the parser reports, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.handlers: dict[int, MessageHandler] = {HANDLED: self._handle}
        self.take_bulk: BulkReader | None = None

    def _handle(self, subject: bytes, reply: bytes, header: bytes | None, payload: bytes) -> None:
        self.events.append(("message", HANDLED, subject, reply, header, payload))

    async def on_message(
        self, sid: int, subject: bytes, reply: bytes, payload: bytes, header: bytes | None
    ) -> None:
        self.events.append(("message", sid, subject, reply, header, payload))

    async def on_ping(self) -> None:
        self.events.append(("ping",))

    async def on_pong(self) -> None:
        self.events.append(("pong",))

    async def on_info(self, info: dict[str, Any]) -> None:
        self.events.append(("info", info))

    async def on_error(self, message: str) -> None:
        self.events.append(("error", message))


def parse(reads: Iterable[bytes]) -> list[Event]:
    recorder = Recorder()
    parser = Parser(recorder)

    async def run() -> None:
        for data in reads:
            await parser.parse(data)

    asyncio.run(run())
    return recorder.events


def message(
    subject: bytes,
    payload: bytes,
    *,
    header: bytes | None = None,
    reply: bytes = b"",
    sid: int = HANDLED,
) -> tuple[bytes, Event]:
    """A message as the server sends it, and what is to be reported of it."""
    to = b" ".join(filter(None, (subject, b"%d" % sid, reply)))
    if header is None:
        data = b"MSG %s %d\r\n%s\r\n" % (to, len(payload), payload)
    else:
        data = b"HMSG %s %d %d\r\n%s%s\r\n" % (
            to,
            len(header),
            len(header) + len(payload),
            header,
            payload,
        )
    return data, ("message", sid, subject, reply, header, payload)


HEADER = b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n"
EXAMPLES: list[tuple[bytes, Event]] = [
    (
        b'INFO {"server_id":"S","max_payload":1024}\r\n',
        ("info", {"server_id": "S", "max_payload": 1024}),
    ),
    (b"PING\r\n", ("ping",)),
    message(b"orders.new", b"payload"),
    message(b"orders.new", b"", reply=b"_INBOX.x"),
    message(b"orders.new", b"with\r\nMSG orders 7 3\r\nlines", header=HEADER, reply=b"_INBOX.x"),
    message(b"orders.new", b"", header=HEADER),
    message(b"orders.new", b"another subscription's", header=HEADER, sid=123),
    (b"PONG\r\n", ("pong",)),
    (
        b"-ERR 'Permissions Violation for Publish to \"a\"'\r\n",
        ("error", 'Permissions Violation for Publish to "a"'),
    ),
    message(b"last", b"\r\n\r\n"),
]
STREAM = b"".join(data for data, _ in EXAMPLES)
EVENTS = [event for _, event in EXAMPLES]


def test_everything_a_server_says_is_reported_in_order() -> None:
    assert parse([STREAM]) == EVENTS


def test_a_read_may_end_anywhere() -> None:
    for at in range(len(STREAM) + 1):
        assert parse([STREAM[:at], STREAM[at:]]) == EVENTS, f"split at {at}"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_reads_may_be_of_a_few_bytes(size: int) -> None:
    assert parse(STREAM[at : at + size] for at in range(0, len(STREAM), size)) == EVENTS


def test_an_empty_read_changes_nothing() -> None:
    assert parse([b"", STREAM[:50], b"", STREAM[50:], b""]) == EVENTS


def test_ok_is_ignored() -> None:
    assert parse([b"+OK\r\nPING\r\n"]) == [("ping",)]


def test_a_large_payload_comes_in_many_reads() -> None:
    data, event = message(b"orders.new", bytes(range(256)) * 32_768, header=HEADER)
    data += b"PING\r\n"

    assert parse(data[at : at + 65_536] for at in range(0, len(data), 65_536)) == [event, ("ping",)]


def test_reset_forgets_an_incomplete_message() -> None:
    recorder = Recorder()
    parser = Parser(recorder)
    asyncio.run(parser.parse(b"MSG orders 7 100\r\nhalf of"))
    parser.reset()
    asyncio.run(parser.parse(b"PING\r\n"))

    assert recorder.events == [("ping",)]


@pytest.mark.parametrize(
    ("subject", "header"),
    [
        (b"not.\xff\xfe.utf8", None),
        (b"vertical\x0btab", None),
        (b"form\x0cfeed", HEADER),
        (b"a\x00b", None),
        (b"a\rb", None),
        (b"a\nb", None),
        (b"orders", b"NATS/1.0"),
        (b"orders", b"NATS/1.0\r\n"),
        (b"orders", b"NATS/1.0\r\nno colon\r\n\r\n"),
        (b"orders", b"\xff\xfe\r\n\r\n"),
        (b"orders", b"x"),
        (b"orders", b"NATS/1.0 503\r\n\r\n"),
    ],
)
def test_stored_messages_cannot_break_the_parser(subject: bytes, header: bytes | None) -> None:
    stored, event = message(subject, b"payload", header=header)
    after, next_event = message(b"after", b"it")
    data = stored + after

    assert parse([data]) == [event, next_event]
    assert parse(data[at : at + 1] for at in range(len(data))) == [event, next_event]


def test_error_that_is_not_utf8_is_reported() -> None:
    assert parse([b"-ERR 'caf\xe9'\r\n"]) == [("error", "caf\ufffd")]
    assert parse([b"-ERR\r\n"]) == [("error", "")]


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b"ping\r\n",
        b"PINGS\r\n",
        b"MSG\r\n",
        b"MSG \r\n",
        b"MSG orders\r\n",
        b"MSG orders 7\r\n",
        b"MSG orders seven 3\r\nabc\r\n",
        b"MSG orders 7 three\r\nabc\r\n",
        b"MSG orders 7 -3\r\nabc\r\n",
        b"MSG orders 7 -20\r\nabc\r\n",
        b"MSG orders 7 a b 3\r\nabc\r\n",
        b"MSG orders 7 2\r\nabc\r\n",
        b"HMSG orders 7 3\r\nabc\r\n",
        b"HMSG orders 7 5 3\r\nabc\r\n",
        b"HMSG orders 7 -1 3\r\nabc\r\n",
        b"HMSG orders 7 a b 1 3\r\nabc\r\n",
        b"HMSG orders 7 x 3\r\nabc\r\n",
        b"HMSG \r\n",
        b"MSG orders 7 " + b"9" * 5000 + b"\r\n",
        b"INFO \r\n",
        b"INFO {\r\n",
        b"INFO []\r\n",
        b"INFO \xff\r\n",
        b"INFO " + b"[" * 60_000 + b"\r\n",
        b"." * (MAX_LINE + 1),
    ],
)
def test_garbage_is_a_protocol_error(garbage: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse([b"PING\r\n" + garbage])

    assert 20 < len(str(caught.value)) < 400
    assert isinstance(caught.value, NatsError), (
        "what the connection takes for a reason to connect again"
    )


def test_line_without_an_end_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match=r"^no end of line in \d+ bytes$"):
        parse(b"x" * 1000 for _ in range(1000))


def test_long_info_line_is_accepted_up_to_the_limit() -> None:
    info = {"connect_urls": ["127.0.0.1:4222"] * 3_000}
    line = b"INFO " + json.dumps(info).encode() + b"\r\n"
    assert MAX_LINE * 0.8 < len(line) < MAX_LINE

    assert parse([line[:40_000], line[40_000:]]) == [("info", info)]


SUBJECTS = st.binary(min_size=1, max_size=20).filter(lambda word: not set(b" \r") & set(word))
MESSAGES = st.builds(
    lambda subject, payload, header, reply, sid: message(
        subject, payload, header=header, reply=reply, sid=sid
    ),
    SUBJECTS,
    st.binary(max_size=60),
    st.none() | st.binary(min_size=1, max_size=30) | st.just(HEADER),
    st.just(b"") | SUBJECTS,
    st.sampled_from([HANDLED, 1, 99]),
)
SAYINGS = st.lists(MESSAGES | st.sampled_from(EXAMPLES), max_size=8)


@settings(max_examples=300, deadline=None)
@given(SAYINGS, st.data())
def test_result_does_not_depend_on_how_the_bytes_are_cut_into_reads(
    sayings: list[tuple[bytes, Event]], data: st.DataObject
) -> None:
    stream = b"".join(said for said, _ in sayings)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reads = [
        stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    ]

    assert parse(reads) == [event for _, event in sayings]


WORDS = [
    b"MSG ",
    b"HMSG ",
    b"PING",
    b"INFO ",
    b"\r\n",
    b" ",
    b"7",
    b"-1",
    b"0",
    b"orders ",
    b"{}",
    b"\r",
    b"+OK",
]
NEARLY = st.lists(st.sampled_from(WORDS) | st.binary(max_size=4), max_size=20).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200) | NEARLY)
def test_arbitrary_bytes_give_the_same_outcome_however_they_are_cut(data: bytes) -> None:
    def outcome(reads: Iterable[bytes]) -> object:
        try:
            return parse(reads)
        except ProtocolError:
            return ProtocolError

    assert outcome([data]) == outcome(data[at : at + 1] for at in range(len(data)))
