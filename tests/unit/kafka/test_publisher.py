from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from bytewax_jetstream.bridge import from_jetstream, from_kafka
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.kafka.encoding import ANY, encode, is_plain
from bytewax_jetstream.kafka.producer import error_of, place_of
from bytewax_jetstream.kafka.publisher import FLIGHT


def test_a_fatal_error_is_found_behind_what_the_library_wraps_it_in() -> None:
    fatal = KafkaException(KafkaError(KafkaError._FATAL))

    def served() -> None:
        try:
            raise fatal
        except KafkaException as error:
            raise SystemError("returned a result with an exception set") from error

    with pytest.raises(SystemError) as caught:
        served()
    found = error_of(caught.value)
    assert found is not None
    assert found.code() == KafkaError._FATAL
    assert error_of(BufferError("full")) is None


def test_a_place_is_one_number() -> None:
    places = {place_of(flight, index) for flight in range(1, 5) for index in (0, 1, FLIGHT - 1)}

    assert len(places) == 12


@pytest.mark.parametrize(
    ("fields", "plain"),
    [
        ({}, True),
        ({"aggregate_id": "a", "event_type": "t"}, True),
        ({"aggregate_id": "ä"}, False),
        ({"event_id": "ü"}, False),
        ({"event_id": ""}, False),
        ({"headers": {}}, False),
        ({"partition": 0}, False),
        ({"payload": "x"}, False),
    ],
)
def test_only_what_needs_no_encoding_is_plain(fields: dict[str, Any], plain: bool) -> None:
    assert is_plain(Envelope(**{"topic": "t", "payload": b"", "event_id": "e", **fields})) is plain


def test_what_is_plain_encodes_to_the_same_as_it_stands() -> None:
    wire = encode(Envelope("t", b"p", "e", "a", "made"))

    assert wire == ("t", b"p", b"a", ANY, [("Event-Id", b"e"), ("Event-Type", b"made")])


class Record:
    def __init__(self, key: bytes | None, *headers: tuple[str, bytes]) -> None:
        self.key, self.value, self.topic, self.partition, self.offset = key, b"v", "t", 2, 17
        self.headers = list(headers)


def test_a_record_keeps_its_identity_its_key_and_its_headers() -> None:
    record = Record(
        b"k", ("Event-Id", b"e-1"), ("Event-Type", b"made"), ("a", b"b"), ("Nats-Rollup", b"all")
    )

    assert from_kafka(record, "x") == Envelope("x", b"v", "t-2-17", "k", "made", {"a": "b"})
    assert from_kafka(record, "x", own_id=True).event_id == "e-1"
    assert from_kafka(Record(None), "x") == Envelope("x", b"v", "t-2-17", "t-2")


def test_a_key_that_is_no_text_comes_back_as_it_was() -> None:
    envelope = from_kafka(Record(b"\xff\x00"), "x")

    assert not is_plain(envelope)
    assert encode(envelope).key == b"\xff\x00"


def test_a_jetstream_message_keeps_its_identity_its_aggregate_and_its_headers() -> None:
    from datetime import UTC, datetime

    from bytewax_jetstream.jetstream.message import JetStreamMessage

    headers = {
        "Nats-Msg-Id": "~digest",
        "Event-Id": "e 1",
        "Aggregate-Id": "k",
        "Event-Type": "made",
        "a": "b",
    }
    message = JetStreamMessage("s.x", b"v", headers, "S", 17, datetime.now(UTC))

    assert from_jetstream(message, "t") == Envelope("t", b"v", "S-17", "k", "made", {"a": "b"})
    assert from_jetstream(message, "t", own_id=True).event_id == "e 1"
    plain = message._replace(headers={"Nats-Msg-Id": "e-1"})
    assert from_jetstream(plain, "t", own_id=True) == Envelope("t", b"v", "e-1", "s.x")
