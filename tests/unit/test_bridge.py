"""Messages of one broker that become envelopes for the other."""

from bytewax_jetstream.bridge import from_jetstream, from_kafka
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.kafka.encoding import encode, is_plain


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


def test_key_that_is_not_text_comes_back_unchanged() -> None:
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
