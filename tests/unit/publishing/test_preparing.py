"""Several messages under one event id, in one hand-over."""

from typing import Any

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.publishing import refuse_conflicts

PLACED = Envelope("orders.placed", b"12", "order-1", event_type="placed")
PAID = Envelope("orders.paid", b"12", "order-1")


def _on_one_stream(topic: str) -> str:
    return "ORDERS"


def _on_unknown_streams(topic: str) -> None:
    return None


def test_equal_topic_and_payload_is_the_same_message_again() -> None:
    envelopes = [PLACED, PLACED, Envelope("orders.placed", b"12", "order-1", "a", "other", {})]
    wires: list[Any] = [b"1", b"2", b"3"]

    assert refuse_conflicts(envelopes, wires, _on_one_stream) == [1, 2]
    assert wires == [b"1", b"2", b"3"]


def test_another_message_under_the_id_is_refused_and_both_are_named() -> None:
    envelopes = [PLACED, PAID, PLACED._replace(payload=None), PLACED]
    wires: list[Any] = [b"1", b"2", b"3", b"4"]

    assert refuse_conflicts(envelopes, wires, _on_one_stream) == [3]
    assert (wires[0], wires[3]) == (b"1", b"4")
    refused = wires[1]
    assert type(refused) is EnvelopeError
    assert str(refused) == (
        "event id 'order-1' belongs to two different messages, one on orders.placed of type "
        "'placed' (2 bytes), which was handed over first, and this one on orders.paid (2 bytes); a "
        "stream keeps only the first message of an event id: give each message an id of its own"
    )
    assert (refused.field, refused.topic, refused.event_id) == (
        "event_id",
        "orders.paid",
        "order-1",
    )
    assert "this one on orders.placed of type 'placed' (no payload)" in str(wires[2])


def test_message_that_is_not_sent_leaves_its_id_to_the_next() -> None:
    wires: list[Any] = [EnvelopeError("bad"), b"2", b"3"]

    assert refuse_conflicts([PLACED, PAID, PAID], wires, _on_one_stream) == [2]
    assert wires[1:] == [b"2", b"3"]


def test_each_stream_may_have_a_message_of_the_same_id() -> None:
    wires: list[Any] = [b"1", b"2"]

    assert refuse_conflicts([PLACED, PAID], wires, lambda topic: topic) == []
    assert refuse_conflicts([PLACED, PAID], wires, _on_unknown_streams) == []
    assert wires == [b"1", b"2"]


def test_equal_topic_is_on_one_stream_even_if_streams_are_unknown() -> None:
    wires: list[Any] = [b"1", b"2", b"3"]
    other = PLACED._replace(payload=b"13")

    assert refuse_conflicts([PLACED, other, PLACED], wires, _on_unknown_streams) == [2]
    assert type(wires[1]) is EnvelopeError


def test_id_that_is_no_str_is_left_to_the_check_that_refused_it() -> None:
    bad = Envelope("orders.placed", b"", ["x"])  # type: ignore[arg-type]

    assert refuse_conflicts([bad, bad], [EnvelopeError("bad")] * 2, _on_one_stream) == []
