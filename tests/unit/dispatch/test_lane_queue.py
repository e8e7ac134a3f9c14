"""`LaneQueue` by itself: what waits in a lane, what is ready, what is held back."""

from collections.abc import Callable

import pytest

from bytewax_jetstream.dispatch import Entry, LaneQueue
from bytewax_jetstream.dispatch.segment import Group
from tests.support.dispatching import entry, event_ids, numbered, segment


def a_queue(*, one_per_aggregate: bool = True) -> LaneQueue:
    return LaneQueue({}, one_per_aggregate=one_per_aggregate)


def waiting(queue: LaneQueue) -> list[list[str]]:
    return [[each.event_id for each in some.envelopes] for some in queue.waiting]


# What waits


def test_segments_wait_in_the_order_they_were_enqueued() -> None:
    queue = a_queue()
    queue.enqueue([segment(*numbered(1, 2)), segment(*numbered(3))])
    queue.enqueue([segment(*numbered(4))])

    assert waiting(queue) == [["1", "2"], ["3"], ["4"]]
    assert event_ids(queue.pop_first().entries()) == ["1", "2"]
    assert waiting(queue) == [["3"], ["4"]]


def test_put_back_segments_wait_first_and_in_order() -> None:
    queue = a_queue()
    queue.enqueue([segment(*numbered(5))])
    queue.put_back([segment(*numbered(1, 2)), segment(*numbered(3, 4))])

    assert waiting(queue) == [["1", "2"], ["3", "4"], ["5"]]


def test_put_back_leaves_out_empty_segments() -> None:
    queue = a_queue()
    queue.put_back([segment(), segment(*numbered(1)), segment()])

    assert waiting(queue) == [["1"]]


def test_split_first_leaves_both_parts_waiting() -> None:
    queue = a_queue()
    queue.enqueue([segment(*numbered(1, 2, 3)), segment(*numbered(4))])
    first = queue.split_first(2)

    assert waiting(queue) == [["1", "2"], ["3"], ["4"]]
    assert queue.waiting[0] is first


def test_clear_waiting_returns_all_and_keeps_nothing() -> None:
    queue = a_queue()
    queue.enqueue([segment(*numbered(1, 2)), segment(*numbered(3))])

    assert [event_ids(some.entries()) for some in queue.clear_waiting()] == [["1", "2"], ["3"]]
    assert waiting(queue) == []


# How singles enter and leave


@pytest.mark.parametrize(
    ("one_per_aggregate", "aggregates", "may_go"),
    [
        (True, [None, None], [True, True]),
        (True, ["a", "b"], [True, True]),
        (True, ["a", "b", "a", None, "a"], [True, True, False, True, False]),
        (False, ["a", "a"], [True, True]),
    ],
)
def test_enter_holds_what_comes_behind_a_single_of_its_aggregate(
    one_per_aggregate: bool, aggregates: list[str | None], may_go: list[bool]
) -> None:
    queue = a_queue(one_per_aggregate=one_per_aggregate)

    assert [queue.enter(entry("1", aggregate)) for aggregate in aggregates] == may_go
    assert queue.singles == len(aggregates)


@pytest.mark.parametrize("one_per_aggregate", [True, False])
def test_enter_ready_makes_ready_what_is_not_held(one_per_aggregate: bool) -> None:
    queue = a_queue(one_per_aggregate=one_per_aggregate)
    queue.enter_ready([entry("1", "a"), entry("2", "a"), entry("3"), entry("4", "b")])

    assert event_ids(queue.ready) == (
        ["1", "3", "4"] if one_per_aggregate else ["1", "2", "3", "4"]
    )
    assert queue.singles == 4


def test_leave_makes_the_next_of_the_aggregate_ready() -> None:
    queue = a_queue()
    entries = [entry(str(number), "a") for number in range(3)]
    queue.enter_ready(entries)
    for number, left in enumerate(entries):
        (ready,) = queue.ready
        assert ready is left
        queue.ready.clear()
        queue.leave([left])
        assert queue.singles == 2 - number

    assert not queue.ready
    assert not queue.held


def test_leave_makes_nothing_of_another_aggregate_ready() -> None:
    queue = a_queue()
    first_of_a = entry("1", "a")
    queue.enter_ready([first_of_a, entry("2", "b"), entry("3", "b"), entry("4", "a")])
    queue.ready.clear()
    queue.leave([first_of_a])

    assert event_ids(queue.ready) == ["4"]
    assert event_ids(queue.entries()) == ["4", "3"]


def test_aggregate_is_free_again_when_its_last_single_has_left() -> None:
    queue = a_queue()
    only = entry("1", "a")
    queue.enter(only)
    queue.leave([only])

    assert queue.enter(entry("2", "a"))


def test_single_to_be_sent_again_is_ready_before_the_others() -> None:
    queue = a_queue()
    queue.enter_ready([entry("1"), entry("2")])
    queue.make_ready_first(entry("3"))

    assert event_ids(queue.ready) == ["3", "1", "2"]


def test_cleared_singles_are_forgotten_with_those_held_behind_them() -> None:
    queue = a_queue()
    queue.enter_ready([entry("1", "a"), entry("2", "a")])
    queue.clear_singles()

    assert queue.entries() == []
    assert queue.singles == 0
    assert queue.enter(entry("3", "a"))


# Which singles are taken


@pytest.mark.parametrize(
    ("messages", "size", "taken"),
    [
        (3, 100, ["1", "2", "3"]),
        (2, 100, ["1", "2"]),
        (0, 100, []),
        (3, 21, ["1", "2", "3"]),
        (3, 20, ["1", "2"]),
        (3, 1, ["1"]),
        (3, 0, []),
        (-1, 100, []),
    ],
)
def test_take_ready_takes_as_much_as_has_room(messages: int, size: int, taken: list[str]) -> None:
    queue = a_queue()
    queue.enter_ready([entry(name, size=10) for name in ("1", "2", "3")])
    entries, overdue = queue.take_ready(messages, size, now=0.0)

    assert (event_ids(entries), overdue) == (taken, [])
    assert event_ids([*entries, *queue.ready]) == ["1", "2", "3"]


def test_take_ready_counts_each_message_of_a_group() -> None:
    queue = a_queue()
    group = Group(segment(*numbered(1, 2, 3), group=True))
    queue.enter_ready([group, entry("4")])
    entries, _ = queue.take_ready(3, 100, now=0.0)

    assert entries == [group]


def test_take_ready_returns_overdue_entries_apart_and_gives_them_no_room() -> None:
    queue = a_queue()
    queue.enter_ready([entry("1", expires=5.0), entry("2", expires=5.1), entry("3")])
    entries, overdue = queue.take_ready(1, 1, now=5.0)

    assert (event_ids(entries), event_ids(overdue)) == (["2"], ["1"])
    assert event_ids(queue.ready) == ["3"]


def test_take_ready_skips_what_is_settled() -> None:
    queue = a_queue()
    settled = entry("1")
    queue.enter_ready([settled, entry("2")])
    settled.done = True
    entries, overdue = queue.take_ready(1, 1, now=0.0)

    assert (event_ids(entries), overdue) == (["2"], [])


def test_take_overdue_leaves_what_has_time_and_forgets_what_is_settled() -> None:
    queue = a_queue()
    settled = entry("1", expires=5.0)
    settled.done = True
    queue.enter_ready([settled, entry("2"), entry("3", expires=5.0), entry("4")])

    assert event_ids(queue.take_overdue(5.0)) == ["3"]
    assert event_ids(queue.ready) == ["2", "4"]


# Changed lanes


@pytest.mark.parametrize(
    "change",
    [
        lambda queue, one: queue.enqueue([segment(*numbered(1))]),
        lambda queue, one: queue.enter_ready([one]),
        lambda queue, one: queue.make_ready_first(one),
        lambda queue, one: queue.leave([one]),
        lambda queue, one: queue.back_off(),
        lambda queue, one: queue.mark_changed(),
    ],
    ids=["enqueue", "enter_ready", "make_ready_first", "leave", "back_off", "mark_changed"],
)
def test_lane_that_may_send_is_among_the_changed(
    change: Callable[[LaneQueue, Entry], None],
) -> None:
    changed: dict[LaneQueue, None] = {}
    queue = LaneQueue(changed, one_per_aggregate=True)
    change(queue, entry("1"))

    assert list(changed) == [queue]


def test_backing_off_counts_those_that_wait_and_have_not_resumed() -> None:
    queue = a_queue()
    queue.back_off()
    queue.back_off()
    queue.resume()

    assert queue.backing_off == 1
