"""The window: how many messages and bytes are in flight, and what goes out next."""

import pytest

from bytewax_jetstream.publishing import Verdict
from tests.support.dispatching import RECEIPT, Driver, envelope, ids


def test_messages_in_flight_stay_within_the_window() -> None:
    driver = Driver(window=3, max_send=2)
    driver.submit(*(envelope(str(number)) for number in range(5)))
    first, second = driver.singles(), driver.singles()
    assert (ids(first), ids(second)) == (["0", "1"], ["2"])
    assert driver.sends() == []
    assert driver.dispatch.in_flight == 3

    driver.dispatch.acked(first.number, 1, RECEIPT)
    assert driver.sends() == [["3"]]


def test_bytes_in_flight_stay_within_the_byte_window() -> None:
    driver = Driver(window_bytes=100)
    driver.submit(*(envelope(str(number), size=40) for number in range(5)))
    first = driver.singles()
    assert ids(first) == ["0", "1", "2"]  # there was still room when the third was taken
    assert driver.sends() == []

    driver.dispatch.acked(first.number, 0, RECEIPT)
    assert driver.sends() == [["3"]]


def test_message_larger_than_the_byte_window_is_sent_alone() -> None:
    driver = Driver(window_bytes=100)
    driver.submit(envelope("1", size=5000), envelope("2"))
    first = driver.singles()
    assert ids(first) == ["1"]
    assert driver.sends() == []

    driver.dispatch.acked(first.number, 0, RECEIPT)
    assert driver.sends() == [["2"]]


@pytest.mark.parametrize(
    "end", ["ack", "refusal", "timeout", "disconnection", "closed lane", "abandoned"]
)
def test_room_in_the_window_comes_back_however_an_attempt_ends(end: str) -> None:
    driver = Driver()
    driver.submit(envelope("1", size=10))
    sent = driver.singles()
    assert (driver.dispatch.in_flight, driver.dispatch._window.bytes) == (1, 10)
    match end:
        case "ack":
            driver.dispatch.acked(sent.number, 0, RECEIPT)
        case "refusal":
            driver.refused(sent, 0, Verdict.RETRY)
        case "timeout":
            driver.tick(5.0)
        case "disconnection":
            driver.dispatch.disconnected("gone")
        case "closed lane":
            driver.dispatch.remove_lane(driver.lane)
        case _:
            driver.dispatch.abandon("closed")

    assert (driver.dispatch.in_flight, driver.dispatch._window.bytes) == (0, 0)
