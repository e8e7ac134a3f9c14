"""Lanes take turns: each sends once before the first sends again."""

from bytewax_jetstream.envelope import Outcome
from tests.support.dispatching import RECEIPT, Driver, envelope, ids


def test_lanes_take_fair_turns() -> None:
    driver = Driver(max_send=2, window=1000)
    lanes = {name: driver.new_lane() for name in "abc"}
    for name, lane in lanes.items():
        driver.submit(*(envelope(f"{name}{number}") for number in range(6)), lane=lane)

    assert driver.sends() == [
        ["a0", "a1"], ["b0", "b1"], ["c0", "c1"],
        ["a2", "a3"], ["b2", "b3"], ["c2", "c3"],
        ["a4", "a5"], ["b4", "b5"], ["c4", "c5"],
    ]  # fmt: skip


def test_busy_lane_has_one_turn_like_the_others() -> None:
    driver = Driver(max_send=1, window=1000)
    other = driver.new_lane()
    for number in range(5):
        driver.submit(envelope(f"a{number}"))
    driver.submit(envelope("b0"), envelope("b1"), lane=other)
    sent = []
    for number in range(3):
        sent.append(ids(driver.singles()))
        driver.submit(envelope(f"a{5 + number}"))

    assert sent == [["a0"], ["b0"], ["a1"]]


def test_silent_lane_does_not_keep_another_from_sending() -> None:
    driver = Driver()
    other = driver.new_lane()
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    driver.singles()
    driver.submit(*(envelope(f"x{number}", "a") for number in range(3)), lane=other)
    for _ in range(3):
        sent = driver.singles()
        driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)

    assert driver.outcomes() == dict.fromkeys(("x0", "x1", "x2"), Outcome.STORED)
