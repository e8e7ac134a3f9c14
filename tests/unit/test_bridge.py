"""Messages of one broker that become envelopes for the other."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytewax_jetstream.bridge import from_jetstream, from_kafka
from bytewax_jetstream.envelope import Envelope, Headers
from bytewax_jetstream.jetstream.message import JetStreamMessage, decode
from bytewax_jetstream.jetstream.publisher import encoding as jetstream_encoding
from bytewax_jetstream.kafka.encoding import encode

TIME = datetime(2026, 11, 30, 12, 0, 0, 123456, UTC)


class Record:
    """What is always there."""

    def __init__(
        self, key: bytes | None, *headers: tuple[str, bytes | None], value: bytes | None = b"v"
    ) -> None:
        self.key, self.value, self.topic, self.partition, self.offset = key, value, "t", 2, 17
        self.headers = list(headers)


class Full(Record):
    """What our own source adds."""

    cluster: str | None = "4L6g3nShT-eMCtK--X86sw"
    topic_id: str | None = "J5JZHYbtRIOqVyQhp0rUlg"
    timestamp = (1, 1_600_000_000_123)


def message(**fields: Any) -> JetStreamMessage:
    return JetStreamMessage("s.x", b"v", {}, "S", 17, TIME)._replace(**fields)


def test_a_record_keeps_its_identity_its_key_and_its_headers() -> None:
    record = Record(
        b"k", ("Event-Id", b"e-1"), ("Event-Type", b"made"), ("a", b"b"), ("Nats-Rollup", b"all")
    )

    assert from_kafka(record, "x") == Envelope("x", b"v", "t-2-17", "k", "made", {"a": "b"})
    assert from_kafka(record, "x", own_id=True).event_id == "e-1"
    assert from_kafka(Record(None), "x") == Envelope("x", b"v", "t-2-17", "t-2")


def test_a_tombstone_stays_a_tombstone() -> None:
    assert from_kafka(Record(b"k", value=None), "x").payload is None
    assert from_kafka(Record(b"k", value=b""), "x").payload == b""
    assert from_jetstream(message(payload=None), "x").payload is None


@pytest.mark.parametrize("key", [b"\xff\x00", b"", b"\x00\x00\x00\x01", b" k\n"])
def test_key_that_is_not_text_comes_back_unchanged(key: bytes) -> None:
    assert encode(from_kafka(Record(key), "x")).key == key


def test_repeated_binary_and_null_headers_are_kept_in_order() -> None:
    headers = [("a", b"1"), ("b", None), ("a", b"\xff"), ("a", b"")]
    envelope = from_kafka(Record(b"k", *headers), "x")

    assert envelope.header_pairs == (("a", "1"), ("b", None), ("a", b"\xff"), ("a", ""))
    assert isinstance(envelope.headers, Headers)
    assert dict(envelope.headers) == {"a": "1", "b": None}
    assert encode(envelope).headers[1:] == headers


def test_default_id_names_the_cluster_and_the_topic_id_where_they_are_known() -> None:
    record = Full(b"k")

    assert from_kafka(record, "x").event_id == (
        "4L6g3nShT-eMCtK--X86sw:J5JZHYbtRIOqVyQhp0rUlg:t-2-17"
    )
    record.cluster = None
    assert from_kafka(record, "x").event_id == "J5JZHYbtRIOqVyQhp0rUlg:t-2-17"
    record.topic_id = None
    assert from_kafka(record, "x").event_id == "t-2-17"


@pytest.mark.parametrize(
    ("header", "event_id"),
    [
        (b"k\xe2\x80\x8dk", "k\u200dk"),
        (b"", "t-2-17"),
        (None, "t-2-17"),
        (b"\x00\xff", "%00%FF"),
        (b" a", "%20a"),
    ],
)
def test_own_id_is_one_that_both_brokers_take(header: bytes | None, event_id: str) -> None:
    record = Record(b"k", ("Event-Id", header))

    assert from_kafka(record, "x", own_id=True).event_id == event_id


@pytest.mark.parametrize(
    ("timestamp", "time"),
    [
        ((1, 1_600_000_000_123), datetime(2020, 9, 13, 12, 26, 40, 123000, UTC)),
        ((2, 0), datetime(1970, 1, 1, tzinfo=UTC)),
        ((0, -1), None),
        ((1, 1 << 62), None),
        (None, None),
    ],
)
def test_the_time_of_a_record_is_the_envelopes(
    timestamp: tuple[int, int] | None, time: datetime | None
) -> None:
    record = Full(b"k")
    record.timestamp = timestamp  # type: ignore[assignment]  # as sources give it

    assert from_kafka(record, "x").timestamp == time


def test_a_jetstream_message_keeps_its_identity_its_aggregate_and_its_headers() -> None:
    headers = {
        "Nats-Msg-Id": "~digest",
        "Event-Id": "e 1",
        "Aggregate-Id": "k",
        "Event-Type": "made",
        "a": "b",
    }
    read = message(headers=headers, timestamp=TIME)

    assert from_jetstream(read, "t") == Envelope(
        "t", b"v", "S-17-1796040000123456", "k", "made", {"a": "b"}, timestamp=TIME
    )
    assert from_jetstream(read, "t", own_id=True).event_id == "e 1"
    plain = message(headers={"Nats-Msg-Id": "e-1"})
    assert from_jetstream(plain, "t", own_id=True) == Envelope("t", b"v", "e-1", "s.x")


def test_a_message_at_the_same_sequence_of_another_stream_has_another_id() -> None:
    again = message(time=TIME + timedelta(microseconds=1))

    assert from_jetstream(message(), "t").event_id != from_jetstream(again, "t").event_id


def test_pairs_of_a_message_are_kept_unless_its_headers_were_replaced() -> None:
    pairs = (("a", "1"), ("a", "2"))
    read = message(headers={"a": "1"}, repeated=pairs)

    assert from_jetstream(read, "t").header_pairs == pairs
    assert from_jetstream(read._replace(headers={"b": "3"}), "t").header_pairs == (("b", "3"),)


def test_binary_and_empty_keys_come_back_from_a_jetstream_message() -> None:
    binary = message(headers={"Aggregate-Id": b"\xff", "Event-Type": b"\xfe"})
    envelope = from_jetstream(binary, "t")

    assert encode(envelope).key == b"\xff"
    assert encode(envelope).headers[1:] == [("Event-Type", b"\xfe")]
    assert encode(from_jetstream(message(headers={"Aggregate-Id": ""}), "t")).key == b""


# There and back

NAMES = st.sampled_from(["a", "A", "a b", "a\r\nb", "%41", "Status", "é", "Envelope-Encoded"]) | (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
).filter(lambda name: not re.match(r"(?i)nats-|event-id\Z|event-type\Z|aggregate-id\Z", name))
TEXT_OR_BYTES = st.text(st.characters(exclude_categories=["Cs"])).map(str.encode) | st.binary()


@settings(max_examples=300, deadline=None)
@given(
    key=TEXT_OR_BYTES,
    value=st.none() | st.binary(),
    headers=st.lists(st.tuples(NAMES, st.none() | TEXT_OR_BYTES), max_size=5),
    event_type=st.none() | TEXT_OR_BYTES,
    milliseconds=st.integers(2, 253_402_300_799_999),
)
def test_any_record_comes_back_from_jetstream_as_it_was(
    key: bytes,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    event_type: bytes | None,
    milliseconds: int,
) -> None:
    more = [] if event_type is None else [("Event-Type", event_type)]
    record = Full(key, *more, *headers, value=value)
    record.timestamp = (1, milliseconds)
    wire = jetstream_encoding.encode(from_kafka(record, "orders"), 1 << 20)
    sizes, _, rest = wire.partition(b"\r\n")
    header_size, size = map(int, sizes.split())
    raw = (b"orders", b"", rest[:header_size], rest[header_size:size])

    read = decode("ORDERS", 1, 0, raw)

    assert isinstance(read, JetStreamMessage)
    again = encode(from_jetstream(read, "t", own_id=True))
    assert (again.key, again.payload, again.timestamp) == (key, value, milliseconds)
    assert again.headers == [
        ("Event-Id", from_kafka(record, "t").event_id.encode()),
        *more,
        *headers,
    ]
