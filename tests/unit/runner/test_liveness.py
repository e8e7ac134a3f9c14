"""Liveness fails only for what a restart fixes."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bytewax_jetstream.pool import AckPool
from bytewax_jetstream.runner.liveness import Liveness
from bytewax_jetstream.settings import PoolSettings
from tests.support.fake_publisher import FakePublisher


@contextmanager
def _engine(liveness: Liveness, call: Callable[[], object]) -> Iterator[None]:
    """Run a call as a worker does: on a thread of the engine, below the frame that began it."""
    began, release = threading.Event(), threading.Event()

    def engine() -> None:
        liveness.engine_starts()
        _call_of_the_flow(call, began, release)

    thread = threading.Thread(target=engine)
    thread.start()
    began.wait(10)
    try:
        yield
    finally:
        release.set()
        thread.join()


def _call_of_the_flow(
    call: Callable[[], object], began: threading.Event, release: threading.Event
) -> None:
    began.set()
    call()
    release.wait(60)


@pytest.fixture(autouse=True)
def _every_thread_is_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytewax_jetstream.runner.liveness._is_worker", lambda thread: True)


def test_a_worker_in_one_call_for_too_long_is_stuck_and_the_place_is_named() -> None:
    liveness = Liveness(stuck_seconds=60)
    with _engine(liveness, lambda: None):
        liveness.look(100.0)
        assert not _of_threads(liveness, 159.0)
        liveness.look(159.0)
        (complaint,) = _of_threads(liveness, 161.0)

    assert "in one call for 61 s" in complaint


def test_another_call_begins_to_count_anew() -> None:
    liveness = Liveness(stuck_seconds=60)
    with _engine(liveness, lambda: None):
        liveness.look(100.0)
    with _engine(liveness, lambda: None):
        liveness.look(159.0)
        assert not _of_threads(liveness, 161.0)


def _of_threads(liveness: Liveness, now: float) -> list[str]:
    return [
        each for each in liveness.complaints(now) if "_call_of_the_flow" in each or "wait" in each
    ]


def test_a_wait_of_this_package_is_not_stuck() -> None:
    pool = AckPool(PoolSettings(drain_timeout=1))
    liveness = Liveness(stuck_seconds=60)
    lane = pool.lane(FakePublisher(), name="lane")
    waiting = lambda: lane.wait(0, time.monotonic() + 2)  # noqa: E731
    with pool, _engine(liveness, waiting):
        liveness.look(100.0)
        frames = sys._current_frames()
        assert frames
        assert not _of_threads(liveness, 1_000.0)


def test_a_dead_pool_thread_is_a_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    liveness = Liveness()
    with AckPool() as pool:
        pool.lane(FakePublisher(), name="lane")
        assert not liveness.complaints(time.monotonic())
        monkeypatch.setattr(type(pool._thread), "failure", "MemoryError()")
        assert any("MemoryError" in each for each in liveness.complaints(time.monotonic()))
