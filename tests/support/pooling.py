"""Pools, threads and envelopes for tests of the pool with a broker inside the process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.pool import AckPool
from bytewax_jetstream.settings import PoolSettings
from tests.support.waiting import PATIENCE

__all__ = ["InThread", "envelopes", "held_up", "pool_threads", "pooled"]


def envelopes(
    count: int, *, aggregates: int = 0, size: int = 1, prefix: str = "e"
) -> list[Envelope]:
    """Envelopes `e0`, `e1` and so on; with aggregates `a0`, `a1` and so on by turns, or without."""
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
    """A pool; at the end nothing is waited for."""
    pool = AckPool(PoolSettings(**settings))
    try:
        yield pool
    finally:
        pool.close(0.0)


@contextmanager
def held_up(pool: AckPool) -> Iterator[None]:
    """Keep the pool's thread from accepting anything meanwhile."""
    go_on = threading.Event()
    pool._thread._loop_thread.call(lambda: go_on.wait(PATIENCE))
    try:
        yield
    finally:
        go_on.set()


class InThread(threading.Thread):
    """Calls a function in another thread, and keeps what it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        """Wait for its end; what it raised, if it did."""
        self.join(PATIENCE)
        assert not self.is_alive(), "hangs"
        return self.error


def pool_threads() -> list[threading.Thread]:
    """The threads of all pools that run."""
    return [
        thread for thread in threading.enumerate() if thread.name.startswith("bytewax_jetstream")
    ]
