"""Attempts without an answer, lost connections, and the pauses before another attempt."""

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Verdict
from tests.support.dispatching import POLICY, RECEIPT, Driver, envelope


def test_attempt_without_answer_is_repeated_after_ack_timeout_and_backoff() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    first = driver.singles()
    driver.tick(4.999)
    assert driver.sends() == []
    assert driver.dispatch.in_flight == 1
    driver.tick(5.0)
    assert driver.dispatch.in_flight == 0
    assert driver.sends() == []

    driver.tick(5.0 + POLICY.first_backoff)
    second = driver.singles()
    assert first.wires == second.wires
    assert second.number != first.number
    assert driver.counted("retries") == 1


def test_only_the_unanswered_envelopes_of_a_send_are_tried_again() -> None:
    driver = Driver()
    driver.submit(envelope("1"), envelope("2"), envelope("3"))
    sent = driver.singles()
    driver.dispatch.acked(sent.number, 1, RECEIPT, driver.now)
    driver.tick(5.0)
    driver.tick(6.0)

    assert sorted(driver.sends()[0]) == ["1", "3"]
    assert driver.outcomes() == {"2": Outcome.STORED}


def test_envelopes_of_a_lost_connection_are_sent_again_first_and_in_order() -> None:
    driver = Driver(max_send=2)
    driver.submit(*(envelope(str(number)) for number in range(6)))
    driver.singles()
    second = driver.singles()
    driver.dispatch.acked(second.number, 0, RECEIPT, driver.now)
    driver.dispatch.disconnected("gone", driver.now)
    assert driver.sends() == []
    driver.dispatch.connected(driver.now)

    assert driver.sends() == [["0", "1"], ["3", "4"], ["5"]]
    assert driver.counted("retries") == 3


def test_backoff_doubles_up_to_its_limit_with_jitter() -> None:
    pauses: list[list[float]] = []
    for _ in range(30):
        driver = Driver(delivery_timeout=1000.0)
        driver.dispatch._singles._random.seed(len(pauses))
        driver.submit(envelope("1"))
        seen = []
        for _ in range(9):
            driver.refused(driver.singles(), 0, Verdict.RETRY)
            due = driver.dispatch.next_tick()
            seen.append(due - driver.now)
            driver.tick(due)
        pauses.append(seen)

    for attempt, pauses_of_attempt in enumerate(zip(*pauses, strict=True)):
        longest = min(POLICY.longest_backoff, POLICY.first_backoff * 2**attempt)
        assert all(longest / 2 - 1e-9 <= pause <= longest + 1e-9 for pause in pauses_of_attempt)
        assert len(set(pauses_of_attempt)) == len(pauses_of_attempt), "no two pauses are equal"


def test_backoff_does_not_overflow_after_a_thousand_attempts() -> None:
    driver = Driver(delivery_timeout=1e9)
    driver.submit(envelope("1"))
    for _ in range(1500):
        driver.refused(driver.singles(), 0, Verdict.RETRY)
        driver.tick(driver.dispatch.next_tick())

    assert driver.now < 1500 * POLICY.longest_backoff


def test_attempt_without_an_ack_timeout_ends_with_its_delivery() -> None:
    driver = Driver(ack_timeout=None)
    driver.submit(envelope("1"))
    driver.singles()
    driver.tick(59.0)
    assert driver.dispatch.in_flight == 1
    driver.tick(60.0)
    assert driver.dispatch.in_flight == 0
