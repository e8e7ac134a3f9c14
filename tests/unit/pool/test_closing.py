"""The pool's life, and the order in which it ends."""

import asyncio
import logging
import threading

import pytest

from bytewax_jetstream import loop_thread as loop_module
from bytewax_jetstream.envelope import Outcome, PublishResult
from bytewax_jetstream.errors import PoolClosedError
from bytewax_jetstream.pool import AckPool, Lane, PoolState
from bytewax_jetstream.pool import ack_pool as pool_module
from bytewax_jetstream.settings import PoolSettings
from tests.support.fake_publisher import FakePublisher, silent, stored
from tests.support.pooling import InThread, envelopes, pool_threads, pooled
from tests.support.waiting import until


def test_pool_is_new_then_running_then_closed() -> None:
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


def test_unused_pool_closes_without_starting() -> None:
    pool = AckPool(PoolSettings())
    pool.close()
    pool.close()

    assert pool.state is PoolState.CLOSED


def test_pool_closes_at_the_end_of_a_with_block() -> None:
    with AckPool(PoolSettings()) as pool:
        lane: Lane = pool.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(3))

    assert pool.state is PoolState.CLOSED
    assert len(lane.collect()) == 3


def test_drain_has_a_fixed_order(caplog: pytest.LogCaptureFixture) -> None:
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
    # 1. The pool takes no more envelopes.
    with pytest.raises(
        PoolClosedError, match=r"^the pool is draining: it takes no envelopes any more$"
    ):
        lane.submit(envelopes(1))
    # 2. It waits for what is unsettled.
    publisher.answer = lambda envelope: stored(envelope) if envelope.event_id < "e5" else None
    publisher.loop.call_soon_threadsafe(publisher._answer_unanswered)
    until(lambda: lane.unsettled == 5)
    assert publisher.closes == 0
    # 3. What is left at the deadline becomes unknown. 4. The ACK workers settle it and stop.
    # 5. The publishers close.
    assert closer.end() is None
    assert seen == [
        ("state", PoolState.DRAINING),
        ("unsettled", 0),
        ("ACK workers stopped", 3),
        ("thread alive", True),
    ]
    # 6. The thread ends.
    assert not pool._thread._loop_thread.alive
    outcomes = {result.event_id: result.outcome for result in lane.collect()}
    assert outcomes == {f"e{n}": Outcome.STORED if n < 5 else Outcome.UNKNOWN for n in range(10)}


def test_unsettled_envelopes_become_unknown_at_the_close_with_what_to_do() -> None:
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


def test_close_waits_no_longer_than_the_deadline_of_a_lane() -> None:
    """After a second signal, whose deadline is over, the exit of the program does not drain."""
    publisher = FakePublisher(silent)
    pool = AckPool(PoolSettings(drain_timeout=1_000))
    passed = threading.Event()
    lane = pool.lane(
        publisher, name="lane", deadline=lambda: 0.0 if passed.is_set() else float("inf")
    )
    lane.submit(envelopes(3))
    until(lambda: len(publisher.unanswered) == 3)
    passed.set()

    assert InThread(pool.close).end() is None
    assert {result.outcome for result in lane.collect()} == {Outcome.UNKNOWN}


def test_waiting_flush_gets_its_results_from_a_draining_pool() -> None:
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


def test_two_closes_at_once_drain_once_and_both_return_when_it_is_done() -> None:
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
def test_publisher_that_does_not_close_does_not_keep_the_pool_open(
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


def test_publisher_that_fails_to_close_does_not_harm_another_lane() -> None:
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


def test_thread_that_does_not_end_is_left_behind_and_logged(
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


@pytest.mark.alone
def test_pool_leaves_no_thread_and_no_task_however_often_it_runs() -> None:
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


def test_closing_pool_raises_to_whoever_is_opening_a_lane() -> None:
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
