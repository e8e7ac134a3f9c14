"""What an envelope becomes for Kafka."""

from typing import Any

import pytest

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.kafka.encoding import ANY, encode, is_plain


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
def test_envelope_is_plain_only_if_it_needs_no_encoding(
    fields: dict[str, Any], plain: bool
) -> None:
    assert is_plain(Envelope(**{"topic": "t", "payload": b"", "event_id": "e", **fields})) is plain


def test_plain_envelope_is_encoded_unchanged() -> None:
    wire = encode(Envelope("t", b"p", "e", "a", "made"))

    assert wire == ("t", b"p", b"a", ANY, [("Event-Id", b"e"), ("Event-Type", b"made")])
