"""`AckPool`: what users call: opens lanes, counts, drains and closes; the rest is in `pool_thread`.

One thread, one budget and one set of ACK workers serve all lanes and brokers:

    producer threads                        pool thread (one event loop)
    Lane.submit ── one hand-over a piece ─► Dispatch ─► Publisher.send ─► broker
    Lane.collect ◄─ mailbox ◄─ ACK workers ◄─ answered tasks ◄─ answers ◄──┘

It knows no broker and no Bytewax; what is sent when is decided in `dispatch`. The pool is new,
running, draining or closed. The order of the drain is fixed: nothing more is taken; what is
unsettled is waited for; what is left at the deadline is settled as unknown; the ACK workers settle
every answered task and stop; the publishers close; the thread ends.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Self
from weakref import WeakSet

from ..publishing import Publisher
from ..settings import PoolSettings
from .intake import PoolState
from .lane import Lane
from .pool_thread import PoolThread

__all__ = ["AckPool"]

log = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
"""For closing the publishers, after the drain."""


class AckPool:
    """Publishes envelopes and says what became of each; one a process, shared by all lanes and
    brokers.

    Started on first use, never pickled, not usable in a forked child. Use it as a context manager,
    or call `close`:

        with AckPool() as pool:
            lane = pool.lane(JetStreamPublisher(JetStreamSettings()), name="orders")
            lane.submit([Envelope("orders.new", b"{}", event_id="order-1")])
            for result in lane.flush():
                print(result.outcome, result.sequence)
    """

    live: ClassVar["WeakSet[AckPool]"] = WeakSet()
    """All pools of this process that were not collected; what an exit has to settle."""

    def __init__(self, settings: PoolSettings | None = None) -> None:
        self.settings = settings or PoolSettings()
        self._thread = PoolThread(self.settings)
        self._intake = self._thread.intake
        self._lock = threading.Lock()
        self._closers = threading.RLock()
        self.live.add(self)

    def __repr__(self) -> str:
        brokers = ", ".join(repr(each.dispatch) for each in self._thread.publishers())
        return f"<AckPool {self.state}, {self.unsettled} unsettled, {brokers or 'no brokers'}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "an AckPool belongs to its process and cannot be pickled: make one where it is used"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def state(self) -> PoolState:
        """New, running, draining or closed."""
        return self._intake.state

    @property
    def unsettled(self) -> int:
        """How many envelopes were accepted, over all lanes, and have no result yet."""
        return self._intake.budget.used_messages

    @property
    def failure(self) -> str | None:
        """Why its thread has ended while the pool was running; None while it has not. Nothing is
        settled any more then, and only a new process helps.
        """
        return self._thread.failure if self.state is PoolState.RUNNING else None

    def lane(
        self,
        publisher: Publisher,
        *,
        name: str,
        step: str = "",
        worker: int = 0,
        deadline: Callable[[], float] = lambda: float("inf"),
    ) -> Lane:
        """Open an ordered queue to a broker; the first one connects, and makes or checks streams.

        :arg publisher: Publishers of equal settings share the first one's connection.
        :arg name: Shown in logs, errors and checkpoints.
        :arg step: The dataflow step that the metrics name.
        :arg worker: The dataflow worker that results and metrics name.
        :arg deadline: By when (`time.monotonic`) waits of this lane must end, whatever is
            unsettled then.
        :raises ConnectError: when the broker cannot be used within its connect timeout.
        :raises StreamError: when a stream or topic is not what the settings require.
        :raises PoolClosedError: when the pool is draining, closed, or of another process.
        """
        self._start(publisher.broker)
        return self._thread.open_lane(publisher, name, step, worker, deadline)

    def statistics(self) -> dict[str, Any]:
        """State, sizes and counters as a plain value, taken without stopping anything."""
        budget = self._intake.budget
        return {
            "state": str(self.state),
            "ack_workers": len(self._thread.workers),
            "budget_messages": budget.messages,
            "budget_bytes": budget.bytes,
            "unsettled_messages": budget.used_messages,
            "unsettled_bytes": budget.used_bytes,
            "budget_stalls": budget.stalls,
            **self._thread.workers.counts,
            "brokers": [publisher.statistics() for publisher in self._thread.publishers()],
        }

    def close(self, drain: float | None = None) -> None:
        """Settle what is unsettled, then stop; may be called any number of times.

        Returns within `drain` seconds and a little, and waits no longer than the first deadline of
        an open lane: after a second signal it does not wait at all.

        :arg drain: Seconds to wait for what is unsettled, default the settings' drain timeout;
            what is left then gets an unknown result.
        """
        if not self._intake.is_own_process:
            return
        with self._closers:  # a second caller returns when the first is done
            with self._lock:
                before = self.state
                if before is PoolState.CLOSED:
                    return
                self._intake.state = PoolState.DRAINING
            if before is PoolState.RUNNING:
                self._drain_within(self.settings.drain_timeout if drain is None else drain)
            self._thread.stop()
            self._intake.state = PoolState.CLOSED

    def _start(self, broker: str) -> None:
        if not self._intake.is_own_process:
            self._intake.check()  # before the lock: another thread may have held it at the fork
        with self._lock:
            if self.state is PoolState.NEW:
                self._intake.state = PoolState.RUNNING
                self._thread.start(broker)
        self._intake.check()

    def _drain_within(self, seconds: float) -> None:
        try:
            left = self._thread.deadline() - time.monotonic()
            self._thread.drain(max(0.0, min(seconds, left)), CLOSE_SECONDS)
        except TimeoutError:
            log.error("the pool did not drain within %g s: what was unsettled is unknown", seconds)
        except Exception as error:
            log.error("the pool could not drain (%r): what was unsettled is unknown", error)
