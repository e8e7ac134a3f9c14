"""When the pool's thread or an ACK worker fails, nobody waits any longer."""

import logging

import pytest

from bytewax_jetstream.errors import PoolClosedError
from bytewax_jetstream.pool import PoolState
from tests.support.fake_publisher import FakePublisher, silent
from tests.support.pooling import InThread, envelopes, pool_threads, pooled
from tests.support.waiting import until


@pytest.mark.parametrize("waiting_for", ["budget", "flush"])
def test_crash_of_the_pool_thread_ends_every_wait(
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
            "the pool's thread has died of RuntimeError('a bug'): "
            "restart the flow, the epoch is replayed"
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


# The warning says what the test does on purpose.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_pool_thread_that_ends_by_itself_ends_every_wait() -> None:
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


def test_crash_of_an_ack_worker_ends_every_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")

        def broken(task: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(pool._thread.workers, "_settle", broken)
        lane.submit(envelopes(3))
        with pytest.raises(PoolClosedError, match="has died of RuntimeError"):
            lane.flush()
