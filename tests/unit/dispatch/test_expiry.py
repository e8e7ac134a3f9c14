"""Deliveries that end without an answer, at the delivery timeout."""

from random import Random

import pytest

from bytewax_jetstream.dispatch import Dispatch, Settled
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.publishing import Policy, Verdict
from tests.support.dispatching import INFINITY, RECEIPT, Driver, envelope


def test_silence_until_the_delivery_timeout_is_unknown_never_rejected() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.sends()
    while not (settled := driver.settled()):
        driver.tick(driver.dispatch.next_tick())
        driver.sends()

    assert [one.outcome for one in settled] == [Outcome.UNKNOWN]
    assert settled[0].refusal is not None
    assert settled[0].refusal.reason == (
        f"not settled within 60 s and {settled[0].entry.attempts} attempts (no ack within 5 s): "
        "check the broker, then publish it again with the same event id"
    )
    assert 60.0 <= driver.now <= 65.1
    assert driver.is_empty()


def test_envelope_that_was_never_sent_is_unknown_at_its_delivery_timeout() -> None:
    driver = Driver(connected=False)
    driver.submit(envelope("1"))
    driver.tick(59.9)
    assert driver.settled() == []
    driver.tick(60.0)

    (settled,) = driver.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert (
        "0 attempts (never sent: no connection, or no answer to what was sent before it)"
        in settled.refusal.reason
    )


def test_reason_the_broker_gave_outlives_a_later_silence() -> None:
    driver = Driver(delivery_timeout=6.0)
    driver.submit(envelope("1"))
    driver.refused(driver.singles(), 0, Verdict.RETRY, "maximum messages exceeded")
    driver.tick(1.0)
    driver.singles()
    driver.tick(6.0)

    (settled,) = driver.settled()
    assert settled.refusal is not None
    assert "(maximum messages exceeded)" in settled.refusal.reason
    assert settled.refusal.code == 42


def test_temporary_refusal_after_the_delivery_timeout_is_unknown() -> None:
    driver = Driver(ack_timeout=None)
    driver.submit(envelope("1"))
    sent = driver.singles()
    driver.now = 61.0
    driver.refused(sent, 0, Verdict.RETRY)

    assert driver.outcomes() == {"1": Outcome.UNKNOWN}


def test_attempt_in_flight_at_the_delivery_timeout_gets_its_answer_first() -> None:
    driver = Driver(delivery_timeout=6.0)
    driver.submit(envelope("1"))
    driver.singles()
    driver.tick(5.0)
    driver.tick(5.5)
    again = driver.singles()
    driver.tick(6.0)
    assert driver.settled() == []
    driver.dispatch.acked(again.number, 0, RECEIPT)

    assert driver.outcomes() == {"1": Outcome.STORED}


@pytest.mark.parametrize("connected", [True, False])
def test_long_queue_of_one_aggregate_expires_together(connected: bool) -> None:
    driver = Driver(connected=connected)
    driver.submit(*(envelope(str(number), "a") for number in range(2000)))
    while driver.now < 65.2:
        driver.sends()
        driver.tick(driver.dispatch.next_tick())
        if driver.dispatch.next_tick() == INFINITY:
            break
    driver.sends()

    assert driver.outcomes() == dict.fromkeys(map(str, range(2000)), Outcome.UNKNOWN)
    driver.tick(driver.now + 0.1)
    assert driver.is_empty()


def test_overdue_envelope_is_not_sent() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.now = 60.0

    assert driver.sends() == []
    assert driver.outcomes() == {"1": Outcome.UNKNOWN}


def test_silent_library_is_not_awaited_beyond_the_delivery_timeout() -> None:
    policy = Policy(
        delivery_timeout=60.0,
        ack_timeout=None,
        one_per_aggregate=False,
        window=100,
        window_bytes=1 << 20,
        max_send=100,
    )
    dispatch = Dispatch(policy, lambda envelopes: [None] * len(envelopes), Random(1))
    lane = dispatch.add_lane()
    dispatch.connected()
    dispatch.submit(lane, [Envelope("t", b"", "e")], 0, 0.0)
    assert dispatch.next_send(30.0) is not None

    dispatch.tick(60.0)
    assert dispatch.take_settled() == []
    dispatch.tick(61.0)

    ((_, (settled,)),) = dispatch.take_settled()
    assert isinstance(settled, Settled)
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert "no delivery report from the broker's library" in settled.refusal.reason
    assert dispatch.in_flight == 0
