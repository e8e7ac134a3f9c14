"""What an envelope becomes on its way to JetStream, field by field, and what is refused."""

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from hashlib import sha256
from typing import Any

import pytest

from bytewax_jetstream.envelope import Envelope, PublishOptions
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.jetstream.publisher.encoding import encode, encode_all, message_id
from tests.support.frames import MAX_PAYLOAD, Frame, frame_of, publish, read_frame, refusal_of
from tests.support.odd_values import Array, Broken

INVISIBLE = (
    "\u00a0\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u2028\u202e\u2060\u3000\ufeff\ufe0f"
)
"""Characters that are not printed, and are part of texts: blanks, joiners, direction marks."""
WEST = timezone(timedelta(hours=-1))


def good(**fields: Any) -> Envelope:
    return Envelope("orders.new", b"payload", "order-1")._replace(**fields)


def test_envelope_becomes_one_frame_with_all_its_fields() -> None:
    envelope = Envelope(
        topic="orders.new",
        payload=b"\r\nPUB evil 4\r\nevil\r\n",
        event_id="order-1",
        aggregate_id="customer 1",
        event_type="OrderPlaced",
        headers={"Trace": "é, 1", "empty": ""},
        options=PublishOptions(timedelta(minutes=2), 3, 4),
    )

    assert frame_of(envelope) == Frame(
        "orders.new",
        "_INBOX.x.1.0",
        [
            ("Nats-Msg-Id", "order-1"),
            ("Aggregate-Id", "customer 1"),
            ("Event-Type", "OrderPlaced"),
            ("Trace", "é, 1"),
            ("empty", ""),
            ("Nats-TTL", "120"),
            ("Nats-Expected-Last-Sequence", "3"),
            ("Nats-Expected-Last-Subject-Sequence", "4"),
        ],
        b"\r\nPUB evil 4\r\nevil\r\n",
    )


def test_minimal_envelope_becomes_a_frame_with_only_its_id() -> None:
    assert frame_of(good(payload=b"")) == Frame(
        "orders.new", "_INBOX.x.1.0", [("Nats-Msg-Id", "order-1")], b""
    )


class Kind(StrEnum):
    PLACED = "OrderPlaced"


def test_value_of_a_str_enum_is_encoded_as_any_str() -> None:
    frame = frame_of(good(event_type=Kind.PLACED, aggregate_id=Kind.PLACED))

    assert frame.headers[1:] == [("Aggregate-Id", "OrderPlaced"), ("Event-Type", "OrderPlaced")]


# Topics


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("", "empty"),
        (None, "the topic must be a str, not NoneType"),
        (b"orders", "the topic must be a str, not bytes"),
        (["orders"], "the topic must be a str, not list"),
        ("orders.*", "wildcard"),
        ("orders.>", "wildcard"),
        ("or ders", "white space"),
        (" orders", "white space"),
        ("orders ", "white space"),
        ("or\tders", "white space"),
        ("orders\r\nPUB evil 0", "control character"),
        ("orders\n", "control character"),
        ("or\0ders", "control character"),
        ("or\x0bders", "control character"),
        ("or\x0cders", "control character"),
        ("or\x7fders", "control character"),
        ("or\x85ders", "cannot be printed"),
        ("or\ud800ders", "cannot be printed"),
        ("orders..new", "empty token"),
        (".orders", "empty token"),
        ("orders.", "empty token"),
        ("$JS.API.STREAM.PURGE.ORDERS", "is reserved for the server"),
        ("_INBOX.abc", "is reserved for the server"),
        ("a" * 5000, "has 5000 bytes, the limit is 1024: shorten it"),
        ("é" * 1000, "the limit is 1024: shorten it"),
    ],
)
def test_a_bad_topic_is_refused_with_what_is_wrong(topic: Any, words: str) -> None:
    reason = refusal_of(good(topic=topic))

    assert words in reason
    assert len(reason) < 250


@pytest.mark.parametrize(
    "topic",
    [
        *("a", "a.b.c", "flights.JFK.UA", "größe.été", "a-b_c", "a" * 1024, "orders.$x", "a/b"),
        *(f"orders.x{each}y" for each in INVISIBLE),
        "orders.👩\u200d🚀",
        "orders.\u0645\u06cc\u200c\u062e\u0648",
    ],
)
def test_valid_topic_is_left_unchanged(topic: str) -> None:
    assert frame_of(good(topic=topic)).subject == topic


# Payloads and sizes


@pytest.mark.parametrize(
    "payload",
    [
        "text",
        bytearray(b"x"),
        memoryview(b"x"),
        5,
        [b"x"],
        {"a": 1},
        type("Sub", (bytes,), {})(b"x"),
    ],
)
def test_payload_must_be_bytes(payload: Any) -> None:
    assert (
        refusal_of(good(payload=payload))
        == f"the payload must be bytes or None, not {type(payload).__name__}"
    )


def test_headers_count_against_the_servers_limit_to_the_byte() -> None:
    envelope = good(payload=b"")
    headers = len(b"NATS/1.0\r\nNats-Msg-Id: order-1\r\n\r\n")

    assert (
        len(frame_of(envelope._replace(payload=b"." * (1000 - headers)), 1000).payload)
        == 1000 - headers
    )
    reason = refusal_of(envelope._replace(payload=b"." * (1001 - headers)), 1000)
    assert reason.startswith("payload and headers have 1001 bytes, the server's limit is 1000: ")


def test_headers_are_limited_to_the_byte() -> None:
    headers = len(b"NATS/1.0\r\nNats-Msg-Id: order-1\r\nA: \r\n\r\n")
    room = 64 * 1024 - 1 - headers

    assert frame_of(good(headers={"A": "x" * room})).headers[-1] == ("A", "x" * room)
    assert refusal_of(good(headers={"A": "x" * (room + 1)})) == (
        "the headers have 65536 bytes, the limit is 65535: shorten them"
    )


# Event ids


@pytest.mark.parametrize("event_id", ["1", "a" * 128, "order:1_2-3.4", "OQ" * 64])
def test_plain_event_id_is_the_message_id_unchanged(event_id: str) -> None:
    assert frame_of(good(event_id=event_id)).headers == [("Nats-Msg-Id", event_id)]


@pytest.mark.parametrize(
    "event_id",
    [
        *(f"order{each}1" for each in INVISIBLE),
        *("order 1", "a" * 129, "größe", "a/b", "~" + "0" * 64, "a,b", "🛫", "o" * 3000),
    ],
)
def test_other_event_ids_are_hashed_and_kept_in_their_own_header(event_id: str) -> None:
    digest = sha256(event_id.encode()).hexdigest()

    assert frame_of(good(event_id=event_id)).headers == [
        ("Nats-Msg-Id", f"~{digest}"),
        ("Event-Id", event_id),
    ]


def test_ids_that_differ_only_in_blanks_get_different_message_ids() -> None:
    ids = ["k1", "k 1", "k  1", "k\u00b71", "k_1"]

    assert len({message_id(event_id).split(b"\r\n")[0] for event_id in ids}) == len(ids)
    for event_id in ("k ", " k", "k\t", "k\n1", "k\r\n1", "k\x851", "k\x001"):
        assert "has control characters, or spaces at either end: remove them" in refusal_of(
            good(event_id=event_id)
        )


@pytest.mark.parametrize(
    ("event_id", "words"),
    [
        (None, "the event id is missing"),
        ("", "the event id is missing"),
        (7, "the event id must be a str, not int"),
        (b"order-1", "the event id must be a str, not bytes"),
        (["order-1"], "the event id must be a str, not list"),
        ("order\ud800", "control characters"),
        ("a" * 70_000, "the headers have"),
    ],
)
def test_a_bad_event_id_is_refused(event_id: Any, words: str) -> None:
    reason = refusal_of(good(event_id=event_id))

    assert words in reason
    assert len(reason) < 250


# Headers


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (
            {"Nats-Rollup": "all"},
            "header Nats-Rollup is reserved: use the envelope's fields or PublishOptions",
        ),
        ({"nats-msg-id": "x"}, "reserved"),
        ({"NATS-Expected-Stream": "x"}, "reserved"),
        ({"Nats-" + "x" * 10_000: "x"}, "reserved"),
        ({"Event-Id": "x"}, "reserved"),
        ({"event-type": "x"}, "reserved"),
        ({"AGGREGATE-ID": "x"}, "reserved"),
        ({"": "x"}, "invalid header name"),
        ({5: "x"}, "invalid header name 5"),
        ({b"a": "x"}, "invalid header name"),
        ({None: "x"}, "invalid header name"),
        ({"a\ud800": "x"}, "header name 'a\\ud800' has lone surrogates"),
        (
            {"a": "\ud800"},
            "header a '\\ud800' has lone surrogates, which are not text: remove them",
        ),
        ({"a": 5}, "header a must be a str, bytes or None, not int"),
        ({"a": bytearray(b"x")}, "header a must be a str, bytes or None, not bytearray"),
        ({"a": ["x"]}, "header a must be a str, bytes or None, not list"),
        ([("Nats-Rollup", "all")], "header Nats-Rollup is reserved"),
        ("a: x", "the headers must be a mapping, or a sequence of (name, value) pairs, not str"),
        (b"a: x", "pairs, not bytes"),
        (0, "pairs, not int"),
        (["ab"], "pairs, not a list that holds 'ab'"),
        ([("a", "x", "y")], "pairs, not a list that holds ('a', 'x', 'y')"),
        ([("a",)], "pairs, not a list that holds ('a',)"),
        (dict, "pairs, not type"),
        (Array(), "pairs, not Array"),
        (iter([("a", "x")]), "pairs, not list_iterator"),
        (Broken(), "the headers cannot be read (KeyError): give a dict, or a list of pairs"),
    ],
)
def test_bad_headers_are_refused_with_what_is_wrong(headers: Any, words: str) -> None:
    reason = refusal_of(good(headers=headers))

    assert words in reason
    assert len(reason) < 250


@pytest.mark.parametrize(
    ("headers", "lines"),
    [
        ([("a", "1"), ("b", "2"), ("a", "3")], [("a", "1"), ("b", "2"), ("a", "3")]),
        ((["a", "1"],), [("a", "1")]),
        ({"a": b"text"}, [("a", "text")]),
        ({"a": "100%"}, [("a", "100%")]),
        ({"a": "x\u200dy\u00a0"}, [("a", "x\u200dy\u00a0")]),
        ({"a": None}, [("a", "%"), ("Envelope-Encoded", "a")]),
        ({"a": b"\x00\xff"}, [("a", "%00%FF"), ("Envelope-Encoded", "a")]),
        ({"a": "x\r\nb: y"}, [("a", "x%0D%0Ab:%20y"), ("Envelope-Encoded", "a")]),
        ({"a": " x"}, [("a", "%20x"), ("Envelope-Encoded", "a")]),
        ({"a b": "100%"}, [("a%20b", "100%25"), ("Envelope-Encoded", "a%20b")]),
        ({"a:b": ""}, [("a%3Ab", ""), ("Envelope-Encoded", "a%3Ab")]),
        ({"é": "é"}, [("%C3%A9", "%C3%A9"), ("Envelope-Encoded", "%C3%A9")]),
        ({"Status": "503"}, [("%53tatus", "503"), ("Envelope-Encoded", "%53tatus")]),
        ({"description": "x"}, [("%64escription", "x"), ("Envelope-Encoded", "%64escription")]),
        (
            {"envelope-encoded": "b", "b": "%41"},
            [("%65nvelope-encoded", "b"), ("b", "%41"), ("Envelope-Encoded", "%65nvelope-encoded")],
        ),
        (
            [("a", "%41"), ("b", "%41"), ("a", None), ("c d", "")],
            [
                *(("a", "%2541"), ("b", "%41"), ("a", "%"), ("c%20d", "")),
                ("Envelope-Encoded", "a,c%20d"),
            ],
        ),
    ],
)
def test_what_nats_cannot_carry_is_percent_encoded_and_listed(
    headers: Any, lines: list[tuple[str, str]]
) -> None:
    assert frame_of(good(headers=headers)).headers[1:] == lines


def test_all_that_is_encoded_is_listed_in_one_header() -> None:
    envelope = good(aggregate_id="\x00\udcff", event_type="a\nb", headers={"c": "\n"})

    assert frame_of(envelope).headers[1:] == [
        ("Aggregate-Id", "%00%FF"),
        ("Event-Type", "a%0Ab"),
        ("c", "%0A"),
        ("Envelope-Encoded", "Aggregate-Id,Event-Type,c"),
    ]


def test_tombstone_is_an_empty_payload_with_a_header_that_says_so() -> None:
    frame = frame_of(good(payload=None))

    assert (frame.headers[1:], frame.payload) == ([("Envelope-Payload", "null")], b"")


def test_timestamp_is_kept_in_a_header_in_utc() -> None:
    time = datetime(2026, 11, 30, 13, 0, 0, 123456, timezone(timedelta(hours=2)))

    assert frame_of(good(timestamp=time)).headers[1:] == [
        ("Envelope-Timestamp", "2026-11-30T11:00:00.123456Z")
    ]


def test_event_id_that_comes_twice_needs_a_closer_look_only_with_dedupe() -> None:
    batch = [good(), good(payload=b"other")]

    assert encode_all(batch, {"orders.new"}, MAX_PAYLOAD) is None
    assert encode_all(batch, {"orders.new"}, MAX_PAYLOAD, dedupe=False) is not None


@pytest.mark.parametrize(
    ("timestamp", "words"),
    [
        (1796040640042, "the timestamp must be a datetime, not int"),
        (
            datetime.now(UTC).replace(tzinfo=None),
            "has no time zone: give one, such as datetime.now(UTC)",
        ),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=2))), "outside the years 1 to 9999"),
    ],
)
def test_bad_timestamp_is_refused_with_what_is_wrong(timestamp: Any, words: str) -> None:
    assert words in refusal_of(good(timestamp=timestamp))


def test_headers_of_the_user_are_left_unchanged() -> None:
    headers = {"Trace": "1"}
    publish(good(headers=headers, options=PublishOptions(expected_last_sequence=1)))

    assert headers == {"Trace": "1"}


def test_empty_headers_add_nothing() -> None:
    assert frame_of(good(headers={})).headers == [("Nats-Msg-Id", "order-1")]


# Aggregates, types and options


@pytest.mark.parametrize("field", ["aggregate_id", "event_type"])
@pytest.mark.parametrize("value", [7, b"x", ["x"], {"x": 1}, {"x"}, object(), Array(), "\ud800"])
def test_an_odd_aggregate_or_type_is_refused(field: str, value: Any) -> None:
    reason = refusal_of(good(**{field: value}))

    assert (
        "must be a str, not" in reason
        or "must each be a str or None" in reason
        or "has lone surrogates, which are not text: remove them" in reason
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            PublishOptions(ttl=timedelta(0)),
            "invalid ttl 0:00:00: give whole seconds, at least 1",
        ),
        (
            PublishOptions(ttl=timedelta(milliseconds=1500)),
            "invalid ttl 0:00:01.500000",
        ),
        (PublishOptions(ttl=timedelta(seconds=-5)), "invalid ttl"),
        (PublishOptions(ttl=timedelta.max), "invalid ttl"),
        (PublishOptions(ttl=5), "the ttl must be a timedelta, not int"),  # type: ignore[arg-type]
        (
            PublishOptions(ttl=Array()),  # type: ignore[arg-type]
            "the ttl must be a timedelta, not Array",
        ),
        (
            PublishOptions(expected_last_sequence=-1),
            "invalid expected last sequence: give 0 or a stream sequence",
        ),
        (PublishOptions(expected_last_sequence=True), "invalid expected last sequence"),
        (PublishOptions(expected_last_sequence=2**63), "invalid expected last sequence"),
        (PublishOptions(expected_last_sequence=10**5000), "invalid expected last sequence"),
        (
            PublishOptions(expected_last_subject_sequence="7"),  # type: ignore[arg-type]
            "invalid expected last sequence",
        ),
        (
            PublishOptions(expected_last_subject_sequence=1.0),  # type: ignore[arg-type]
            "invalid expected last sequence",
        ),
        (
            PublishOptions(schedule=datetime(2030, 1, 1), schedule_target="a"),  # noqa: DTZ001
            "the schedule 2030-01-01 00:00:00 has no time zone: give a datetime with one",
        ),
        (
            PublishOptions(schedule=datetime.max.replace(tzinfo=WEST), schedule_target="a"),
            "invalid schedule 9999-12-31",
        ),
        (PublishOptions(schedule="", schedule_target="a"), "invalid schedule ''"),
        (PublishOptions(schedule="@hourly\r\nNats-Rollup: all", schedule_target="a"), "control"),
        (
            PublishOptions(schedule=5, schedule_target="a"),  # type: ignore[arg-type]
            "the schedule must be a datetime or a str, not int",
        ),
        (
            PublishOptions(schedule="@hourly"),
            "the schedule needs a schedule_target: the topic must be a str, not NoneType",
        ),
        (
            PublishOptions(schedule="@hourly", schedule_target="a b"),
            "the schedule needs a schedule_target: topic 'a b' has a wildcard, white space",
        ),
        (
            PublishOptions(schedule="@hourly", schedule_target="a", schedule_ttl=timedelta(0)),
            "invalid schedule_ttl 0:00:00: give whole seconds",
        ),
        (PublishOptions(schedule_target="a"), "are of use with a schedule only"),
        (PublishOptions(schedule_ttl=timedelta(seconds=1)), "are of use with a schedule only"),
        ({"ttl": timedelta(seconds=5)}, "the options must be PublishOptions, not dict"),
        ((None, 1, None), "the options must be PublishOptions, not tuple"),
        (timedelta(seconds=5), "the options must be PublishOptions, not timedelta"),
        (Array(), "the options must be PublishOptions, not Array"),
    ],
)
def test_bad_options_are_refused_with_what_is_wrong(options: Any, words: str) -> None:
    reason = refusal_of(good(options=options))

    assert words in reason
    assert len(reason) < 250


def test_ttl_is_refused_where_the_server_would_ignore_it() -> None:
    options = PublishOptions(ttl=timedelta(minutes=2))

    with pytest.raises(EnvelopeError, match=r"ignores the ttl 0:02:00.*use nats-server 2\.11"):
        encode(good(options=options), MAX_PAYLOAD, takes_ttl=False)
    assert encode(good(options=PublishOptions()), MAX_PAYLOAD, takes_ttl=False)


@pytest.mark.parametrize(
    ("schedule", "value"),
    [
        (datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC), "@at 2030-01-02T03:04:05+00:00"),
        (datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=WEST), "@at 2030-01-02T04:04:05.000006+00:00"),
        ("@every 5m", "@every 5m"),
        ("0 0 5 * * *", "0 0 5 * * *"),
    ],
)
def test_schedule_becomes_the_headers_of_the_server(schedule: datetime | str, value: str) -> None:
    ttl = timedelta(minutes=5)
    options = PublishOptions(schedule=schedule, schedule_target="orders.due", schedule_ttl=ttl)

    assert frame_of(good(options=options)).headers[1:] == [
        ("Nats-Schedule", value),
        ("Nats-Schedule-Target", "orders.due"),
        ("Nats-Schedule-TTL", "300s"),
    ]


def test_empty_options_add_nothing() -> None:
    assert frame_of(good(options=PublishOptions())).headers == [("Nats-Msg-Id", "order-1")]
    assert frame_of(good(options=PublishOptions(expected_last_sequence=0))).headers[1:] == [
        ("Nats-Expected-Last-Sequence", "0")
    ]


def test_event_id_without_dedupe_is_in_a_header_the_server_ignores() -> None:
    for event_id in ("order-1", "not / plain"):
        tail = encode(good(event_id=event_id), MAX_PAYLOAD, dedupe=False)
        assert read_frame(b"HPUB x y" + tail).headers == [("Event-Id", event_id)]
