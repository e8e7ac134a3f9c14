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
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0\r\nA: b\r\n\r\n", {"A": "b"}),
        (b"NATS/1.0\r\nA:b\r\nC:  d e \r\n\r\n", {"A": "b", "C": "d e"}),
        (b"NATS/1.0\r\nA: b: c\r\n\r\n", {"A": "b: c"}),
        (b"NATS/1.0\r\nA:\r\n\r\n", {"A": ""}),
        (b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n", {"A": "2"}),
        (b"NATS/1.0 200 OK\r\nA: 1\r\n\r\n", {"A": "1"}),
        ("NATS/1.0\r\nA: ä\r\n\r\n".encode(), {"A": "ä"}),
    ],
)
def test_headers_are_read(block: bytes, headers: dict[str, str]) -> None:
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


def test_a_message_without_headers_has_none() -> None:
    message = decode("ORDERS", 1, 0, (b"orders", b"", None, b""))

    assert message == JetStreamMessage(
        "orders", b"", {}, "ORDERS", 1, datetime(1970, 1, 1, tzinfo=UTC)
    )


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
