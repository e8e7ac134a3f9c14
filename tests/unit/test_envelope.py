import inspect
import pickle
from datetime import UTC, datetime
from typing import Any, get_type_hints

import pytest

from bytewax_jetstream.envelope import (
    Checkpoint,
    Envelope,
    Headers,
    Outcome,
    PublishOptions,
    PublishResult,
    payload_sizes,
)

ENVELOPE = Envelope(
    *("orders.new", b"{}", "order-1", "customer-1", "OrderPlaced", {"Trace": "1"}, 3),
    PublishOptions(),
    datetime(2026, 11, 30, tzinfo=UTC),
)
REPEATED = Headers([("a", "1"), ("b", None), ("a", b"\xff")])
RESULT = PublishResult(
    outcome=Outcome.REJECTED,
    event_id="order-1",
    topic="orders.new",
    aggregate_id="customer-1",
    event_type="OrderPlaced",
    broker="jetstream",
    stream=None,
    partition=None,
    sequence=None,
    duplicate=None,
    attempts=1,
    ack_seconds=0.1,
    reason="too large",
    code=10054,
    envelope=ENVELOPE,
    worker=1,
    epoch=7,
)
CHECKPOINT = Checkpoint(
    "publish", 1, "worker-1", 7, stored=3, duplicates=1, rejected=1, last_event_id="order-1"
)


@pytest.mark.parametrize(
    "value", [ENVELOPE, RESULT, CHECKPOINT, PublishOptions(expected_last_sequence=1)]
)
def test_a_value_is_immutable(value: Any) -> None:
    for field in value._fields:
        with pytest.raises(AttributeError):
            setattr(value, field, None)
    with pytest.raises(AttributeError):
        value.another = None


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value", [ENVELOPE, RESULT, CHECKPOINT, REPEATED, ENVELOPE._replace(headers=REPEATED)]
)
def test_value_survives_pickling_unchanged(value: Any, protocol: int) -> None:
    copy = pickle.loads(pickle.dumps(value, protocol))

    assert copy == value
    assert type(copy) is type(value)


def test_an_envelope_is_made_by_position_or_by_keyword() -> None:
    by_keyword = Envelope(
        topic="orders.new",
        payload=b"{}",
        event_id="order-1",
        aggregate_id="customer-1",
        event_type="OrderPlaced",
        headers={"Trace": "1"},
        partition=3,
        options=PublishOptions(),
        timestamp=datetime(2026, 11, 30, tzinfo=UTC),
    )

    assert by_keyword == ENVELOPE


def test_an_envelope_needs_a_topic_a_payload_and_an_event_id() -> None:
    required = [
        name
        for name, parameter in inspect.signature(Envelope).parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]

    assert required == ["topic", "payload", "event_id"]
    assert set(Envelope("orders.new", b"", "1")[3:]) == {None}


@pytest.mark.parametrize(
    ("headers", "pairs"),
    [
        (None, ()),
        ({}, ()),
        ({"a": "1", "b": None}, (("a", "1"), ("b", None))),
        ([("a", "1"), ("a", "2")], (("a", "1"), ("a", "2"))),
        (REPEATED, (("a", "1"), ("b", None), ("a", b"\xff"))),
    ],
)
def test_header_pairs_are_all_headers_in_order(headers: Any, pairs: object) -> None:
    assert ENVELOPE._replace(headers=headers).header_pairs == pairs


def test_headers_are_a_mapping_of_first_values_that_keeps_all_pairs() -> None:
    assert dict(REPEATED) == {"a": "1", "b": None}
    assert (REPEATED["a"], REPEATED.get("c"), len(REPEATED)) == ("1", None, 2)
    assert Headers([("a", "1"), ("a", "2")]) != Headers([("a", "1"), ("a", "3")])
    assert Headers([("a", "1"), ("a", "2")]) != {"a": "1"}
    assert Headers([("b", "2"), ("a", "1")]) == {"a": "1", "b": "2"}
    assert Headers([("a", "1")]) != [("a", "1")]
    assert repr(REPEATED) == "Headers([('a', '1'), ('b', None), ('a', b'\\xff')])"


@pytest.mark.parametrize("kind", [Envelope, PublishOptions, PublishResult, Checkpoint])
def test_every_field_has_its_type(kind: type[tuple[Any, ...]]) -> None:
    assert list(get_type_hints(kind)) == list(kind._fields)  # type: ignore[attr-defined]  # of a NamedTuple


def test_outcome_is_shown_as_its_word() -> None:
    assert [f"{outcome}" for outcome in Outcome] == ["stored", "rejected", "unknown"]
    assert pickle.loads(pickle.dumps(Outcome.STORED)) is Outcome.STORED


@pytest.mark.parametrize("payloads", [[], [b"1", b"234"], [b"1", None, b"22"], [b"1", "text", 3]])
def test_payloads_that_are_not_bytes_count_as_nothing(payloads: list[Any]) -> None:
    made = [Envelope("t", payload, event_id="1") for payload in payloads]

    assert payload_sizes(made) == sum(len(each) for each in payloads if type(each) is bytes)
