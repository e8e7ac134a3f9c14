"""Deliveries that end without an answer, at the delivery timeout."""

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Refusal, Singles, Verdict
from tests.support.dispatching import (
    INFINITY,
    LATER,
    RECEIPT,
    Driver,
    batching,
    envelope,
    ids,
    numbered,
)


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
        "not settled while the broker settled nothing for 60 s, "
        f"after {settled[0].entry.attempts} attempts (no ack within 5 s): "
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


def _with_traffic(driver: Driver, until: float) -> None:
    """Let an envelope be stored every second, so that the connection makes progress."""
    while driver.now < until:
        name = f"traffic at {driver.now:g}"
        driver.submit(envelope(name))
        while (sent := driver.dispatch.next_send(driver.now)) is not None:
            assert isinstance(sent, Singles)
            for index, each in enumerate(sent.envelopes):
                if each.event_id.startswith("traffic"):
                    driver.dispatch.acked(sent.number, index, RECEIPT, driver.now)
        driver.tick(min(driver.now + 1.0, until))


def test_one_silent_subject_beside_traffic_is_unknown_after_its_own_time() -> None:
    driver = Driver()
    driver.submit(envelope("stuck"))
    _with_traffic(driver, 64.0)
    assert "stuck" not in driver.outcomes()
    _with_traffic(driver, 70.0)

    assert driver.outcomes()["stuck"] is Outcome.UNKNOWN


def test_envelope_refused_again_and_again_beside_traffic_is_unknown_in_its_own_time() -> None:
    driver = Driver()
    driver.submit(envelope("refused"))
    outcomes: dict[str, Outcome] = {}
    while driver.now < 63.0 and "refused" not in outcomes:
        driver.submit(envelope(f"traffic at {driver.now:g}"))
        while (sent := driver.dispatch.next_send(driver.now)) is not None:
            assert isinstance(sent, Singles)
            for index, each in enumerate(sent.envelopes):
                if each.event_id == "refused":
                    driver.refused(sent, index, Verdict.RETRY, "no leader")
                else:
                    driver.dispatch.acked(sent.number, index, RECEIPT, driver.now)
        driver.tick(driver.now + 0.5)
        outcomes |= driver.outcomes()

    assert outcomes["refused"] is Outcome.UNKNOWN
    assert 60.0 <= driver.now <= 61.0


def test_attempt_in_flight_when_its_time_is_over_gets_its_answer_first() -> None:
    driver = Driver(delivery_timeout=6.0)
    driver.submit(envelope("1"))
    driver.singles()
    driver.submit(envelope("2"))
    other = driver.singles()
    driver.tick(5.0)
    driver.dispatch.acked(other.number, 0, RECEIPT, driver.now)
    driver.dispatch.disconnected("gone", driver.now)
    driver.tick(10.9)
    driver.dispatch.connected(driver.now)
    again = driver.singles()
    driver.tick(11.0)
    assert driver.outcomes() == {"2": Outcome.STORED}
    driver.dispatch.acked(again.number, 0, RECEIPT, driver.now)

    assert driver.outcomes() == {"1": Outcome.STORED}


def _answer_each_after_4_s(driver: Driver) -> dict[str, Outcome]:
    """Play to the end; returns how each envelope ended."""
    outcomes: dict[str, Outcome] = {}
    while (due := driver.dispatch.next_tick()) != INFINITY:
        if (sent := driver.dispatch.next_send(driver.now)) is not None:
            driver.tick(driver.now + 4.0)
            driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
        else:
            driver.tick(due)
        outcomes |= driver.outcomes()
    return outcomes


def test_hot_aggregate_is_stored_however_long_its_queue_takes() -> None:
    driver = Driver()
    driver.submit(*(envelope(str(number), "a") for number in range(100)))
    outcomes = _answer_each_after_4_s(driver)

    assert outcomes == dict.fromkeys(map(str, range(100)), Outcome.STORED)
    assert driver.now >= 400.0


def test_hot_aggregate_cut_off_by_a_reset_is_stored_however_long_it_takes() -> None:
    driver = batching(window=1000, max_send=1000)
    driver.submit(*(envelope(str(number), "a") for number in range(50)))
    driver.sends()
    driver.dispatch.disconnected("reset", driver.now)
    driver.dispatch.connected(driver.now)
    outcomes = _answer_each_after_4_s(driver)

    assert outcomes == dict.fromkeys(map(str, range(50)), Outcome.STORED)


def test_message_that_cuts_every_connection_is_unknown_though_others_are_stored() -> None:
    driver = Driver()
    driver.submit(envelope("poison"))
    outcomes: dict[str, Outcome] = {}
    while driver.now < 90.0 and "poison" not in outcomes:
        driver.submit(envelope(f"traffic at {driver.now:g}"))
        sent = driver.dispatch.next_send(driver.now)
        assert isinstance(sent, Singles)
        driver.dispatch.acked(
            sent.number, ids(sent).index(f"traffic at {driver.now:g}"), RECEIPT, driver.now
        )
        driver.dispatch.disconnected("cut", driver.now)
        driver.tick(driver.now + 1.0)
        driver.dispatch.connected(driver.now)
        outcomes |= driver.outcomes()

    assert outcomes["poison"] is Outcome.UNKNOWN
    assert 60.0 <= driver.now <= 62.0


def test_silent_library_is_given_up_and_keeps_its_place_until_it_reports() -> None:
    driver = Driver(ack_timeout=None, one_per_aggregate=False, window=3)
    driver.submit(envelope("stuck"))
    first = driver.singles()
    driver.tick(30.0)
    driver.submit(envelope("2"))
    second = driver.singles()
    driver.dispatch.acked(second.number, 0, RECEIPT, driver.now)
    driver.tick(60.0)
    (settled,) = (one for one in driver.settled() if one.entry.envelope.event_id == "stuck")
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert "no delivery report from the broker's library" in settled.refusal.reason
    assert driver.dispatch.in_flight == 0
    driver.submit(*numbered(3, 4, 5))
    assert [len(some) for some in driver.sends()] == [2], "the library still has the first"

    driver.dispatch.acked(first.number, 0, RECEIPT, driver.now)
    assert [len(some) for some in driver.sends()] == [1]


def test_progress_of_others_does_not_renew_a_connection_that_only_says_retry() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    outcomes: dict[str, Outcome] = {}
    while not outcomes:
        if (sent := driver.dispatch.next_send(driver.now)) is not None:
            driver.refused(sent, 0, Verdict.RETRY)
        driver.tick(driver.dispatch.next_tick())
        outcomes |= driver.outcomes()

    assert outcomes == {"1": Outcome.UNKNOWN}
    assert 60.0 <= driver.now <= 60.1


def test_nothing_is_sent_again_when_the_stream_may_have_forgotten_its_id() -> None:
    driver = Driver(duplicate_window=lambda topic: 10.0 if topic == "orders" else None)
    driver.submit(envelope("1"), envelope("2", topic="other"))
    driver.singles()
    driver.dispatch.disconnected("gone", driver.now)
    driver.tick(5.1)
    driver.dispatch.connected(driver.now)

    assert driver.sends() == [["2"]]
    (settled,) = driver.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert "a longer duplicate_window prevents this" in settled.refusal.reason


def test_attempt_is_sent_again_while_the_stream_knows_its_id() -> None:
    driver = Driver(duplicate_window=lambda topic: 10.0)
    driver.submit(envelope("1"))
    driver.singles()
    driver.dispatch.disconnected("gone", driver.now)
    driver.tick(4.9)
    driver.dispatch.connected(driver.now)

    assert driver.sends() == [["1"]]


def test_attempt_that_is_answered_late_leaves_no_doubt_behind() -> None:
    driver = Driver(duplicate_window=lambda topic: 20.0)
    driver.submit(envelope("1"))
    first = driver.singles()
    driver.tick(5.0)
    driver.refused(first, 0, Verdict.RETRY)
    while driver.now < 17.0:
        if (sent := driver.dispatch.next_send(driver.now)) is not None:
            driver.refused(sent, 0, Verdict.RETRY)
        driver.tick(driver.now + 1.0)

    assert driver.outcomes() == {}


def test_reason_of_what_the_publisher_itself_tries_again_is_the_brokers() -> None:
    driver = Driver(ack_timeout=None, one_per_aggregate=False)
    driver.submit(envelope("denied"), envelope("silent"))
    sent = driver.singles()
    driver.dispatch.delayed(sent.number, 0, Refusal(Verdict.RETRY, "no right to write"))
    driver.dispatch.delayed(sent.number, 7, LATER)
    driver.dispatch.delayed(99, 0, LATER)
    assert "no right to write" in driver.dispatch.waits_for()
    assert driver.dispatch.in_flight == 2, "its answer is still awaited"
    driver.tick(60.0)

    reasons = {one.entry.envelope.event_id: str(one.refusal) for one in driver.settled()}
    assert "no right to write" in reasons["denied"]
    assert "no right to write" not in reasons["silent"]


FULL = Refusal(Verdict.RETRY, "the subject is full", 10077, own=True)


def _refused_until_the_connection_clock_ends(driver: Driver, *names: str) -> Singles:
    """Nothing was settled for the delivery timeout; returns the attempt that is in flight then."""
    driver.submit(*map(envelope, names))
    last: Singles | None = None
    while driver.now < 60.0:
        while (sent := driver.dispatch.next_send(driver.now)) is not None:
            assert isinstance(sent, Singles)
            if sent.envelopes[0].event_id == "full":
                last = sent
        if last is not None and driver.now < 57.0:
            driver.dispatch.refused(last.number, 0, FULL, driver.now)
            last = None
        driver.tick(min(driver.dispatch.next_tick(), 60.0))
    assert last is not None
    return last


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [("refused", Outcome.REJECTED), ("stored", Outcome.STORED), (None, Outcome.UNKNOWN)],
)
def test_message_that_was_only_refused_gets_its_last_answer_before_everything_is_given_up(
    answer: str | None, outcome: Outcome
) -> None:
    driver = Driver()
    last = _refused_until_the_connection_clock_ends(driver, "full", "silent")
    assert driver.settled() == []
    assert driver.sends() == []
    driver.now = 60.1
    if answer == "refused":
        driver.dispatch.refused(last.number, 0, FULL, driver.now)
    elif answer == "stored":
        driver.dispatch.acked(last.number, 0, RECEIPT, driver.now)
    while driver.dispatch.unsettled and driver.now < 130.0:
        driver.tick(driver.dispatch.next_tick())
        if answer == "stored":  # there was progress, so the other goes on by its own clock
            driver.sends()

    outcomes = driver.outcomes()
    assert outcomes == {"full": outcome, "silent": Outcome.UNKNOWN}
    assert driver.now <= 60.0 + 5.0 + 5.1 * (answer == "stored")
    assert driver.is_empty()


def test_next_message_is_sent_when_the_last_answer_has_ended_the_only_one() -> None:
    driver = Driver()
    last = _refused_until_the_connection_clock_ends(driver, "full")
    driver.now = 60.1
    driver.dispatch.refused(last.number, 0, FULL, driver.now)
    assert driver.outcomes() == {"full": Outcome.REJECTED}

    driver.submit(envelope("next"))

    assert [each.event_id for each in driver.singles().envelopes] == ["next"]
