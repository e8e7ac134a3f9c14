"""What a dispatch tells: what is in flight, what was settled, its state."""

from bytewax_jetstream.publishing import Verdict
from tests.support.dispatching import RECEIPT, Driver, each_settled, envelope


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
