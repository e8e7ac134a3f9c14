"""The window: how many messages and bytes are in flight, and what goes out next."""

import pytest

from bytewax_jetstream.dispatch.window import Window
from bytewax_jetstream.publishing import Append, Outgoing, Singles, Verdict
from tests.support.dispatching import POLICY, RECEIPT, ROUTES, Driver, envelope, ids


def test_messages_in_flight_stay_within_the_window() -> None:
    driver = Driver(window=3, max_send=2)
    driver.submit(*(envelope(str(number)) for number in range(5)))
    first, second = driver.singles(), driver.singles()
    assert (ids(first), ids(second)) == (["0", "1"], ["2"])
    assert driver.sends() == []
    assert driver.dispatch.in_flight == 3

    driver.dispatch.acked(first.number, 1, RECEIPT, driver.now)
    assert driver.sends() == [["3"]]


def test_bytes_in_flight_stay_within_the_byte_window() -> None:
    driver = Driver(window_bytes=100)
    driver.submit(*(envelope(str(number), size=40) for number in range(5)))
    first = driver.singles()
    assert ids(first) == ["0", "1", "2"]  # there was still room when the third was taken
    assert driver.sends() == []

    driver.dispatch.acked(first.number, 0, RECEIPT, driver.now)
    assert driver.sends() == [["3"]]


def test_message_larger_than_the_byte_window_is_sent_alone() -> None:
    driver = Driver(window_bytes=100)
    driver.submit(envelope("1", size=5000), envelope("2"))
    first = driver.singles()
    assert ids(first) == ["1"]
    assert driver.sends() == []

    driver.dispatch.acked(first.number, 0, RECEIPT, driver.now)
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
            driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
        case "refusal":
            driver.refused(sent, 0, Verdict.RETRY)
        case "timeout":
            driver.tick(5.0)
        case "disconnection":
            driver.dispatch.disconnected("gone", driver.now)
        case "closed lane":
            driver.dispatch.remove_lane(driver.lane)
        case _:
            driver.dispatch.abandon("closed")

    assert (driver.dispatch.in_flight, driver.dispatch._window.bytes) == (0, 0)


# `Window` by itself


def a_window(*sends: tuple[Outgoing, int, int]) -> Window:
    window = Window(POLICY)
    for outgoing, messages, size in sends:
        window.send(outgoing, messages, size)
    return window


def an_append(number: int, *, last: bool = False) -> Append:
    return Append(number, "orders", 0, ["orders"], [b""], last)


def a_single(number: int) -> Singles:
    return Singles(number, [envelope("1")], [b""])


@pytest.mark.parametrize(
    ("sent", "released", "in_flight"),
    [
        ([], [], (0, 0)),
        ([(3, 40)], [], (3, 40)),
        ([(3, 40), (7, 90)], [], (10, 130)),
        ([(3, 40), (7, 90)], [(7, 90)], (3, 40)),
        ([(3, 40)], [(1, 10), (2, 30)], (0, 0)),
    ],
)
def test_window_counts_what_is_sent_and_not_released(
    sent: list[tuple[int, int]], released: list[tuple[int, int]], in_flight: tuple[int, int]
) -> None:
    window = a_window(*((a_single(number), *sizes) for number, sizes in enumerate(sent, start=1)))
    for messages, size in released:
        window.release(messages, size)

    assert (window.messages, window.bytes) == in_flight


def test_each_send_has_a_number_and_all_appends_of_a_batch_share_one() -> None:
    window, numbers = a_window(), []
    for make in (a_single, an_append, a_single):
        numbers.append(window.next_number)
        window.send(make(window.next_number), 1, 1)
    window.send(an_append(2), 1, 1)

    assert numbers == [1, 2, 3]
    assert (window.last_number, window.next_number) == (3, 4)


def test_sends_go_out_in_order() -> None:
    sends: list[Outgoing] = [a_single(1), an_append(2), an_append(2, last=True)]
    window = a_window(*((each, 1, 1) for each in sends))

    assert list(window.outgoing) == sends


def test_withdrawn_sends_do_not_go_out_and_are_in_flight_until_released() -> None:
    window = a_window((a_single(1), 1, 10), (an_append(2), 2, 20))
    window.withdraw()

    assert not window.outgoing
    assert (window.messages, window.bytes) == (3, 30)


def test_withdrawn_numbers_do_not_go_out_and_the_others_do_in_order() -> None:
    sends: list[Outgoing] = [a_single(1), an_append(2), a_single(3), an_append(2), a_single(4)]
    window = a_window(*((each, 1, 1) for each in sends))
    window.withdraw_numbers({2, 3})

    assert list(window.outgoing) == [sends[0], sends[4]]


LINK = POLICY._replace(window_bytes=1_000, first_window_bytes=100, ack_timeout=4.0)


def fill(window: Window) -> int:
    """Send until the window is full; returns the bytes that were sent for it."""
    size = window.limit_bytes - window.bytes
    window.send(Singles(window.next_number, [], []), 2, size)
    return size


@pytest.mark.parametrize(
    ("seconds", "limits"),
    [
        (0.1, [200, 400, 800, 1_000, 1_000]),
        (1.0, [200, 400, 800, 1_000, 1_000]),
        (1.5, [100, 100, 100, 100, 100]),
        (2.5, [100, 100, 100, 100, 100]),
    ],
    ids=["fast", "in good time", "slow", "too slow"],
)
def test_window_grows_while_it_is_answered_in_good_time(seconds: float, limits: list[int]) -> None:
    window, now, found = Window(LINK), 0.0, []
    for _ in limits:
        size = fill(window)
        window.follow_link(now)
        window.release(1, size - 1)
        window.follow_link(now)  # something is in flight yet
        now += seconds
        window.release(1, 1)
        window.follow_link(now)
        found.append(window.limit_bytes)

    assert found == limits


def test_window_shrinks_while_nothing_is_answered_in_time() -> None:
    window = Window(LINK)
    for _ in range(3):
        size = fill(window)
        window.follow_link(0.0)
        window.release(2, size)
        window.follow_link(0.0)
    assert window.limit_bytes == 800
    fill(window)
    found = []
    for now in (10.0, 12.0, 12.1, 12.2, 14.3, 14.4, 16.5, 16.6, 18.7):
        window.follow_link(now)
        found.append(window.limit_bytes)

    assert found == [800, 800, 400, 400, 200, 200, 100, 100, 100]


def test_window_is_small_again_on_the_next_connection() -> None:
    window = Window(LINK)
    size = fill(window)
    window.follow_link(0.0)
    window.release(2, size)
    window.follow_link(0.0)
    assert window.limit_bytes == 200
    window.withdraw()

    assert (window.limit_bytes, window.full_at) == (100, None)


def test_dispatch_keeps_to_the_window_and_lets_it_grow() -> None:
    driver = Driver(first_window_bytes=100, max_send=100)
    driver.submit(*[envelope(str(number), size=30) for number in range(20)])
    found = []
    for _ in range(3):
        sent = driver.singles()
        assert driver.sends() == []
        found.append(len(sent.envelopes))
        acks = [(sent.number, index, RECEIPT) for index in range(len(sent.envelopes))]
        driver.dispatch.acked_many(acks, driver.now)

    assert found == [4, 7, 9]


@pytest.mark.parametrize(
    ("size", "flow"), [(1, 500), (50, 500), (100, 256), (10_000, 2), (90_000, 1)]
)
def test_batch_of_large_messages_is_answered_at_least_every_quarter_of_the_window(
    size: int, flow: int
) -> None:
    driver = Driver(route=ROUTES.get, flow_interval=500, first_window_bytes=102_400)
    driver.submit(*[envelope(str(number), size=size) for number in range(20)])

    assert driver.append().flow == flow
