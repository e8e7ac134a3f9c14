"""Ids of what is held behind a duplicate are asked for, many at once."""

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Ask, Receipt, Verdict
from tests.support.dispatching import RECEIPT, Driver, ids, numbered

DUPLICATE = RECEIPT._replace(duplicate=True)
STORED = Outcome.STORED


def ask(driver: Driver) -> Ask:
    """The next to send, which must be a question."""
    outgoing = driver.dispatch.next_send(driver.now)
    assert isinstance(outgoing, Ask), f"the next to send is {outgoing}"
    return outgoing


def behind_a_duplicate(driver: Driver, *more: int) -> Ask:
    """Submit 1 to 5 of one aggregate, and more; 1 is a duplicate."""
    driver.submit(*numbered(1, 2, 3, 4, 5, *more, aggregate="a"))
    first = driver.singles()
    driver.dispatch.acked_many([(first.number, 0, DUPLICATE)], driver.now)
    assert driver.outcomes() == {"1": STORED}
    return ask(driver)


def answer(driver: Driver, asked: Ask, *receipts: Receipt | None) -> None:
    driver.dispatch.known(asked.number, receipts)


def test_known_ids_end_as_duplicates_and_the_rest_is_sent_in_order() -> None:
    driver = Driver()
    asked = behind_a_duplicate(driver)
    driver.submit(*numbered(6, aggregate="a"))
    assert driver.sends() == []
    answer(driver, asked, DUPLICATE, DUPLICATE, None, DUPLICATE)

    settled = driver.settled()
    assert [one.entry.envelope.event_id for one in settled] == ["2", "3"]
    assert {one.receipt for one in settled} == {DUPLICATE}
    sent = []
    for _ in range(3):
        single = driver.singles()
        driver.dispatch.acked(single.number, 0, RECEIPT, driver.now)
        sent += ids(single)
    assert sent == ["4", "5", "6"]
    driver.settled()
    assert driver.is_empty()


def test_more_is_asked_for_at_once_while_all_is_known() -> None:
    driver = Driver(max_send=3)
    asked = behind_a_duplicate(driver, 6, 7)
    assert ids(asked) == ["2", "3", "4"]
    answer(driver, asked, *[DUPLICATE] * 3)
    following = ask(driver)
    assert ids(following) == ["5", "6", "7"]
    answer(driver, following, *[DUPLICATE] * 3)

    assert driver.outcomes() == dict.fromkeys("234567", STORED)
    assert driver.is_empty()


@pytest.mark.parametrize("which", ["single", "of another aggregate", "new", "kept by itself"])
def test_nothing_is_asked_for_where_it_would_cost_more_than_it_saves(which: str) -> None:
    driver = Driver()
    aggregates = {"single": None, "of another aggregate": "b"}
    driver.submit(*numbered(1, aggregate=aggregates.get(which, "a")))
    first = driver.singles()
    driver.submit(*numbered(2, 3, aggregate="a") if which != "kept by itself" else numbered(2))
    driver.dispatch.acked(first.number, 0, RECEIPT if which == "new" else DUPLICATE, driver.now)

    assert driver.sends() == [["2"]]


def test_lost_connection_ends_the_questions_and_the_next_is_sent() -> None:
    driver = Driver()
    asked = behind_a_duplicate(driver)
    driver.dispatch.disconnected("gone", driver.now)
    driver.dispatch.connected(driver.now)
    answer(driver, asked, *[DUPLICATE] * 4)  # of the lost connection

    assert driver.outcomes() == {}
    assert driver.sends() == [["2"]]


def test_closed_lane_forgets_what_it_asked_for() -> None:
    driver = Driver()
    asked = behind_a_duplicate(driver)
    driver.dispatch.remove_lane(driver.lane)
    assert driver.outcomes() == dict.fromkeys("2345", Outcome.UNKNOWN)
    answer(driver, asked, *[DUPLICATE] * 4)

    assert driver.outcomes() == {}
    assert driver.is_empty()


def test_no_progress_ends_what_is_asked_for_and_what_is_submitted_later_goes_on() -> None:
    driver = Driver()
    asked = behind_a_duplicate(driver)
    driver.tick(60.0)
    assert driver.outcomes() == dict.fromkeys("2345", Outcome.UNKNOWN)
    driver.dispatch.submit(driver.lane, numbered(6, aggregate="a"), 0, driver.now, seen=4)
    answer(driver, asked, *[DUPLICATE] * 4)

    assert driver.sends() == [["6"]]


def test_late_ack_of_what_is_asked_for_ends_it_once() -> None:
    driver = Driver()
    driver.submit(*numbered(1, 2, 3, 4, aggregate="a"))
    first = driver.singles()
    driver.dispatch.acked(first.number, 0, RECEIPT, driver.now)
    second = driver.singles()  # of 2, which is lost
    driver.tick(5.0)
    driver.tick(6.0)
    again = driver.singles()
    driver.dispatch.acked(again.number, 0, DUPLICATE, driver.now)
    asked = ask(driver)
    assert ids(asked) == ["3", "4"]
    driver.dispatch.acked(second.number, 0, RECEIPT, driver.now)
    answer(driver, asked, DUPLICATE, None)
    single = driver.singles()
    assert ids(single) == ["4"]
    driver.refused(single, 0, Verdict.REJECT)

    assert driver.outcomes() == dict.fromkeys("123", STORED) | {"4": Outcome.REJECTED}
    driver.tick(7.0)
    assert driver.is_empty()


def test_groups_are_sent_and_not_asked_for() -> None:
    driver = Driver(atomic=True)
    for first in (1, 3, 5):
        driver.submit(*numbered(first, first + 1, aggregate="a"))
    group = driver.groups()
    driver.dispatch.acked(group.number, 0, DUPLICATE, driver.now)

    assert driver.sends() == [["3", "4"]]
