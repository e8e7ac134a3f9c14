"""What a dispatch tells: what is in flight, what was settled, its state."""

from collections.abc import Callable

import pytest

from bytewax_jetstream.publishing import Verdict
from tests.support.dispatching import (
    INFINITY,
    RECEIPT,
    Driver,
    batching,
    each_settled,
    envelope,
    numbered,
)


def test_look_ups_find_what_is_in_flight_by_index_and_by_topic() -> None:
    driver = Driver()
    driver.submit(envelope("1", topic="a"), envelope("2", topic="b"), envelope("3", topic="a"))
    sent = driver.singles()
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)

    assert driver.dispatch.in_flight_on("a") == [(sent.number, 2)]
    assert [found.event_id for found in driver.dispatch.in_flight_at(sent.number, 1)] == ["2"]
    assert driver.dispatch.in_flight_at(sent.number, 0) == []


def test_settlements_are_taken_once_by_lane_in_the_order_they_came() -> None:
    driver = Driver(max_send=3)
    other = driver.new_lane()
    driver.submit(envelope("1"), envelope("2"), envelope("3"))
    driver.submit(envelope("x"), lane=other)
    first, second = driver.singles(), driver.singles()
    for sent, index in [(first, 2), (second, 0), (first, 0)]:
        driver.dispatch.acked(sent.number, index, RECEIPT, driver.now)

    taken = [
        (lane, [one.entry.envelope.event_id for group in some for one in each_settled(group)])
        for lane, some in driver.dispatch.take_settled()
    ]
    assert taken == [(driver.lane, ["3", "1"]), (other, ["x"])]
    assert driver.dispatch.take_settled() == []


def test_repr_shows_the_state() -> None:
    driver = Driver()
    driver.submit(envelope("1"), envelope("2"))
    driver.refused(driver.singles(), 0, Verdict.RETRY)

    assert repr(driver.dispatch) == "<Dispatch connected, 1 in flight, 1 backing off, 1 lanes>"
    driver.dispatch.disconnected("gone", driver.now)
    assert repr(driver.dispatch) == "<Dispatch disconnected, 0 in flight, 1 backing off, 1 lanes>"


def _without_connection() -> Driver:
    driver = Driver(connected=False)
    driver.submit(envelope("1", "a"))
    return driver


def _outside_the_window() -> Driver:
    driver = Driver(window=1)
    driver.submit(*numbered(1, 2, aggregate="a"))
    driver.dispatch.acked(driver.singles().number, 0, RECEIPT, driver.now)
    return driver


def _behind_its_aggregate() -> Driver:
    driver = Driver()
    driver.submit(envelope("0", "a"))
    driver.submit(envelope("1", "a"))
    driver.dispatch.acked(driver.singles().number, 0, RECEIPT, driver.now)
    return driver


def _in_flight() -> Driver:
    driver = Driver()
    driver.submit(*numbered(1, 2))
    driver.dispatch.acked(driver.singles().number, 0, RECEIPT, driver.now)
    return driver


def _in_a_batch() -> Driver:
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    driver.dispatch.batch_stored(driver.append().number, 1, driver.now)
    return driver


def _backing_off() -> Driver:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.refused(driver.singles(), 0, Verdict.RETRY)
    return driver


def _waiting_for_the_next_connection() -> Driver:
    driver = _in_flight()
    driver.dispatch.disconnected("gone", driver.now)
    return driver


def _silent() -> Driver:
    driver = _in_flight()
    driver.tick(driver.now + 5.0)
    return driver


def _in_a_group() -> Driver:
    driver = Driver(atomic=True)
    driver.submit(*numbered(1, 2, aggregate="a"))
    driver.groups()
    return driver


@pytest.mark.parametrize(
    "where",
    [
        _without_connection,
        _outside_the_window,
        _behind_its_aggregate,
        _in_flight,
        _in_a_batch,
        _backing_off,
        _waiting_for_the_next_connection,
        _silent,
        _in_a_group,
    ],
)
def test_oldest_unsettled_envelope_is_found_wherever_it_waits(where: Callable[[], Driver]) -> None:
    driver = where()
    driver.now += 10.0
    late = driver.new_lane()
    driver.submit(envelope("late"), lane=late)
    driver.sends()
    assert driver.dispatch.oldest_submitted() == 0.0

    driver.dispatch.remove_lane(driver.lane)
    assert driver.dispatch.oldest_submitted() == driver.now
    driver.dispatch.remove_lane(late)
    assert driver.dispatch.oldest_submitted() == INFINITY


def test_admitted_bytes_are_the_payload_bytes_in_flight() -> None:
    driver = Driver(window=2)
    driver.submit(*numbered(1, 2, 3, size=10))
    assert driver.counted("admitted_bytes") == 0
    sent = driver.singles()
    assert driver.counted("admitted_bytes") == 20
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
    assert driver.counted("admitted_bytes") == 10
    driver.dispatch.disconnected("gone", driver.now)
    assert driver.counted("admitted_bytes") == 0
