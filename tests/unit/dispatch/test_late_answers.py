"""Acks that come when their attempt is no longer awaited."""

import pytest

from bytewax_jetstream.envelope import Outcome
from tests.support.dispatching import RECEIPT, Driver, envelope, lose_the_answer


@pytest.mark.parametrize("how", ["silence", "disconnection"])
def test_late_ack_settles_the_envelope_and_its_retry_is_not_awaited(how: str) -> None:
    driver = Driver()
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    lost = lose_the_answer(driver, how)
    again = driver.singles()
    driver.dispatch.acked(lost.number, 0, RECEIPT, driver.now)

    assert driver.outcomes() == {"1": Outcome.STORED}
    assert driver.sends() == [["2"]], "the next of the aggregate follows"
    driver.dispatch.acked(again.number, 0, RECEIPT._replace(duplicate=True), driver.now)
    assert driver.settled() == []
    assert driver.dispatch.in_flight == 1


def test_late_ack_during_the_backoff_settles_without_a_retry() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    sent = driver.singles()
    driver.tick(5.0)
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
    assert driver.outcomes() == {"1": Outcome.STORED}

    driver.tick(10.0)
    assert driver.sends() == []
    assert driver.counted("late_acks") == 1


def test_late_ack_settles_an_envelope_that_waits_for_a_connection() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    sent = driver.singles()
    driver.dispatch.disconnected("gone", driver.now)
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
    driver.dispatch.connected(driver.now)

    assert driver.outcomes() == {"1": Outcome.STORED}
    assert driver.sends() == []


def test_lost_send_is_forgotten_when_all_its_envelopes_are_settled() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.singles()
    driver.dispatch.disconnected("gone", driver.now)
    assert len(driver.dispatch._singles._silent) == 1
    driver.dispatch.connected(driver.now)
    driver.dispatch.acked(driver.singles().number, 0, RECEIPT, driver.now)
    driver.settled()
    driver.tick(60.0)

    assert driver.is_empty()
