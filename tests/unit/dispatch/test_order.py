"""The order of one aggregate's envelopes, where the publisher asks for one at a time."""

import pytest

from bytewax_jetstream.publishing import Verdict
from tests.support.dispatching import RECEIPT, Driver, envelope, ids


def test_second_envelope_of_an_aggregate_waits_until_the_first_is_settled() -> None:
    driver = Driver()
    driver.submit(envelope("1", "a"), envelope("2", "a"), envelope("3", "b"), envelope("4"))
    sent = driver.singles()
    assert ids(sent) == ["1", "3", "4"]

    driver.dispatch.acked(sent.number, 1, RECEIPT, driver.now)
    driver.dispatch.acked(sent.number, 2, RECEIPT, driver.now)
    assert driver.sends() == []

    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
    assert driver.sends() == [["2"]]


def test_aggregate_keeps_its_order_through_retries() -> None:
    driver = Driver()
    driver.submit(*(envelope(str(number), "a") for number in range(4)))
    sent = []
    for _ in range(4):
        first = driver.singles()
        driver.refused(first, 0, Verdict.RETRY)
        assert driver.sends() == []
        driver.tick(driver.now + 1)
        again = driver.singles()
        sent += ids(again)
        driver.dispatch.acked(again.number, 0, RECEIPT, driver.now)

    assert sent == ["0", "1", "2", "3"]
    driver.settled()
    assert driver.is_empty()


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP, Verdict.GIVE_UP])
def test_next_of_an_aggregate_follows_however_the_first_ended(verdict: Verdict) -> None:
    driver = Driver()
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    driver.refused(driver.singles(), 0, verdict)

    assert driver.sends() == [["2"]]


def test_same_aggregate_in_two_lanes_does_not_wait() -> None:
    driver = Driver()
    other = driver.new_lane()
    driver.submit(envelope("1", "a"))
    driver.submit(envelope("2", "a"), lane=other)

    assert driver.sends() == [["1"], ["2"]]


def test_publisher_that_keeps_order_itself_gets_a_whole_aggregate_at_once() -> None:
    driver = Driver(one_per_aggregate=False)
    driver.submit(envelope("1", "a"), envelope("2", "a"))

    assert driver.sends() == [["1", "2"]]
