"""Liveness fails only for what a restart fixes."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from bytewax_jetstream.drain import drain_on_signal
from bytewax_jetstream.pool import AckPool
from bytewax_jetstream.runner.liveness import Liveness
from bytewax_jetstream.settings import PoolSettings
from tests.support.fake_publisher import FakePublisher
from tests.support.waiting import until


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


class _Stuck(FixedPartitionedSource[int, None]):
    """A source of the user's that does not come back."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait = wait

    def list_parts(self) -> list[str]:
        return ["only"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_StuckPart":
        return _StuckPart(self._wait)


class _StuckPart(StatefulSourcePartition[int, None]):
    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait = wait

    def next_batch(self) -> list[int]:
        self._wait()
        return []

    def snapshot(self) -> None:
        return None


@pytest.mark.parametrize("waits_in", ["C", "Python's library"])
def test_a_source_that_hangs_below_our_own_code_is_stuck(waits_in: str) -> None:
    release = threading.Event()
    waits: dict[str, Callable[[], object]] = {
        "C": lambda: time.sleep(2),
        "Python's library": lambda: release.wait(2),
    }
    liveness = Liveness(stuck_seconds=60)
    part = drain_on_signal(_Stuck(waits[waits_in])).build_part("in", "only", None)  # type: ignore[attr-defined]
    with _engine(liveness, part.next_batch):
        until(lambda: "next_batch" in _calls_below())
        liveness.look(100.0)
        assert any("in one call for 900 s" in each for each in liveness.complaints(1_000.0))
        release.set()
    part.close()


def _calls_below() -> set[str]:
    """The names of all functions that run on any thread."""
    names = set()
    for frame in sys._current_frames().values():
        at: FrameType | None = frame
        while at is not None:
            names.add(at.f_code.co_name)
            at = at.f_back
    return names
