from datetime import UTC, datetime

import pytest

from bytewax_jetstream.jetstream.message import (
    JetStreamMessage,
    UnreadableMessage,
    decode,
    parse_headers,
    parse_position,
)


@pytest.mark.parametrize(
    "reply",
    [
        b"$JS.ACK.ORDERS.bytewax-1.1.42.7.1795375450441346169.9",
        b"$JS.ACK._.ACCOUNT.ORDERS.bytewax-1.1.42.7.1795375450441346169.9",
        b"$JS.ACK.hub.ACCOUNT.ORDERS.bytewax-1.1.42.7.1795375450441346169.9.random",
        b"$JS.ACK.hub.ACCOUNT.ORDERS.bytewax-1.1.42.7.1795375450441346169.9.random.more",
    ],
)
def test_message_position_is_read_from_every_form_of_reply_subject(reply: bytes) -> None:
    assert parse_position(reply) == (42, 7, 1795375450441346169)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"_INBOX.abc.1",
        b"$JS.ACK.ORDERS.c.1.42.7.1795375450441346169",
        b"$JS.ACK.ORDERS.c.1.x.7.1795375450441346169.9",
        b"_R_.a.b.c.d.1.2.3.4",
        b"$JS.ACK.a.b.c.d.e.1.2.3",
    ],
)
def test_malformed_reply_subject_is_refused(reply: bytes) -> None:
    with pytest.raises(ValueError, match=r"not the reply subject|invalid literal"):
        parse_position(reply)


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"NATS/1.0\r\n\r\n", []),
        (b"NATS/1.0\r\nA: b\r\n\r\n", [("A", "b")]),
        (b"NATS/1.0\r\nA:b\r\nC: \t d e \r\n\r\n", [("A", "b"), ("C", "d e")]),
        (b"NATS/1.0\r\nA: b: c\r\n\r\n", [("A", "b: c")]),
        (b"NATS/1.0\r\nA:\r\n\r\n", [("A", "")]),
        (b"NATS/1.0\r\nA: 2\r\nB: 1\r\nA: 1\r\n\r\n", [("A", "2"), ("B", "1"), ("A", "1")]),
        (b"NATS/1.0 200 OK\r\nA: 1\r\n\r\n", [("A", "1")]),
        ("NATS/1.0\r\nA: ä\r\n\r\n".encode(), [("A", "ä")]),
        ("NATS/1.0\r\nA: \u00a0x\u3000\r\n\r\n".encode(), [("A", "\u00a0x\u3000")]),
    ],
)
def test_headers_are_read(block: bytes, headers: list[tuple[str, str]]) -> None:
    assert parse_headers(block) == headers


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"NATS/1.0", "no end"),
        (b"NATS/1.0\r\n", "no end"),
        (b"NATS/1.0\r\nA: b\r\n", "no end"),
        (b"HTTP/1.1\r\nA: b\r\n\r\n", "does not begin"),
        (b"\r\n\r\n", "does not begin"),
        (b"NATS/1.0\r\nA\r\n\r\n", "malformed line: 'A'"),
        (b"NATS/1.0\r\n: b\r\n\r\n", "malformed line"),
        (b"NATS/1.0\r\n\r\nA: b\r\n\r\n", "malformed line: ''"),
        (b"NATS/1.0\r\nA: \xff\r\n\r\n", "utf-8"),
    ],
)
def test_a_broken_header_block_is_refused_with_what_is_wrong(block: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_headers(block)


def test_message_has_its_position_and_the_time_it_was_stored() -> None:
    raw = ("orders.ä".encode(), b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"\x00\xff")

    message = decode("ORDERS", 42, 1795375450441346999, raw)

    time = datetime(2026, 11, 22, 19, 24, 10, 441346, UTC)
    assert message == JetStreamMessage("orders.ä", b"\x00\xff", {"A": "b"}, "ORDERS", 42, time)
    assert message.header_pairs == (("A", "b"),)


def test_a_message_without_headers_has_none() -> None:
    message = decode("ORDERS", 1, 0, (b"orders", b"", None, b""))

    assert message == JetStreamMessage(
        "orders", b"", {}, "ORDERS", 1, datetime(1970, 1, 1, tzinfo=UTC)
    )


def test_message_has_the_first_value_of_a_repeated_name_and_all_pairs() -> None:
    message = decode("ORDERS", 1, 0, (b"orders", b"", b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n", b""))

    assert isinstance(message, JetStreamMessage)
    assert message.headers == {"A": "1"}
    assert message.header_pairs == (("A", "1"), ("A", "2"))
    assert message._replace(headers={"B": "3"}).header_pairs == (("B", "3"),)


@pytest.mark.parametrize(
    ("lines", "pairs"),
    [
        (b"A: %41\r\n", (("A", "%41"),)),
        (b"A: %41\r\nB: %41\r\nEnvelope-Encoded: A\r\n", (("A", "A"), ("B", "%41"))),
        (b"Envelope-Encoded: A,C%20D\r\nC%20D: %\r\nA: %FF\r\n", (("C D", None), ("A", b"\xff"))),
        (b"A: %zz%\r\nEnvelope-Encoded: A, B\r\n", (("A", "%zz%"),)),
        (b"%FF: 1\r\nEnvelope-Encoded: %FF\r\n", (("\ufffd", "1"),)),
        (b"A: 1\r\nEnvelope-Timestamp: soon\r\n", (("A", "1"), ("Envelope-Timestamp", "soon"))),
        (
            b"Envelope-Timestamp: 2026-11-30T12:00:00\r\n",
            (("Envelope-Timestamp", "2026-11-30T12:00:00"),),
        ),
        (b"Envelope-Payload: what\r\n", (("Envelope-Payload", "what"),)),
    ],
)
def test_only_what_is_listed_is_decoded(lines: bytes, pairs: object) -> None:
    message = decode("S", 1, 0, (b"s", b"", b"NATS/1.0\r\n%s\r\n" % lines, b""))

    assert isinstance(message, JetStreamMessage)
    assert message.header_pairs == pairs
    assert (message.payload, message.timestamp) == (b"", None)


def test_payload_that_is_there_is_never_null() -> None:
    header = b"NATS/1.0\r\nEnvelope-Payload: null\r\n\r\n"
    null, there = (decode("S", 1, 0, (b"s", b"", header, payload)) for payload in (b"", b"x"))

    assert (null.payload, there.payload) == (None, b"x")


@pytest.mark.parametrize(
    ("subject", "header", "reason"),
    [
        (b"orders.\xff", None, "its subject is not UTF-8"),
        (b"orders.\x0b", None, "its subject has control characters"),
        (b"orders.\x00", None, "its subject has control characters"),
        (b"orders", b"NATS/1.0", "its header block has no end"),
        (b"orders", b"NATS/1.0\r\nA: \xff\r\n\r\n", "its header block is not UTF-8"),
    ],
)
def test_unreadable_message_keeps_its_raw_parts(
    subject: bytes, header: bytes | None, reason: str
) -> None:
    error = decode("ORDERS", 42, 0, (subject, b"", header, b"payload"))

    assert error == UnreadableMessage("ORDERS", 42, reason, subject, b"payload", header or b"")
