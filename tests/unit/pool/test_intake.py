"""The way from the producers' threads to the pool's thread."""

from collections.abc import Callable

import pytest

from tests.support.fake_publisher import POLICY, FakePublisher
from tests.support.pooling import envelopes, held_up, pooled
from tests.support.waiting import until


def test_submission_costs_at_most_one_call_to_the_pool_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher = FakePublisher()
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        calls: list[object] = []
        call = pool._thread._loop_thread.call

        def counted(callback: Callable[[], object]) -> None:
            calls.append(callback)
            call(callback)

        monkeypatch.setattr(pool._thread._loop_thread, "call", counted)
        for _ in range(10):
            lane.submit(envelopes(1_000))
            lane.flush()

    assert 1 <= len(calls) <= 10
    assert publisher.sends <= 10 * 2


def test_small_submissions_of_a_lane_and_epoch_are_accepted_as_one_in_order() -> None:
    publisher = FakePublisher()
    submitted = envelopes(60, aggregates=7)
    with pooled() as pool:
        lanes = [pool.lane(publisher, name=f"lane-{number}") for number in range(2)]
        with held_up(pool):
            for number, envelope in enumerate(submitted):
                lanes[number % 2].submit([envelope], epoch=1 + number // 40)
        results = [lane.flush() for lane in lanes]

    assert sorted(publisher.prepared) == [10, 10, 20, 20]
    for number in range(2):
        own = submitted[number::2]
        assert sorted((result.event_id, result.epoch) for result in results[number]) == sorted(
            (envelope.event_id, 1 if index < 20 else 2) for index, envelope in enumerate(own)
        )
        ids = {envelope.event_id for envelope in own}
        assert [one.envelope for one in publisher.sent if one.envelope.event_id in ids] == own


@pytest.mark.parametrize(("size", "atomic"), [(600, False), (2, True)], ids=["large", "atomic"])
def test_submission_that_is_large_or_atomic_is_accepted_by_itself(size: int, atomic: bool) -> None:
    publisher = FakePublisher(policy=POLICY._replace(atomic=atomic))
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        with held_up(pool):
            for number in range(3):
                lane.submit(envelopes(size, prefix=f"{number}-"))
        assert len(lane.flush()) == 3 * size

    assert publisher.prepared == [size] * 3


def test_idle_pool_stops_looking_and_wakes_at_once() -> None:
    publisher = FakePublisher()
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        for number in range(50):
            lane.submit(envelopes(1, prefix=f"{number}-"))
            assert len(lane.flush()) == 1
            until(
                lambda: (
                    not pool._intake._looking
                    and pool._thread._next_look is not None
                    and pool._thread._next_look.cancelled()
                )
            )
