"""The budget: producers wait, nothing is dropped, nobody waits forever."""

from functools import partial

import pytest

from bytewax_jetstream.errors import PoolClosedError, SettleTimeoutError
from bytewax_jetstream.pool import Lane
from bytewax_jetstream.pool import budget as budget_module
from bytewax_jetstream.pool.budget import Budget
from tests.support.fake_publisher import FakePublisher, silent
from tests.support.pooling import InThread, envelopes, pooled
from tests.support.waiting import until


def test_two_steps_in_one_thread_do_not_stall_on_a_budget_of_ten() -> None:
    first, second = FakePublisher(), FakePublisher()
    with pooled(budget_messages=10) as pool:
        lanes = [pool.lane(first, name="first"), pool.lane(second, name="second")]
        settled = [0, 0]
        for number in range(20):
            for index, lane in enumerate(lanes):
                lane.submit(envelopes(37, prefix=f"{number}-"))
                settled[index] += len(lane.collect())
        for index, lane in enumerate(lanes):
            settled[index] += len(lane.flush())

    assert settled == [740, 740]


def test_two_steps_in_two_threads_do_not_stall_on_a_budget_of_ten() -> None:
    def submit_often(lane: Lane) -> None:
        for _ in range(20):
            lane.submit(envelopes(25))

    publisher = FakePublisher()
    with pooled(budget_messages=10) as pool:
        lanes = [pool.lane(publisher, name=name) for name in ("left", "right")]
        producers = [InThread(partial(submit_often, lane)) for lane in lanes]
        assert [thread.end() for thread in producers] == [None, None]

        assert [len(lane.flush()) for lane in lanes] == [500, 500]


def test_full_budget_blocks_the_producer_and_drops_nothing() -> None:
    publisher = FakePublisher(silent)
    with pooled(budget_messages=10) as pool:
        lane = pool.lane(publisher, name="lane")
        producer = InThread(lambda: lane.submit(envelopes(25)))
        until(lambda: pool.statistics()["budget_stalls"] == 1)
        until(lambda: len(publisher.unanswered) == 10)

        assert producer.is_alive()
        assert lane.unsettled == pool.unsettled == 10
        publisher.release()
        assert producer.end() is None
        assert [result.event_id for result in lane.flush()] == [
            one.event_id for one in envelopes(25)
        ]
        assert (pool.unsettled, pool.statistics()["unsettled_bytes"]) == (0, 0)


def test_budget_is_released_although_nobody_collects() -> None:
    with pooled(budget_messages=10) as pool:
        lane, other = (
            pool.lane(FakePublisher(), name=name) for name in ("never collected", "other")
        )
        lane.submit(envelopes(100))
        other.submit(envelopes(100))

        assert len(other.flush()) == 100


def test_submission_larger_than_the_byte_budget_goes_in_pieces() -> None:
    publisher = FakePublisher(silent)
    with pooled(budget_bytes=1_000) as pool:
        lane = pool.lane(publisher, name="lane")
        producer = InThread(lambda: lane.submit(envelopes(100, size=100)))
        until(lambda: pool.statistics()["budget_stalls"])

        assert 500 <= pool.statistics()["unsettled_bytes"] <= 1_000
        publisher.release()
        assert producer.end() is None
        assert len(lane.flush()) == 100


def test_message_larger_than_the_budget_goes_when_nothing_else_is_unsettled() -> None:
    publisher = FakePublisher(silent)
    with pooled(budget_bytes=1_000) as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(1, size=10))
        producer = InThread(lambda: lane.submit(envelopes(1, size=5_000, prefix="large-")))
        until(lambda: pool.statistics()["budget_stalls"])
        assert pool.statistics()["unsettled_bytes"] == 10
        publisher.release()
        assert producer.end() is None

        assert {result.event_id for result in lane.flush()} == {"e0", "large-0"}


def test_budget_of_one_message_is_enough() -> None:
    with pooled(budget_messages=1, budget_bytes=1) as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(20, aggregates=2, size=5))

        assert len(lane.flush()) == 20


def test_acquire_raises_when_nothing_is_settled_in_time() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        budget = Budget(10, 1_000)
        budget.acquire(10, 10, lane.check, patience=0.05)
        with pytest.raises(SettleTimeoutError) as caught:
            budget.acquire(1, 1, lane.check, patience=0.05)

    assert str(caught.value) == (
        "the budget of 10 messages is used up and nothing was settled for 0.05 s: "
        "check that the broker answers"
    )
    assert (budget.used_messages, budget.used_bytes) == (10, 10)


# `Budget` by itself


@pytest.mark.parametrize(
    ("used", "asked", "fits"),
    [
        ((0, 0), (10, 100), True),
        ((0, 0), (11, 101), True),
        ((6, 60), (4, 40), True),
        ((6, 60), (5, 40), False),
        ((6, 60), (4, 41), False),
        ((1, 0), (10, 0), False),
    ],
    ids=["all", "more than all", "just enough", "messages", "bytes", "all but one"],
)
def test_acquire_waits_for_room_unless_nothing_is_used(
    used: tuple[int, int], asked: tuple[int, int], fits: bool
) -> None:
    budget = Budget(10, 100)
    if used[0]:
        budget.acquire(*used, lambda: None, patience=0.0)
    if fits:
        budget.acquire(*asked, lambda: None, patience=0.0)
        expected = used[0] + asked[0], used[1] + asked[1]
    else:
        with pytest.raises(SettleTimeoutError):
            budget.acquire(*asked, lambda: None, patience=0.0)
        expected = used

    assert (budget.used_messages, budget.used_bytes) == expected
    assert budget.stalls == (not fits)


def test_acquire_raises_what_the_check_raises_while_it_waits() -> None:
    def closed() -> None:
        raise PoolClosedError("the pool is closed")

    budget = Budget(10, 100)
    budget.acquire(10, 10, closed, patience=60.0)
    with pytest.raises(PoolClosedError, match="the pool is closed"):
        budget.acquire(1, 1, closed, patience=60.0)


def test_release_wakes_the_producer_that_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "SLICE", 60.0)
    budget = Budget(10, 100)
    budget.acquire(10, 10, lambda: None, patience=60.0)
    producer = InThread(lambda: budget.acquire(3, 30, lambda: None, patience=60.0))
    until(lambda: budget.stalls)
    budget.release(4, 4)

    assert producer.end() is None
    assert (budget.used_messages, budget.used_bytes) == (9, 36)
