"""The pool with a broker inside the process: what threads, budget, lanes and the end of it all do."""

import asyncio
import json
import logging
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream import loop_thread as loop_module
from bytewax_jetstream.envelope import Envelope, Outcome, PublishResult
from bytewax_jetstream.errors import PoolClosedError, SettleTimeoutError
from bytewax_jetstream.pool import AckPool, Lane, PoolState, borrow_pool, give_back_pool
from bytewax_jetstream.pool import ack_pool as pool_module
from bytewax_jetstream.pool.budget import Budget
from bytewax_jetstream.publishing import Receipt, Refusal, Verdict
from bytewax_jetstream.settings import PoolSettings
from tests.support.fake_publisher import POLICY, FakePublisher, silent, stored
from tests.support.waiting import until

ROOT = Path(__file__).parents[3]


def envelopes(
    count: int, *, aggregates: int = 0, size: int = 1, prefix: str = "e"
) -> list[Envelope]:
    return [
        Envelope(
            "topic",
            b"." * size,
            f"{prefix}{number}",
            f"a{number % aggregates}" if aggregates else None,
        )
        for number in range(count)
    ]


@contextmanager
def pooled(**settings: Any) -> Iterator[AckPool]:
    pool = AckPool(PoolSettings(**settings))
    try:
        yield pool
    finally:
        pool.close(0.0)


class InThread(threading.Thread):
    """Does something in another thread, and keeps what it raised."""

    def __init__(self, what: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._what = what
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._what()
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self.join(20)
        assert not self.is_alive(), "hangs"
        return self.error


def pool_threads() -> list[threading.Thread]:
    return [
        thread for thread in threading.enumerate() if thread.name.startswith("bytewax_jetstream")
    ]


# Results


def test_every_envelope_comes_back_as_one_result() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(2_500, aggregates=7))
        results = lane.flush()

    assert sorted(result.event_id for result in results) == sorted(
        one.event_id for one in envelopes(2_500)
    )
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert lane.unsettled == 0
    assert lane.collect() == []


def test_a_stored_result_says_where_and_whose_it_is() -> None:
    publisher = FakePublisher(lambda envelope: Receipt("ORDERS", 4, 17, duplicate=True))
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane", worker=3)
        lane.submit(
            [Envelope("orders.new", b"{}", "order-1", "customer-1", "OrderPlaced")], epoch=9
        )
        (result,) = lane.flush()

    assert type(result) is PublishResult
    assert result.ack_seconds > 0
    assert result == PublishResult(
        outcome=Outcome.STORED,
        event_id="order-1",
        topic="orders.new",
        aggregate_id="customer-1",
        event_type="OrderPlaced",
        broker="fake",
        stream="ORDERS",
        partition=4,
        sequence=17,
        duplicate=True,
        attempts=1,
        ack_seconds=result.ack_seconds,
        reason=None,
        code=None,
        envelope=None,
        worker=3,
        epoch=9,
    )
    assert pickle.loads(pickle.dumps(result)) == result


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.REJECT, Outcome.REJECTED),
        (Verdict.STOP, Outcome.REJECTED),
        (Verdict.GIVE_UP, Outcome.UNKNOWN),
    ],
)
def test_a_result_that_is_not_stored_says_why_and_carries_its_envelope(
    verdict: Verdict, outcome: Outcome
) -> None:
    publisher = FakePublisher(lambda envelope: Refusal(verdict, "no room", 10077))
    (envelope,) = envelopes(1, aggregates=1)
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane", worker=3)
        lane.submit([envelope], epoch=9)
        (result,) = lane.flush()

    assert result._replace(ack_seconds=0.0) == PublishResult(
        outcome=outcome,
        event_id="e0",
        topic="topic",
        aggregate_id="a0",
        event_type=None,
        broker="fake",
        stream=None,
        partition=None,
        sequence=None,
        duplicate=None,
        attempts=1,
        ack_seconds=0.0,
        reason="no room",
        code=10077,
        envelope=envelope,
        worker=3,
        epoch=9,
    )


def test_a_bad_envelope_is_a_rejected_result_and_harms_no_other() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.submit([*envelopes(2), Envelope("bad", b"", "bad"), *envelopes(2, prefix="f")])
        results = {result.event_id: result for result in lane.flush()}

    assert results.pop("bad").outcome is Outcome.REJECTED
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert len(results) == 4


def test_only_what_concerns_all_or_is_unknown_is_a_reason_to_stop() -> None:
    verdicts = {"e0": Verdict.REJECT, "e1": Verdict.STOP, "e2": Verdict.GIVE_UP}
    publisher = FakePublisher(lambda envelope: Refusal(verdicts[envelope.event_id], "so it is"))
    with pooled() as pool:
        lanes = [pool.lane(publisher, name=f"lane-{number}") for number in range(3)]
        for lane, envelope in zip(lanes, envelopes(3), strict=True):
            lane.submit([envelope])
            lane.flush()

    assert [lane.stop_reason for lane in lanes] == [
        None,
        "envelope e1 on topic is rejected: so it is",
        "envelope e2 on topic is unknown: so it is",
    ]


def test_results_that_are_there_are_taken_without_waiting() -> None:
    publisher = FakePublisher(
        lambda envelope: stored(envelope) if envelope.event_id != "e1" else None
    )
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(3))
        until(lambda: lane.unsettled == 1)

        assert [result.event_id for result in lane.collect()] == ["e0", "e2"]
        assert lane.collect() == []
        publisher.release()
        assert [result.event_id for result in lane.flush()] == ["e1"]


# Nobody waits for the silent


def test_more_silent_flights_than_ack_workers_hold_nothing_up() -> None:
    quiet = FakePublisher(silent, policy=POLICY._replace(max_send=1))
    half = FakePublisher(
        lambda envelope: stored(envelope) if envelope.event_id.startswith("good") else None
    )
    with pooled(ack_workers=2) as pool:
        silent_lanes = [pool.lane(quiet, name=f"silent-{number}") for number in range(4)]
        for number, lane in enumerate(silent_lanes):
            lane.submit(envelopes(25, prefix=f"silent-{number}-"))
        until(lambda: quiet.sends == 100)

        other = pool.lane(FakePublisher(), name="other broker")
        same = pool.lane(half, name="same broker")
        mute = pool.lane(half, name="same broker, silent")
        mute.submit(envelopes(50))
        for round_ in range(20):
            other.submit(envelopes(50, aggregates=3))
            same.submit(envelopes(50, prefix=f"good-{round_}-"))
            assert len(other.flush(10)) == 50
            assert len(same.flush(10)) == 50

        assert pool.statistics()["ack_workers"] == 2
        assert sum(lane.unsettled for lane in silent_lanes) == 100
        assert mute.unsettled == 50


def test_a_lane_without_a_connection_does_not_keep_another_broker_waiting() -> None:
    """What one broker's turn takes in for another is sent at once, not at the other's next event."""
    with pooled() as pool:
        connected = pool.lane(FakePublisher(), name="connected")
        cut_off = pool.lane(FakePublisher(connects=False), name="cut off")
        for number in range(5):
            cut_off.submit(envelopes(3_000, prefix=f"{number}-"))
            connected.submit(envelopes(3))
            assert len(connected.flush(10)) == 3


def test_messages_out_cost_no_task_each() -> None:
    publisher = FakePublisher(silent)
    with pooled(ack_workers=2) as pool:
        lane = pool.lane(publisher, name="lane")
        before = {task.get_name() for task in asyncio.all_tasks(publisher.loop)}
        lane.submit(envelopes(10_000))
        until(lambda: len(publisher.unanswered) == 10_000)

        assert {task.get_name() for task in asyncio.all_tasks(publisher.loop)} == before == {
            "ack-worker-0", "ack-worker-1",
        }  # fmt: skip


def test_a_batch_is_one_hand_over_to_the_pools_thread(monkeypatch: pytest.MonkeyPatch) -> None:
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


@contextmanager
def held_up(pool: AckPool) -> Iterator[None]:
    """The pool's thread takes nothing in meanwhile."""
    go_on = threading.Event()
    pool._thread._loop_thread.call(lambda: go_on.wait(20))
    try:
        yield
    finally:
        go_on.set()


def test_small_hand_overs_of_a_lane_and_an_epoch_are_accepted_as_one_in_order() -> None:
    publisher = FakePublisher()
    batch = envelopes(60, aggregates=7)
    with pooled() as pool:
        lanes = [pool.lane(publisher, name=f"lane-{number}") for number in range(2)]
        with held_up(pool):
            for number, envelope in enumerate(batch):
                lanes[number % 2].submit([envelope], epoch=1 + number // 40)
        results = [lane.flush() for lane in lanes]

    assert sorted(publisher.prepared) == [10, 10, 20, 20]
    for number in range(2):
        own = batch[number::2]
        assert sorted((result.event_id, result.epoch) for result in results[number]) == sorted(
            (envelope.event_id, 1 if at < 20 else 2) for at, envelope in enumerate(own)
        )
        ids = {envelope.event_id for envelope in own}
        assert [one.envelope for one in publisher.sent if one.envelope.event_id in ids] == own


@pytest.mark.parametrize(
    ("size", "atomic"), [(600, False), (2, True)], ids=["large", "with groups of its own"]
)
def test_a_hand_over_that_is_large_or_has_groups_of_its_own_is_accepted_as_it_is(
    size: int, atomic: bool
) -> None:
    publisher = FakePublisher(policy=POLICY._replace(atomic=atomic))
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        with held_up(pool):
            for number in range(3):
                lane.submit(envelopes(size, prefix=f"{number}-"))
        assert len(lane.flush()) == 3 * size

    assert publisher.prepared == [size] * 3


def test_an_idle_pool_looks_at_nothing_and_is_woken_at_once() -> None:
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


# The budget


def test_two_steps_in_series_in_one_thread_do_not_stall_on_a_budget_of_ten() -> None:
    first, second = FakePublisher(), FakePublisher()
    with pooled(budget_messages=10) as pool:
        lanes = [pool.lane(first, name="first"), pool.lane(second, name="second")]
        settled = [0, 0]
        for number in range(20):
            for at, lane in enumerate(lanes):
                lane.submit(envelopes(37, prefix=f"{number}-"))
                settled[at] += len(lane.collect())
        for at, lane in enumerate(lanes):
            settled[at] += len(lane.flush())

    assert settled == [740, 740]


def test_two_steps_side_by_side_do_not_stall_on_a_budget_of_ten() -> None:
    publisher = FakePublisher()
    with pooled(budget_messages=10) as pool:
        lanes = [pool.lane(publisher, name=name) for name in ("left", "right")]
        fill = [
            InThread(lambda lane=lane: [lane.submit(envelopes(25)) for _ in range(20)])  # type: ignore[misc]
            for lane in lanes
        ]
        assert [thread.end() for thread in fill] == [None, None]

        assert [len(lane.flush()) for lane in lanes] == [500, 500]


def test_a_full_budget_blocks_the_producer_and_discards_nothing() -> None:
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


def test_the_budget_is_given_back_although_nobody_collects() -> None:
    with pooled(budget_messages=10) as pool:
        lane, other = (
            pool.lane(FakePublisher(), name=name) for name in ("never collected", "other")
        )
        lane.submit(envelopes(100))
        other.submit(envelopes(100))

        assert len(other.flush()) == 100


def test_a_batch_larger_than_the_budget_of_bytes_goes_in_pieces() -> None:
    publisher = FakePublisher(silent)
    with pooled(budget_bytes=1_000) as pool:
        lane = pool.lane(publisher, name="lane")
        producer = InThread(lambda: lane.submit(envelopes(100, size=100)))
        until(lambda: pool.statistics()["budget_stalls"])

        assert 500 <= pool.statistics()["unsettled_bytes"] <= 1_000
        publisher.release()
        assert producer.end() is None
        assert len(lane.flush()) == 100


def test_a_message_larger_than_the_budget_goes_when_nothing_else_is_out() -> None:
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


def test_a_budget_of_one_message_is_enough() -> None:
    with pooled(budget_messages=1, budget_bytes=1) as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(20, aggregates=2, size=5))

        assert len(lane.flush()) == 20


def test_a_producer_does_not_wait_for_ever_when_nothing_is_settled() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        budget = Budget(10, 1_000)
        budget.acquire(10, 10, lane.check, patience=0.05)
        with pytest.raises(SettleTimeoutError) as caught:
            budget.acquire(1, 1, lane.check, patience=0.05)

    assert str(caught.value) == (
        "the budget of 10 messages is used up and nothing was settled for 0.05 s: check that the broker answers"
    )
    assert (budget.used_messages, budget.used_bytes) == (10, 10)


def test_a_flush_does_not_wait_for_ever_when_nothing_is_settled() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(silent), name="lane")
        lane.submit(envelopes(3))
        with pytest.raises(
            SettleTimeoutError, match=r"^3 envelopes of lane lane are not settled after 0\.05 s: "
        ):
            lane.flush(0.05)


# Lanes and publishers


def test_publishers_with_equal_settings_share_a_connection_until_the_last_lane_closes() -> None:
    first, second = FakePublisher(identity="same"), FakePublisher(identity="same")
    with pooled() as pool:
        lanes = [pool.lane(publisher, name="lane") for publisher in (first, second)]
        for lane in lanes:
            lane.submit(envelopes(5))
            lane.flush()
        assert (first.starts, second.starts) == (1, 0)
        assert len(first.sent) == 10

        lanes[0].close()
        lanes[0].close()
        lanes[1].submit(envelopes(5))
        assert len(lanes[1].flush()) == 5
        assert first.closes == 0
        lanes[1].close()
        until(lambda: first.closes == 1)

        again = pool.lane(FakePublisher(identity="same"), name="again")
        again.submit(envelopes(5))
        assert len(again.flush()) == 5


def test_what_a_lane_was_given_before_it_is_closed_becomes_unknown_and_frees_the_budget() -> None:
    publisher = FakePublisher(silent)
    with pooled(budget_messages=100) as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(100, aggregates=5))
        lane.close()
        results = lane.flush(10)

        assert {result.outcome for result in results} == {Outcome.UNKNOWN}
        assert {result.reason for result in results} == {
            "its lane was closed before it was answered"
        }
        assert len(results) == 100
        until(lambda: pool.unsettled == 0)


def test_a_closed_lane_takes_nothing() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.close()
        with pytest.raises(PoolClosedError, match=r"^lane lane is closed: open another$"):
            lane.submit(envelopes(1))


def test_a_publisher_that_cannot_start_says_so_to_whoever_opens_a_lane_and_may_be_tried_again() -> (
    None
):
    publisher = FakePublisher()
    publisher.fail_start = ConnectionRefusedError("no server there")
    with pooled() as pool:
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError, match="no server there"):
                pool.lane(publisher, name="lane")
        assert publisher.closes == 2
        assert pool.statistics()["brokers"] == []

        publisher.fail_start = None
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(1))
        assert len(lane.flush()) == 1


def test_a_lost_connection_is_logged_and_what_was_out_is_sent_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    publisher = FakePublisher(silent)
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(5, aggregates=5))
        until(lambda: len(publisher.unanswered) == 5)
        publisher.tell(lambda events: events.disconnected("the server is gone"))
        publisher.answer = stored
        publisher.tell(lambda events: events.connected())
        results = lane.flush()

    assert "fake: the server is gone; 5 envelopes are sent again" in caplog.messages
    assert {(result.outcome, result.attempts) for result in results} == {(Outcome.STORED, 2)}


def test_a_publisher_beyond_repair_ends_all_it_has_and_gets_as_unknown() -> None:
    publisher = FakePublisher(silent)
    with pooled() as pool:
        lane, other = pool.lane(publisher, name="lane"), pool.lane(FakePublisher(), name="other")
        lane.submit(envelopes(5))
        publisher.tell(lambda events: events.failed("banned for life"))
        before = lane.flush(10)
        lane.submit(envelopes(5))
        after = lane.flush(10)
        other.submit(envelopes(5))

        assert {(result.outcome, result.reason) for result in before + after} == {
            (Outcome.UNKNOWN, "banned for life")
        }
        assert len(other.flush()) == 5


# The pool's life


def test_a_pool_is_new_then_running_then_closed() -> None:
    pool = AckPool(PoolSettings())
    seen = [pool.state]
    assert pool_threads() == []
    lane = pool.lane(FakePublisher(), name="lane")
    seen.append(pool.state)
    pool.close()
    seen.append(pool.state)

    assert seen == [PoolState.NEW, PoolState.RUNNING, PoolState.CLOSED]
    with pytest.raises(
        PoolClosedError, match=r"^the pool is closed: it takes no envelopes any more$"
    ):
        lane.submit(envelopes(1))
    with pytest.raises(PoolClosedError, match=r"^the pool is closed"):
        pool.lane(FakePublisher(), name="lane")


def test_a_pool_that_was_never_used_closes_without_ever_starting() -> None:
    pool = AckPool(PoolSettings())
    pool.close()
    pool.close()

    assert pool.state is PoolState.CLOSED


def test_the_drain_has_a_fixed_order(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "bytewax_jetstream.pool")
    publisher = FakePublisher(silent)
    pool = AckPool(PoolSettings(ack_workers=3))
    lane = pool.lane(publisher, name="lane")
    lane.submit(envelopes(10))
    until(lambda: len(publisher.unanswered) == 10)
    seen: list[tuple[str, object]] = []

    def at_close() -> None:
        seen.append(("state", pool.state))
        seen.append(("unsettled", lane.unsettled))
        seen.append(
            ("ACK workers stopped", sum("stopped" in message for message in caplog.messages))
        )
        seen.append(("thread alive", pool._thread._loop_thread.alive))

    publisher.on_close = at_close
    closer = InThread(lambda: pool.close(0.5))
    until(lambda: pool.state is PoolState.DRAINING)
    # 1. Admission stops, ...
    with pytest.raises(
        PoolClosedError, match=r"^the pool is draining: it takes no envelopes any more$"
    ):
        lane.submit(envelopes(1))
    # 2. ... what is out is waited for, ...
    publisher.answer = lambda envelope: stored(envelope) if envelope.event_id < "e5" else None
    publisher.loop.call_soon_threadsafe(publisher._answer_unanswered)
    until(lambda: lane.unsettled == 5)
    assert publisher.closes == 0
    # 3. ... what is left by the deadline is unknown, 4. the ACK workers settle it and stop, 5.
    # publishers close, ...
    assert closer.end() is None
    assert seen == [
        ("state", PoolState.DRAINING),
        ("unsettled", 0),
        ("ACK workers stopped", 3),
        ("thread alive", True),
    ]
    # 6. ... the thread ends.
    assert not pool._thread._loop_thread.alive
    outcomes = {result.event_id: result.outcome for result in lane.collect()}
    assert outcomes == {f"e{n}": Outcome.STORED if n < 5 else Outcome.UNKNOWN for n in range(10)}


def test_what_is_unsettled_at_the_close_becomes_unknown_with_what_to_do() -> None:
    publisher = FakePublisher(silent)
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(5, aggregates=1))
        pool.close(0.0)
        results = lane.collect()

    assert [result.event_id for result in results] == [one.event_id for one in envelopes(5)]
    assert {(result.outcome, result.reason) for result in results} == {
        (
            Outcome.UNKNOWN,
            "the pool was closed before it was answered: publish it again with the same event id",
        )
    }
    assert pool.unsettled == 0


def test_who_waits_for_results_gets_them_from_a_pool_that_drains() -> None:
    publisher = FakePublisher(silent)
    pool = AckPool(PoolSettings())
    lane = pool.lane(publisher, name="lane")
    lane.submit(envelopes(5))
    results: list[PublishResult] = []
    waiter = InThread(lambda: results.extend(lane.flush()))
    closer = InThread(lambda: pool.close(20.0))
    until(lambda: pool.state is PoolState.DRAINING)
    publisher.release()

    assert (waiter.end(), closer.end()) == (None, None)
    assert {result.outcome for result in results} == {Outcome.STORED}


def test_closing_twice_at_once_drains_once_and_both_return_when_it_is_done() -> None:
    publisher = FakePublisher(silent)
    pool = AckPool(PoolSettings())
    lane = pool.lane(publisher, name="lane")
    lane.submit(envelopes(5))
    until(lambda: len(publisher.unanswered) == 5)
    first = InThread(lambda: pool.close(20.0))
    until(lambda: pool.state is PoolState.DRAINING)
    second = InThread(lambda: pool.close(0.0))
    publisher.release()

    assert (first.end(), second.end()) == (None, None)
    assert {result.outcome for result in lane.collect()} == {Outcome.STORED}
    assert publisher.closes == 1
    pool.close()


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_a_publisher_that_does_not_close_does_not_keep_the_pool_from_closing(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(FakePublisher):
        async def close(self) -> None:
            if how == "raises":
                raise OSError("no goodbye")
            await asyncio.Event().wait()

    monkeypatch.setattr(pool_module, "CLOSE_SECONDS", 0.2)
    pool = AckPool(PoolSettings())
    stubborn, other = Stubborn(), FakePublisher()
    lanes = [pool.lane(publisher, name="lane") for publisher in (stubborn, other)]
    for lane in lanes:
        lane.submit(envelopes(5))
    pool.close(0.0)

    assert pool.state is PoolState.CLOSED
    assert [len(lane.collect()) for lane in lanes] == [5, 5]
    assert other.closes == 1
    assert pool_threads() == []
    assert any(record.levelno >= logging.ERROR for record in caplog.records)


def test_a_publishers_failure_to_close_with_its_last_lane_is_nobody_elses() -> None:
    class Stubborn(FakePublisher):
        async def close(self) -> None:
            self.closes += 1
            raise OSError("no goodbye")

    stubborn = Stubborn()
    with pooled() as pool:
        other = pool.lane(FakePublisher(), name="other")
        pool.lane(stubborn, name="lane").close()
        until(lambda: stubborn.closes)
        other.submit(envelopes(5))

        assert len(other.flush()) == 5


def test_a_thread_that_cannot_be_ended_is_left_behind_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool_module, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(loop_module, "STOP_SECONDS", 0.1)
    release = threading.Event()
    pool = AckPool(PoolSettings())
    publisher = FakePublisher()
    pool.lane(publisher, name="lane")
    publisher.loop.call_soon_threadsafe(lambda: release.wait(20))
    pool.close(0.0)

    assert any(
        "did not end within 0.1 s and is left behind" in message for message in caplog.messages
    )
    assert pool.state is PoolState.CLOSED
    release.set()
    until(lambda: not pool_threads())


def test_nothing_is_left_behind_however_often_a_pool_runs() -> None:
    before = threading.active_count()
    for number in range(20):
        publisher = FakePublisher(silent if number % 2 else stored)
        pool = AckPool(PoolSettings())
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(100))
        pool.close(0.0)

        assert threading.active_count() == before
        assert publisher.loop.is_closed()
        assert asyncio.all_tasks(publisher.loop) == set()
        assert len(lane.collect()) == 100


def test_a_closing_pool_answers_whoever_is_opening_a_lane() -> None:
    class Hanging(FakePublisher):
        async def start(self, events: object) -> None:
            self.starts += 1
            await asyncio.Event().wait()

    publisher = Hanging()
    pool = AckPool(PoolSettings())
    opener = InThread(lambda: pool.lane(publisher, name="lane"))
    until(lambda: publisher.starts)
    assert pool.statistics()["brokers"] == [], (
        "nothing is told of a connection that does not stand yet"
    )
    pool.close(0.0)

    assert isinstance(opener.end(), PoolClosedError)


# When the pool's thread fails


@pytest.mark.parametrize("waiting_for", ["budget", "flush"])
def test_a_crash_of_the_pools_thread_ends_everybodys_wait(
    waiting_for: str, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = FakePublisher(silent)
    with pooled(budget_messages=10) as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(10))
        until(lambda: len(publisher.unanswered) == 10)
        waiting = InThread(
            lambda: lane.submit(envelopes(25)) if waiting_for == "budget" else lane.flush()
        )
        if waiting_for == "budget":
            until(lambda: pool.statistics()["budget_stalls"])
        publisher.fail_send = RuntimeError("a bug")
        publisher.tell(lambda events: events.disconnected("gone"))
        publisher.tell(lambda events: events.connected())
        error = waiting.end()

        assert isinstance(error, PoolClosedError)
        assert str(error) == (
            "the pool's thread has died of RuntimeError('a bug'): restart the flow, the epoch is replayed"
        )
        assert isinstance(error.__cause__, RuntimeError)
        for use in (
            lambda: lane.submit(envelopes(1)),
            lane.flush,
            lambda: pool.lane(publisher, name="another"),
        ):
            with pytest.raises(PoolClosedError, match="has died of"):
                use()
    assert pool_threads() == []
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # it is what is tested
def test_a_thread_that_ends_by_itself_ends_everybodys_wait() -> None:
    def leave() -> None:
        raise SystemExit

    publisher = FakePublisher(silent)
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(3))
        waiting = InThread(lane.flush)
        publisher.loop.call_soon_threadsafe(leave)

        assert isinstance(waiting.end(), PoolClosedError)
        with pytest.raises(PoolClosedError):
            lane.submit(envelopes(3))
    assert pool.state is PoolState.CLOSED


def test_a_crash_of_an_ack_worker_ends_everybodys_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")

        def broken(task: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(pool._thread.workers, "_settle", broken)
        lane.submit(envelopes(3))
        with pytest.raises(PoolClosedError, match="has died of RuntimeError"):
            lane.flush()


# One a process


def test_a_pool_cannot_be_pickled() -> None:
    with (
        pooled() as pool,
        pytest.raises(TypeError, match="belongs to its process and cannot be pickled"),
    ):
        pickle.dumps(pool)


def test_a_borrowed_pool_is_everybodys_until_the_last_gives_it_back() -> None:
    settings = PoolSettings(ack_workers=2)
    first, second = borrow_pool(settings), borrow_pool(PoolSettings(ack_workers=2))
    lane = first.lane(FakePublisher(), name="lane")
    assert first is second
    give_back_pool()
    lane.submit(envelopes(5))
    assert len(lane.flush()) == 5
    give_back_pool()
    assert first.state is PoolState.CLOSED
    assert pool_threads() == []

    again = borrow_pool(settings)
    try:
        assert again is not first
        assert again.state is PoolState.NEW
    finally:
        give_back_pool()


def test_giving_back_does_not_wait_for_what_nobody_waits_for() -> None:
    pool = borrow_pool(PoolSettings(drain_timeout=1000))
    lane = pool.lane(FakePublisher(silent), name="lane")
    lane.submit(envelopes(5))
    give_back_pool()

    assert pool.state is PoolState.CLOSED
    assert {result.outcome for result in lane.collect()} == {Outcome.UNKNOWN}


def test_a_process_has_no_two_pool_settings() -> None:
    borrow_pool(PoolSettings(ack_workers=2))
    try:
        with pytest.raises(
            PoolClosedError, match="already runs with other settings: give all steps the same"
        ):
            borrow_pool(PoolSettings(ack_workers=3))
    finally:
        give_back_pool()
    borrow_pool(PoolSettings(ack_workers=3))
    give_back_pool()


def test_a_forked_child_is_told_so_and_borrows_a_pool_of_its_own() -> None:
    program = """
        import os, sys, traceback
        from bytewax_jetstream.errors import PoolClosedError
        from bytewax_jetstream.pool import borrow_pool, give_back_pool
        from bytewax_jetstream.settings import PoolSettings
        from tests.support.fake_publisher import FakePublisher
        from tests.unit.pool.test_pool import envelopes

        def refused(use):
            try:
                use()
            except PoolClosedError as error:
                assert f"belongs to process {os.getppid()}: make a new one after a fork" in str(error), error
            else:
                raise AssertionError("a parent's pool was used")

        def in_child():
            refused(lambda: lane.submit(envelopes(1)))
            refused(lambda: parents.lane(FakePublisher(), name="lane"))
            lane.close()
            parents.close()
            own = borrow_pool(PoolSettings())
            assert own is not parents
            own_lane = own.lane(FakePublisher(), name="lane")
            own_lane.submit(envelopes(100))
            assert len(own_lane.flush()) == 100
            give_back_pool()
            assert "closed" in repr(own)

        parents = borrow_pool(PoolSettings())
        lane = parents.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(100))
        assert len(lane.flush()) == 100
        child = os.fork()
        if not child:
            try:
                in_child()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the child failed"
        lane.submit(envelopes(100))
        assert len(lane.flush()) == 100
        give_back_pool()
        print("both went on")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "both went on\n"


# What it tells


def test_it_says_at_the_start_what_it_has_and_when_its_workers_come_and_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "bytewax_jetstream.pool")
    with pooled(ack_workers=2, budget_messages=10, budget_bytes=1000) as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(3))
        lane.flush()

    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said[0] == (
        "INFO", "ACK pool started: 2 ACK workers, budget 10 messages and 1000 bytes, transport fake",
    )  # fmt: skip
    assert said.count(("DEBUG", "ACK worker 0 started")) == 1
    assert said.count(("DEBUG", "ACK worker 1 started")) == 1
    assert said.count(("DEBUG", "ACK worker 0 stopped")) == 1
    assert said.count(("DEBUG", "ACK worker 1 stopped")) == 1
    assert said[-1][0] == "INFO"
    assert said[-1][1].startswith("ACK pool closed: {'stored': 3, ")


def test_statistics_are_a_plain_value() -> None:
    publisher = FakePublisher(
        lambda envelope: stored(envelope) if envelope.topic == "topic" else None
    )
    with pooled(ack_workers=2, budget_messages=100, budget_bytes=1000) as pool:
        assert pool.statistics()["state"] == "new"
        lane = pool.lane(publisher, name="lane")
        lane.submit(
            [*envelopes(3), Envelope("bad", b"", "bad"), Envelope("silent", b"12", "silent")]
        )
        until(lambda: lane.unsettled == 1)
        until(lambda: pool.unsettled == 1)
        statistics = pool.statistics()

        assert (
            json.loads(json.dumps(statistics))
            == statistics
            == {
                "state": "running",
                "ack_workers": 2,
                "budget_messages": 100,
                "budget_bytes": 1000,
                "unsettled_messages": 1,
                "unsettled_bytes": 2,
                "budget_stalls": 0,
                "stored": 3,
                "duplicates": 0,
                "rejected": 1,
                "unknown": 0,
                "brokers": [
                    {
                        "broker": "fake",
                        "lanes": 1,
                        "in_flight": 1,
                        "retries": 0,
                        "late_acks": 0,
                        "batches": 0,
                        "messages_in_batches": 0,
                        "streams_in_doubt": 0,
                        "sends": publisher.sends,
                    }
                ],
            }
        )
    assert pool.statistics()["state"] == "closed"
    assert pool.statistics()["unknown"] == 1


def test_its_repr_tells_its_state() -> None:
    with pooled() as pool:
        assert repr(pool) == "<AckPool new, 0 unsettled, no brokers>"
        lane = pool.lane(FakePublisher(silent), name="lane")
        lane.submit(envelopes(3))
        until(lambda: "3 in flight" in repr(pool))
        assert (
            repr(pool)
            == "<AckPool running, 3 unsettled, <Dispatch connected, 3 in flight, 0 backing off, 1 lanes>>"
        )
        assert repr(lane) == "<Lane 'lane', 3 unsettled, 0 deliveries>"


def test_it_closes_at_the_end_of_a_with_block() -> None:
    with AckPool(PoolSettings()) as pool:
        lane: Lane = pool.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(3))

    assert pool.state is PoolState.CLOSED
    assert len(lane.collect()) == 3
