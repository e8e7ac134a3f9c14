"""The ACK workers: a fixed number of tasks that turn answers into results."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine

from .budget import Budget
from .results import results_of, waits
from .shared_publisher import AckTask

__all__ = ["AckWorkers"]

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[object, object, None], str], "asyncio.Task[None]"]


class AckWorkers:
    """Settle answered tasks, deliver the results and give the budget back.

    A worker never waits for a broker, so a silent broker cannot use the workers up.
    """

    def __init__(self, number: int, budget: Budget) -> None:
        self._number = number
        self._budget = budget
        self._queue: asyncio.Queue[AckTask | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self.counts = dict.fromkeys(("stored", "duplicates", "rejected", "unknown"), 0)
        """Results by outcome, for the pool's life."""

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def put(self) -> Callable[[AckTask], None]:
        """Takes a task to settle; it never waits."""
        return self._queue.put_nowait

    def start(self, spawn: Spawn) -> None:
        """Start them, on the pool's thread."""
        self._tasks = [spawn(self._work(n), f"ack-worker-{n}") for n in range(self._number)]

    async def stop(self) -> None:
        """Settle every task that is queued, then end."""
        for _ in self._tasks:
            self._queue.put_nowait(None)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, number: int) -> None:
        log.debug("ACK worker %d started", number)
        while (task := await self._queue.get()) is not None:
            self._settle(task)
        log.debug("ACK worker %d stopped", number)

    def _settle(self, task: AckTask) -> None:
        mailbox, broker, settled, at, window = task
        delivery, stop, unknown, size = results_of(settled, broker, at, mailbox.worker, window)
        oks, errs = delivery.oks, delivery.errs
        counts = self.counts
        counts["stored"] += len(oks)
        counts["duplicates"] += delivery.duplicates
        counts["rejected"] += len(errs) - unknown
        counts["unknown"] += unknown
        if mailbox.counts is not None:
            # Before anybody has the results, so that the metrics never lag behind them.
            now = time.monotonic()
            mailbox.counts.settled(
                len(oks), delivery.duplicates, len(errs) - unknown, unknown, waits(settled, now)
            )
        mailbox.deliver(delivery, stop)
        self._budget.release(len(oks) + len(errs), size)
