"""What an envelope becomes for Kafka."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.kafka.encoding import ANY, NOW, Record, are_plain, encode, is_plain

TIME = datetime(2026, 11, 30, 12, 0, 0, 123456, UTC)


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
        ({"payload": None}, True),
        ({"timestamp": TIME}, False),
    ],
)
def test_envelope_is_plain_only_if_it_needs_no_encoding(
    fields: dict[str, Any], plain: bool
) -> None:
    assert is_plain(Envelope(**{"topic": "t", "payload": b"", "event_id": "e", **fields})) is plain


@pytest.mark.parametrize("fields", [{"timestamp": TIME}, {"headers": []}, {"event_id": "ü"}])
def test_one_envelope_that_needs_encoding_makes_all_be_looked_at(fields: dict[str, Any]) -> None:
    plain = [Envelope("t", b"", "e-1", "a"), Envelope("t", None, "e-2")]

    assert are_plain(plain, {"t"})
    assert not are_plain([*plain, plain[0]._replace(**fields)], {"t"})


@pytest.mark.parametrize(
    ("timestamp", "milliseconds"),
    [
        (TIME, 1_796_040_000_123),
        (TIME.astimezone(timezone(timedelta(hours=5))), 1_796_040_000_123),
        (datetime(1970, 1, 1, tzinfo=UTC), 1),
    ],
)
def test_timestamp_becomes_the_time_of_the_record(timestamp: datetime, milliseconds: int) -> None:
    assert encode(Envelope("t", b"", "e", timestamp=timestamp)).timestamp == milliseconds


def test_plain_envelope_is_encoded_unchanged() -> None:
    wire = encode(Envelope("t", b"p", "e", "a", "made"))

    assert wire == Record("t", b"p", b"a", ANY, [("Event-Id", b"e"), ("Event-Type", b"made")], NOW)
