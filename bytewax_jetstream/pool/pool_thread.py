"""`PoolThread`: the event loop of the pool; opens and closes publishers and lanes, and drains."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Iterator
from math import inf

from ..dispatch import LaneQueue
from ..errors import ConnectError, PoolClosedError
from ..loop_thread import LoopThread
from ..metrics import Sample, lane_counts, retire, table, watch
from ..publishing import Publisher
from ..settings import PoolSettings
from .ack_workers import AckWorkers
from .intake import Intake
from .lane import Lane
from .mailbox import Mailbox
from .shared_publisher import SharedPublisher

__all__ = ["PoolThread"]

log = logging.getLogger(__name__)

LOOK_AGAIN = 0.001
"""Seconds for which what is handed over gathers while answers are awaited anyway."""
DRAIN_POLL = 0.005
OPEN_SECONDS = 120.0
"""For opening a lane, whatever the settings allow: then the thread is stuck."""


class PoolThread:
    """Everything that runs on the pool's thread, and the calls by which other threads reach it."""

    def __init__(self, settings: PoolSettings) -> None:
        self._loop_thread = LoopThread("bytewax_jetstream-pool")
        self.intake = Intake(settings, self._loop_thread, self._look)
        self.workers = AckWorkers(settings.ack_workers, self.intake.budget)
        self._publishers: dict[Hashable, SharedPublisher] = {}
        self._lanes: dict[LaneQueue, Lane] = {}
        """The lanes that are open."""
        self._closing: list[asyncio.Task[None]] = []
        self._next_look: asyncio.TimerHandle | None = None

    # From any thread

    def start(self, broker: str) -> None:
        """Start the thread and the ACK workers."""
        self._loop_thread.start()
        watch(self)
        self._loop_thread.call(lambda: self._start_workers(broker))

    def stop(self) -> None:
        """End the thread; bounded. What was counted stays in the metrics."""
        self._loop_thread.stop()
        for shared in list(self._publishers.values()):  # if the drain did not close them
            retire(shared)
        retire(self)

    @property
    def failure(self) -> str | None:
        """Why the thread has ended, in words; None while it runs."""
        crash = self._loop_thread.crash
        if crash is not None:
            return repr(crash)
        return None if self._loop_thread.alive else "it has ended"

    def publishers(self) -> list[SharedPublisher]:
        """Those that have started."""
        every = list(self._publishers.values())
        return [each for each in every if each.ready is not None and each.ready.done()]

    def deadline(self) -> float:
        """When the first open lane must end its waits (`time.monotonic`); infinite without one."""
        lanes = [lane for lane in list(self._lanes.values()) if not lane.closed]
        return min([lane.deadline() for lane in lanes], default=inf)

    def open_lane(
        self,
        publisher: Publisher,
        name: str,
        step: str,
        worker: int,
        deadline: Callable[[], float],
    ) -> Lane:
        """Open a lane, connecting its publisher when it is the first."""
        counts = lane_counts(publisher.broker, step, worker)
        opening = self._open_lane(publisher, name, Mailbox(worker, counts), deadline)
        try:
            return self._loop_thread.run(opening, OPEN_SECONDS)
        except TimeoutError:
            raise ConnectError(
                f"opening a connection took longer than {OPEN_SECONDS:g} s: "
                "check that the broker answers",
                broker=publisher.broker,
                seconds=OPEN_SECONDS,
            ) from None

    def samples(self) -> Iterator[Sample]:
        """What is told of the pool and its brokers when somebody scrapes."""
        budget = self.intake.budget
        yield Sample(table.UNSETTLED_MESSAGES, (), budget.used_messages)
        yield Sample(table.UNSETTLED_BYTES, (), budget.used_bytes)
        yield Sample(table.BUDGET_MESSAGES, (), budget.messages)
        yield Sample(table.BUDGET_BYTES, (), budget.bytes)
        yield Sample(table.BUDGET_STALLS, (), budget.stalls)
        now = time.monotonic()
        for broker, since in self.intake.oldest().items():
            yield Sample(table.OLDEST_UNSETTLED, (broker,), now - since)

    def drain(self, seconds: float, patience: float) -> None:
        """Settle what is unsettled, as unknown after so many seconds, and close all publishers.

        :arg patience: Seconds for closing them.
        :raises TimeoutError: when the thread did not get through.
        """
        self._loop_thread.run(self._drain(seconds), seconds + patience)

    # On the pool's thread

    def _start_workers(self, broker: str) -> None:
        self.workers.start(self._loop_thread.create_task)
        log.info(
            "ACK pool started: %d ACK workers, budget %d messages and %d bytes, transport %s",
            len(self.workers),
            self.intake.budget.messages,
            self.intake.budget.bytes,
            broker,
        )

    def _look(self) -> None:
        """Accept what was handed over, act, and look again while anything is in flight."""
        more = self.intake.accept()
        for publisher in list(self._publishers.values()):
            publisher.act()
        if self._next_look is not None:
            self._next_look.cancel()
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(0 if more else LOOK_AGAIN, self._look)
        self._idle()

    def _idle(self) -> None:
        """If nothing is in flight, stop looking: a hand-over wakes this thread at once."""
        if len(self.intake) or any(p.dispatch.in_flight for p in self._publishers.values()):
            return
        if self.intake.go_idle() and self._next_look is not None:
            self._next_look.cancel()

    async def _open_lane(
        self, publisher: Publisher, name: str, mailbox: Mailbox, deadline: Callable[[], float]
    ) -> Lane:
        shared = await self._open(publisher)
        queue = shared.add_lane(mailbox)

        def leave() -> None:
            with contextlib.suppress(PoolClosedError):  # closed meanwhile, and the lane with it
                self._loop_thread.call(lambda: self._leave(shared, queue))

        lane = Lane(name, self.intake, shared, queue, mailbox, deadline=deadline, on_close=leave)
        self._lanes[queue] = lane
        return lane

    async def _open(self, publisher: Publisher) -> SharedPublisher:
        shared = self._publishers.get(publisher.identity)
        if shared is None:
            shared = SharedPublisher(publisher, self.workers.put, self._idle)
            self._publishers[publisher.identity] = shared
            shared.ready = asyncio.create_task(publisher.start(shared))
        assert shared.ready is not None
        shared.users += 1
        try:
            await asyncio.shield(shared.ready)
            watch(shared)
        except BaseException:
            shared.users -= 1
            if self._publishers.get(publisher.identity) is shared:
                del self._publishers[publisher.identity]
                await shared.close()
            raise
        return shared

    def _leave(self, shared: SharedPublisher, queue: LaneQueue) -> None:
        """A lane was closed; with its last lane a publisher closes."""
        self.intake.accept_all()
        del self._lanes[queue]
        shared.remove_lane(queue)
        shared.users -= 1
        identity = shared.publisher.identity
        if not shared.users and identity in self._publishers:
            del self._publishers[identity]
            self._closing = [task for task in self._closing if not task.done()]
            closing = self._loop_thread.create_task(shared.close(), "close-publisher")
            self._closing.append(closing)

    async def _drain(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        budget = self.intake.budget
        # Polled: the budget is given back under a lock of the producers, not an event of this loop.
        while budget.used_messages and time.monotonic() < until and not self._loop_thread.crash:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL)
        for lane in self._lanes.values():
            lane.finish_hand_over()
        self.intake.accept_all()
        for shared in self._publishers.values():
            shared.abandon(
                "the pool was closed before it was answered: publish it again with the same "
                "event id"
            )
        await self.workers.stop()
        await asyncio.gather(*(shared.close() for shared in self._publishers.values()))
        self._publishers.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)
        log.info("ACK pool closed: %s", self.workers.counts)
