"""Envelopes from their submission to the first send."""

from functools import partial
from random import Random

from bytewax_jetstream.dispatch import Dispatch, Settled
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.publishing import Refusal, Singles, Verdict, prepare_each
from tests.support.dispatching import POLICY, RECEIPT, Driver, envelope


def test_envelopes_are_sent_in_the_order_of_submission() -> None:
    driver = Driver(max_send=2)
    driver.submit(envelope("1"), envelope("2"))
    driver.submit(envelope("3"))

    assert driver.sends() == [["1", "2"], ["3"]]


def test_nothing_is_sent_before_the_first_connection() -> None:
    driver = Driver(connected=False)
    driver.submit(envelope("1"))

    assert driver.sends() == []
    driver.dispatch.connected(driver.now)
    assert driver.sends() == [["1"]]


def test_every_attempt_sends_the_wire_that_was_prepared_once() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    first = driver.singles()
    driver.dispatch.disconnected("gone", driver.now)
    driver.dispatch.connected(driver.now)
    second = driver.singles()

    assert driver.prepared == ["1"]
    assert first.wires == second.wires == [b"wire of 1"]
    driver.dispatch.acked(second.number, 0, RECEIPT, driver.now)
    (settled,) = driver.settled()
    assert settled.entry.attempts == 2


def test_bad_envelope_is_rejected_at_once_and_the_others_are_sent() -> None:
    driver = Driver()
    driver.submit(envelope("1"), envelope("2", topic="bad"), envelope("3"))

    (settled,) = driver.settled()
    assert settled.entry.envelope.event_id == "2"
    assert settled.outcome is Outcome.REJECTED
    assert settled.entry.attempts == 0
    assert settled.refusal == Refusal(Verdict.REJECT, "the topic is bad: choose another")
    assert driver.sends() == [["1", "3"]]


def test_bad_envelope_does_not_hold_back_the_next_of_its_aggregate() -> None:
    driver = Driver()
    driver.submit(envelope("1", "a", topic="bad"), envelope("2", "a"))

    assert driver.sends() == [["2"]]


def test_unexpected_error_in_encoding_rejects_only_its_own_envelope() -> None:
    def prepare(envelope: Envelope) -> None:
        if envelope.event_id == "1":
            raise RecursionError("a secret of the payload")

    dispatch = Dispatch(POLICY, partial(prepare_each, prepare), Random(1))
    lane = dispatch.add_lane()
    dispatch.connected(0.0)
    dispatch.submit(lane, [envelope("1"), envelope("2")], 0, 0.0)

    ((_, (settled,)),) = dispatch.take_settled()
    assert isinstance(settled, Settled)
    assert settled.outcome is Outcome.REJECTED
    assert settled.refusal is not None
    assert settled.refusal.reason == (
        "it cannot be encoded (RecursionError): give its fields the types that Envelope names"
    )
    sent = dispatch.next_send(0.0)
    assert isinstance(sent, Singles)
    assert [each.event_id for each in sent.envelopes] == ["2"]


def test_payload_that_is_not_bytes_counts_as_zero_bytes() -> None:
    driver = Driver()
    driver.submit(envelope("1", topic="bad")._replace(payload="text"))  # type: ignore[arg-type]

    (settled,) = driver.settled()
    assert settled.entry.size == 0


def test_settlement_keeps_the_epoch_and_the_time_of_its_submission() -> None:
    driver = Driver()
    driver.now = 3.0
    driver.submit(envelope("1"), epoch=9)
    sent = driver.singles()
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)

    (settled,) = driver.settled()
    assert (settled.entry.submission.submitted, settled.entry.submission.epoch) == (3.0, 9)
    assert settled.receipt == RECEIPT
    assert settled.refusal is None
    assert driver.is_empty()
