"""The way from the producers' threads to the pool's thread."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from bytewax_jetstream.dispatch import LaneQueue
from bytewax_jetstream.errors import PoolClosedError
from bytewax_jetstream.loop_thread import LoopThread
from bytewax_jetstream.pool import PoolState
from bytewax_jetstream.pool.intake import Intake
from bytewax_jetstream.pool.mailbox import Mailbox
from bytewax_jetstream.pool.shared_publisher import SharedPublisher
from bytewax_jetstream.settings import PoolSettings
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


# `Intake` by itself


class IdleThread(LoopThread):
    """A pool's thread that is never started, and keeps what it is asked to do."""

    def __init__(self) -> None:
        super().__init__("never started")
        self.calls: list[Callable[[], object]] = []

    def call(self, callback: Callable[[], object]) -> None:
        self.calls.append(callback)


@pytest.fixture
def thread() -> Iterator[IdleThread]:
    thread = IdleThread()
    yield thread
    thread.stop()


@pytest.fixture
def intake(thread: IdleThread) -> Intake:
    return Intake(PoolSettings(), thread, lambda: None)


def a_publisher(*, atomic: bool = False) -> SharedPublisher:
    """One that is not started: what it accepts waits in its lanes."""
    policy = POLICY._replace(atomic=atomic)
    return SharedPublisher(FakePublisher(policy=policy), lambda task: None, lambda: None)


def accepted(queue: LaneQueue) -> list[tuple[int, int]]:
    """Epoch and size of each submission the dispatch was given."""
    return [(segment.submission.epoch, segment.count) for segment in queue.waiting]


@pytest.mark.parametrize(
    ("atomic", "handed_over", "left", "right"),
    # Handed over: lane, messages, epoch. Accepted: epoch and messages.
    [
        (False, [("left", 1, 1), ("left", 2, 1)], [(1, 3)], []),
        (False, [("left", 1, 1), ("left", 2, 2), ("left", 3, 2)], [(1, 1), (2, 5)], []),
        (False, [("left", 1, 2), ("left", 2, 1), ("left", 3, 2)], [(2, 1), (1, 2), (2, 3)], []),
        (False, [("left", 1, 1), ("right", 2, 1), ("left", 3, 1)], [(1, 4)], [(1, 2)]),
        (False, [("left", 600, 1), ("left", 400, 1)], [(1, 1_000)], []),
        (False, [("left", 600, 1), ("left", 401, 1), ("left", 1, 1)], [(1, 600), (1, 402)], []),
        (True, [("left", 1, 1), ("left", 2, 1)], [(1, 1), (1, 2)], []),
    ],
    ids=["one epoch", "next epoch", "epochs in turn", "two lanes", "full", "too many", "atomic"],
)
def test_accept_gathers_the_submissions_of_a_lane_and_epoch(
    intake: Intake,
    atomic: bool,
    handed_over: list[tuple[str, int, int]],
    left: list[tuple[int, int]],
    right: list[tuple[int, int]],
) -> None:
    publisher = a_publisher(atomic=atomic)
    lanes = {name: publisher.add_lane(Mailbox(0)) for name in ("left", "right")}
    for number, (lane, count, epoch) in enumerate(handed_over):
        intake.hand_over(publisher, lanes[lane], envelopes(count, prefix=f"{number}-"), epoch)

    assert intake.accept() is False
    assert (accepted(lanes["left"]), accepted(lanes["right"])) == (left, right)
    assert len(intake) == 0
    for name, queue in lanes.items():
        assert [each.event_id for segment in queue.waiting for each in segment.envelopes] == [
            each.event_id
            for number, (lane, count, _) in enumerate(handed_over)
            if lane == name
            for each in envelopes(count, prefix=f"{number}-")
        ]


def test_accept_leaves_the_producers_envelopes_alone(intake: Intake) -> None:
    publisher = a_publisher()
    queue = publisher.add_lane(Mailbox(0))
    first, second = envelopes(2), envelopes(3)
    intake.hand_over(publisher, queue, first, 1)
    intake.hand_over(publisher, queue, second, 1)
    intake.accept()

    assert (len(first), len(second)) == (2, 3)


def test_accept_stops_after_4000_messages_and_says_that_there_is_more(intake: Intake) -> None:
    publisher = a_publisher()
    queue = publisher.add_lane(Mailbox(0))
    for _ in range(9):
        intake.hand_over(publisher, queue, envelopes(1_000), 1)

    assert [(intake.accept(), len(intake)) for _ in range(3)] == [(True, 5), (True, 1), (False, 0)]
    assert accepted(queue) == [(1, 1_000)] * 9


def test_accept_all_leaves_nothing(intake: Intake) -> None:
    publisher = a_publisher()
    queue = publisher.add_lane(Mailbox(0))
    for _ in range(9):
        intake.hand_over(publisher, queue, envelopes(1_000), 1)
    intake.accept_all()

    assert len(intake) == 0
    assert accepted(queue) == [(1, 1_000)] * 9


def test_hand_over_wakes_the_thread_once_until_it_goes_idle(
    intake: Intake, thread: IdleThread
) -> None:
    publisher = a_publisher()
    queue = publisher.add_lane(Mailbox(0))
    woken = []
    for _ in range(2):
        intake.hand_over(publisher, queue, envelopes(1), 1)
        intake.hand_over(publisher, queue, envelopes(1), 1)
        woken.append(len(thread.calls))
        intake.accept()
        assert intake.go_idle()

    assert woken == [1, 2]


def test_thread_does_not_go_idle_when_something_was_handed_over_meanwhile(
    intake: Intake,
    thread: IdleThread,
) -> None:
    publisher = a_publisher()
    queue = publisher.add_lane(Mailbox(0))
    intake.hand_over(publisher, queue, envelopes(1), 1)

    assert not intake.go_idle()
    intake.hand_over(publisher, queue, envelopes(1), 1)
    assert len(thread.calls) == 1


@pytest.mark.parametrize(
    ("state", "submits", "settles"),
    [
        (PoolState.NEW, False, False),
        (PoolState.RUNNING, True, True),
        (PoolState.DRAINING, False, True),
        (PoolState.CLOSED, False, False),
    ],
)
def test_check_raises_in_every_state_that_cannot_do_it(
    intake: Intake, state: PoolState, submits: bool, settles: bool
) -> None:
    intake.state = state
    for settling, may in ((False, submits), (True, settles)):
        with (
            contextlib.nullcontext()
            if may
            else pytest.raises(
                PoolClosedError, match=rf"^the pool is {state}: it takes no envelopes any more$"
            )
        ):
            intake.check(settling=settling)
