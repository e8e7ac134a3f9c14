from functools import partial

import pytest

from bytewax_jetstream.jetstream.source.prefetch import (
    HOLD_SECONDS,
    LEAST_BYTES,
    LONGEST_HOLD_SECONDS,
    PREFETCH_BYTES,
    Prefetch,
)

MIB = 1024 * 1024


def budget(partitions: int = 1) -> Prefetch:
    prefetch = Prefetch(lambda: MIB)
    prefetch.partitions = partitions
    return prefetch


@pytest.mark.parametrize("partitions", [1, 4, 200])
def test_two_requests_of_each_partition_take_half_of_the_budget(partitions: int) -> None:
    prefetch = budget(partitions)

    assert 2 * partitions * prefetch.share <= PREFETCH_BYTES // 2


def test_cut_leaves_half_of_what_was_requested() -> None:
    prefetch = budget()
    prefetch.request(2 * MIB)
    prefetch.request(2 * MIB)

    assert prefetch.cut(0.0) == 2 * MIB
    prefetch.end(2 * MIB)
    prefetch.end(2 * MIB)
    assert prefetch.cut(0.0) == 2 * MIB  # nothing was requested: it was not for that


def test_no_cut_leaves_less_than_the_least() -> None:
    prefetch = budget()
    for _ in range(10):
        prefetch.request(prefetch.share)
        prefetch.cut(0.0)

    assert prefetch.limit == LEAST_BYTES


def test_budget_doubles_after_a_pause_that_grows_with_each_cut() -> None:
    prefetch = budget()
    prefetch.request(MIB)
    prefetch.cut(0.0)

    prefetch.grow(HOLD_SECONDS)
    assert prefetch.limit == MIB // 2
    prefetch.grow(HOLD_SECONDS + 1)
    assert prefetch.limit == MIB
    prefetch.cut(HOLD_SECONDS + 2)
    prefetch.grow(2 * HOLD_SECONDS + 2)
    assert prefetch.limit == MIB // 2
    prefetch.grow(3 * HOLD_SECONDS + 3)
    assert prefetch.limit == MIB


def test_budget_grows_back_to_the_whole_and_no_further() -> None:
    prefetch = budget()
    prefetch.request(MIB)
    prefetch.cut(0.0)
    for round_ in range(1, 20):
        prefetch.grow(2 * round_ * HOLD_SECONDS)

    assert prefetch.limit == PREFETCH_BYTES


def test_pause_has_an_upper_bound() -> None:
    prefetch = budget()
    prefetch.request(MIB)
    for _ in range(100):
        prefetch.cut(0.0)

    prefetch.grow(LONGEST_HOLD_SECONDS + 1)

    assert prefetch.limit > LEAST_BYTES


def test_large_messages_are_requested_in_turn_when_the_budget_is_small() -> None:
    prefetch = budget(partitions=3)
    prefetch.request(MIB)
    prefetch.cut(0.0)
    turns: list[str] = []

    def ask(name: str) -> int:
        return prefetch.request_large(again[name])

    def turn(name: str) -> None:
        turns.append(name)
        ask(name)

    again = {name: partial(turn, name) for name in "abc"}
    held = ask("a")
    assert held > MIB
    assert (ask("b"), ask("c"), ask("b")) == (0, 0, 0)

    prefetch.end_large(held)
    assert turns == ["b", "c"]  # b got it, c waits on
    prefetch.end_large(held)
    assert turns == ["b", "c", "c"]


def test_several_large_messages_may_be_requested_with_the_whole_budget() -> None:
    prefetch = budget()

    assert all(prefetch.request_large(lambda: None) for _ in range(10))
