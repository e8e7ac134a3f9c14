"""The shared ACK pool: one thread, one budget and one set of ACK workers for all lanes and brokers.

    producer threads                      pool thread (one event loop)
    Lane.submit ── one hand-off a batch ─► Dispatch ─► Publisher.send ─► broker
    Lane.collect ◄─ mailbox ◄─ ACK workers ◄─ answered tasks ◄─ answers ◄──┘

It knows no broker and no Bytewax; what is sent when is decided in `dispatch`. States: new, running,
draining, closed. The drain order is fixed: admission stops; what is out is waited for; what is left
by the deadline is settled as unknown; the ACK workers settle every answered task and stop;
publishers close; the thread ends.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Sequence
from enum import StrEnum
from random import Random
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, TypeVar
from weakref import WeakSet

from ..dispatch.dispatch import Dispatch
from ..dispatch.flight import Ended, LaneQueue
from ..envelope import Envelope
from ..errors import ConnectError, PoolClosedError
from ..loop_thread import LoopThread
from ..publishing.answers import Receipt, Refusal
from ..publishing.publisher import Publisher
from ..settings import PoolSettings
from .lane import PIECE, Budget, Lane
from .results import reckon

__all__ = ["AckPool", "PoolState"]

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_AT_ONCE = 4_000
"""Messages the pool's thread takes in before it reads answers again."""
LOOK_AGAIN = 0.001
"""Seconds for which what is handed over gathers while answers are awaited anyway."""


class PoolState(StrEnum):
    """What an `AckPool` does: only a running one takes envelopes."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    CLOSED = "closed"


class AckTask(NamedTuple):
    """Envelopes of a lane whose answers have come, for an ACK worker to settle."""

    lane: Lane
    broker: str
    ended: list[Ended]
    at: float


class _Link:
    """One publisher in the pool: passes what it reports to its dispatch, and flights back to it."""

    def __init__(self, pool: "AckPool", publisher: Publisher) -> None:
        self.publisher = publisher
        self.lanes = 0
        self.failure: str | None = None
        self.ready: asyncio.Task[None] | None = None
        self._pool = pool
        self._timer: asyncio.TimerHandle | None = None
        policy = publisher.policy
        self.gathers = not policy.atomic
        """Whether what is handed over one behind the other may be taken for one hand-over; a group
        would be another.
        """
        self.dispatch = Dispatch(policy, publisher.prepare, Random(), publisher.route)

    # PublisherEvents

    def connected(self) -> None:
        self.dispatch.connected()
        self.turn()

    def disconnected(self, reason: str) -> None:
        log.warning(
            "%s: %s; %d envelopes are tried again",
            self.publisher.broker,
            reason,
            self.dispatch.traffic.out,
        )
        self.dispatch.disconnected(reason)
        self.turn()

    def acked(self, flight: int, index: int, receipt: Receipt) -> None:
        self.dispatch.acked(flight, index, receipt)

    def acked_all(self, acks: Sequence[tuple[int, int, Receipt]]) -> None:
        self.dispatch.acked_all(acks)

    def stored_through(self, flight: int, places: int) -> None:
        self.dispatch.stored_through(flight, places)

    def ended(self, flight: int, places: int) -> None:
        self.dispatch.ended(flight, places, time.monotonic())

    def returned(self, flight: int, places: int, *, duplicate: bool | None = None) -> None:
        self.dispatch.returned(flight, places, duplicate=duplicate)

    def refused(self, flight: int, index: int, refusal: Refusal) -> None:
        self.dispatch.refused(flight, index, refusal, time.monotonic())

    def refused_topic(self, topic: str, refusal: Refusal) -> None:
        for flight, index in self.dispatch.out_on(topic):
            self.refused(flight, index, refusal)

    def envelopes(self, flight: int, index: int) -> Sequence[Envelope]:
        return self.dispatch.envelopes(flight, index)

    def failed(self, reason: str) -> None:
        log.error("%s: %s", self.publisher.broker, reason)
        self.failure = reason
        self.dispatch.abandon(reason)
        self.turn()

    def turn(self) -> None:
        """Act on what the broker said; what was handed over meanwhile gathers until the pool's next
        look.
        """
        self.act()
        self._pool.rest()

    def act(self) -> None:
        """Send what may be sent, hand on what is settled, and come back when something is due."""
        now = time.monotonic()
        while (flight := self.dispatch.next_flight(now)) is not None:
            self.publisher.send(flight)
        for lane, settled in self.dispatch.take_settled():
            self._pool.tasks.put_nowait(AckTask(lane.owner, self.publisher.broker, settled, now))
        due = self.dispatch.next_tick()
        if self._timer is None or due < self._timer.when() - 0.001:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            if due != float("inf"):
                self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self._tick)

    def accept(self, lane: LaneQueue, envelopes: Sequence[Envelope], epoch: int) -> None:
        now = time.monotonic()
        self.dispatch.submit(lane, envelopes, epoch, now)
        if self.failure is not None:
            self.dispatch.abandon(self.failure)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self.publisher.close()
        except Exception:
            log.exception("%s: closing failed", self.publisher.broker)

    def _tick(self) -> None:
        self._timer = None
        self.dispatch.tick(time.monotonic())
        self.turn()


class AckPool:
    """Publishes envelopes and says what became of each; one a process, shared by all lanes and
    brokers.

    Started on first use, never pickled, not usable in a forked child (which gets a fresh one from
    `borrow`). Use it as a context manager, or call `close`:

        with AckPool() as pool:
            lane = pool.lane(JetStreamPublisher(JetStreamSettings()), name="orders")
            lane.submit([Envelope("orders.new", b"{}", event_id="order-1")])
            for result in lane.flush():
                print(result.outcome, result.sequence)
    """

    _live: ClassVar["WeakSet[AckPool]"] = WeakSet()
    _shared: ClassVar["AckPool | None"] = None
    _borrowers: ClassVar[int] = 0
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: PoolSettings | None = None) -> None:
        self.settings = settings or PoolSettings()
        self.budget = Budget(self.settings.budget_messages, self.settings.budget_bytes)
        self.state = PoolState.NEW
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closers = threading.RLock()
        self._thread = LoopThread("bytewax_jetstream-pool")
        self._links: dict[Hashable, _Link] = {}
        self._inbox: deque[tuple[_Link, LaneQueue, Sequence[Envelope], int]] = deque()
        self._looking = False
        """Whether the pool's thread will look at the inbox by itself."""
        self._next_look: asyncio.TimerHandle | None = None
        self.tasks: asyncio.Queue[AckTask | None] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._closing: list[asyncio.Task[None]] = []
        self._counts = dict.fromkeys(("stored", "duplicates", "rejected", "unknown"), 0)
        self._live.add(self)

    def __repr__(self) -> str:
        brokers = ", ".join(repr(link.dispatch) for link in self._links.values())
        return f"<AckPool {self.state}, {self.budget.used_messages} unsettled, {brokers or 'no brokers'}>"

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

    # For everybody in the process

    @classmethod
    def borrow(cls, settings: PoolSettings) -> "AckPool":
        """The process's shared pool, made at the first call; to be given back.

        :raises PoolClosedError: when it runs with other settings: a process has one pool.
        """
        with cls._shared_lock:
            if cls._shared is None:
                cls._shared = cls(settings)
            elif cls._shared.settings != settings:
                raise PoolClosedError(
                    "this process's pool already runs with other pool settings: give all steps the same "
                    f"PoolSettings (it has {cls._shared.settings!r}, asked was {settings!r})"
                )
            cls._borrowers += 1
            return cls._shared

    @classmethod
    def give_back(cls) -> None:
        """Let go of the shared pool; the last one closes it, without waiting for what nobody waits
        for.
        """
        with cls._shared_lock:
            cls._borrowers -= 1
            if cls._borrowers or cls._shared is None:
                return
            pool, cls._shared = cls._shared, None
        pool.close(0.0)

    @classmethod
    def forget_after_fork(cls) -> None:
        """In a forked child: the parent's pool has no thread here, so the next borrower makes
        another.
        """
        cls._shared, cls._borrowers, cls._shared_lock = None, 0, threading.Lock()
        cls._live = WeakSet()

    @classmethod
    def settle_at_exit(cls) -> None:
        """A program that ends without closing its pool must not lose what is in flight, or end as
        if all were well.
        """
        unknown = 0
        for pool in [pool for pool in cls._live if pool.budget.used_messages]:
            log.warning(
                "the program ends with %d envelopes in flight: close the pool",
                pool.budget.used_messages,
            )
            before = pool.statistics()["unknown"]
            pool.close()
            unknown += pool.statistics()["unknown"] - before + pool.budget.used_messages
        if unknown:
            log.critical(
                "%d envelopes may not be stored: publish them again with the same event ids",
                unknown,
            )
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # nothing else sets an exit code here

    # For users of one pool

    def lane(
        self,
        publisher: Publisher,
        *,
        name: str,
        worker: int = 0,
        deadline: Callable[[], float] = lambda: float("inf"),
    ) -> Lane:
        """Open an ordered queue to a broker; connects, and makes or checks streams, when it is the
        first.

        :arg publisher: Publishers of equal settings share the first one's connection.
        :arg name: Shown in logs, results and checkpoints.
        :arg deadline: Says by when (`time.monotonic`) waits of this lane must end, whatever is
        unsettled then.
        :raises ConnectError: when the broker cannot be used within its connect timeout.
        :raises StreamError: when a stream or topic is not what the settings ask.
        """
        self._start(publisher.broker)
        return self.run(self._open_lane(publisher, name, worker, deadline), "opening a connection")

    def statistics(self) -> dict[str, Any]:
        """State, sizes and counters as a plain value, taken without stopping anything."""
        return {
            "state": str(self.state),
            "ack_workers": len(self._workers),
            "budget_messages": self.budget.messages,
            "budget_bytes": self.budget.bytes,
            "unsettled_messages": self.budget.used_messages,
            "unsettled_bytes": self.budget.used_bytes,
            "budget_stalls": self.budget.stalls,
            **self._counts,
            "brokers": [
                {
                    "broker": link.publisher.broker,
                    "lanes": link.lanes,
                    **link.dispatch.traffic.statistics(),
                    **link.publisher.statistics(),
                }
                for link in list(self._links.values())
                if link.ready is not None and link.ready.done()
            ],
        }

    def close(self, drain: float | None = None) -> None:
        """Stop in the fixed order; returns within `drain` seconds and a little, called any number
        of times.

        :arg drain: Seconds to wait for what is unsettled, default the drain timeout; what is left
            then gets an unknown result.
        """
        if os.getpid() != self._pid:
            return
        with self._closers:  # who comes second returns when the first is done
            with self._lock:
                before = self.state
                if before is PoolState.CLOSED:
                    return
                self.state = PoolState.DRAINING
            if before is PoolState.RUNNING:
                self._drain_within(self.settings.drain_timeout if drain is None else drain)
            self._thread.stop()
            self.state = PoolState.CLOSED

    def _drain_within(self, seconds: float) -> None:
        try:
            self._thread.run(self._drain(seconds), seconds + CLOSE_SECONDS)
        except TimeoutError:
            log.error(
                "the pool did not drain within %g s; what it had unsettled is unknown", seconds
            )
        except Exception as error:
            log.error("the pool could not drain (%r); what it had unsettled is unknown", error)

    def check(self, *, settling: bool = False) -> None:
        """Raise when this pool takes nothing any more or, with `settling`, cannot even settle what
        it has.
        """
        working = self.state is PoolState.RUNNING or (settling and self.state is PoolState.DRAINING)
        if working and self._thread.crash is None and self._pid == os.getpid():
            return
        if self._pid != os.getpid():
            raise PoolClosedError(
                f"this pool belongs to process {self._pid}: make a new one after a fork"
            )
        if self._thread.crash is not None:
            raise PoolClosedError(
                f"the pool's thread has died of {self._thread.crash!r}: restart the flow, the epoch is replayed"
            ) from self._thread.crash
        raise PoolClosedError(f"the pool is {self.state}: it takes no envelopes any more")

    # For lanes

    def hand_over(
        self, link: "_Link", lane: LaneQueue, envelopes: Sequence[Envelope], epoch: int
    ) -> None:
        """Pass envelopes to the pool's thread, waking it only when it is idle.

        While something is out it looks by itself every `LOOK_AGAIN` seconds, so envelopes that come
        one by one gather to flights instead of costing a thread switch each.
        """
        self._inbox.append((link, lane, envelopes, epoch))
        if not self._looking:
            self._looking = True
            self._thread.call(self._look)

    def release(self, lane: Lane) -> None:
        """Forget a lane; with its last lane a publisher closes."""
        if self.state is PoolState.RUNNING and self._pid == os.getpid():
            with contextlib.suppress(
                PoolClosedError
            ):  # closed in between: then the lane is gone with it
                self._thread.call(lambda: self._leave(lane))

    def run(self, coroutine: Coroutine[Any, Any, T], what: str) -> T:
        """Run a coroutine on the pool's thread and wait for it, but not for ever."""
        try:
            return self._thread.run(coroutine, PATIENCE)
        except TimeoutError:
            raise ConnectError(
                f"{what} did not end within {PATIENCE:g} s: see whether the broker answers"
            ) from None

    # On the pool's thread

    def _start(self, broker: str) -> None:
        if self._pid != os.getpid():
            self.check()  # before the lock: at the fork another thread may have had it
        with self._lock:
            if self.state is PoolState.NEW:
                self.state = PoolState.RUNNING
                self._thread.start()
                self._thread.call(lambda: self._start_workers(broker))
        self.check()

    def _start_workers(self, broker: str) -> None:
        for number in range(self.settings.ack_workers):
            self._workers.append(
                self._thread.create_task(self._work(number), name=f"ack-worker-{number}")
            )
        log.info(
            "ACK pool started: %d ACK workers, budget %d messages and %d bytes, transport %s",
            self.settings.ack_workers,
            self.budget.messages,
            self.budget.bytes,
            broker,
        )

    async def _work(self, number: int) -> None:
        """Settle answered tasks; a worker never waits for a broker, so a silent one cannot use them
        up.
        """
        log.debug("ACK worker %d started", number)
        while (task := await self.tasks.get()) is not None:
            self._settle(task)
        log.debug("ACK worker %d stopped", number)

    def _settle(self, task: AckTask) -> None:
        """Turn answers into results, deliver them, and give the budget back."""
        lane, broker, ended, at = task
        delivery, stop_reason, unknown, size = reckon(ended, broker, at, lane.worker)
        oks, errs, duplicates, _ = delivery
        self._count(
            stored=len(oks), duplicates=duplicates, rejected=len(errs) - unknown, unknown=unknown
        )
        lane.deliver(delivery, stop_reason)
        self.budget.release(len(oks) + len(errs), size)

    def _count(self, **numbers: int) -> None:
        for name, number in numbers.items():
            self._counts[name] += number

    def _look(self) -> None:
        """Take in, act, and look again while anything is under way."""
        more = self._take_in()
        for link in list(self._links.values()):
            link.act()
        if self._next_look is not None:
            self._next_look.cancel()
        self._next_look = asyncio.get_running_loop().call_later(
            0 if more else LOOK_AGAIN, self._look
        )
        self.rest()

    def rest(self) -> None:
        """If nothing is under way, do not look again: whoever hands something over wakes the pool's
        thread at once.
        """
        if self._inbox or any(link.dispatch.traffic.out for link in self._links.values()):
            return
        self._looking = False
        if self._inbox:  # handed over in between, by who saw that we were looking
            self._looking = True
        elif self._next_look is not None:
            self._next_look.cancel()

    def _take_in(self) -> bool:
        """Accept what producers handed over; so much at a time that answers are read in between: is
        there more?

        Small hand-overs of a lane are accepted as one, up to what a lane hands over at once: most
        of what an acceptance costs, it costs once.
        """
        room = MOST_AT_ONCE
        gathered: dict[LaneQueue, tuple[_Link, list[Envelope], int]] = {}
        while self._inbox and room > 0:
            link, lane, envelopes, epoch = self._inbox.popleft()
            room -= len(envelopes)
            _, before, its_epoch = gathered.get(lane, (link, [], epoch))
            if before and (
                epoch != its_epoch or not link.gathers or len(before) + len(envelopes) > PIECE
            ):
                link.accept(lane, before, its_epoch)
                before = []
            before += envelopes
            gathered[lane] = link, before, epoch
        for lane, (link, before, epoch) in gathered.items():
            link.accept(lane, before, epoch)
        return room <= 0

    async def _open_lane(
        self, publisher: Publisher, name: str, worker: int, deadline: Callable[[], float]
    ) -> Lane:
        link = await self._open(publisher)
        lane = Lane(self, link, link.publisher, name, worker, deadline)
        link.dispatch.add_lane(lane.queue)
        return lane

    async def _open(self, publisher: Publisher) -> _Link:
        link = self._links.get(publisher.identity)
        if link is None:
            link = self._links[publisher.identity] = _Link(self, publisher)
            link.ready = asyncio.create_task(publisher.start(link))
        assert link.ready is not None
        link.lanes += 1
        try:
            await asyncio.shield(link.ready)
        except BaseException:
            link.lanes -= 1
            if self._links.get(publisher.identity) is link:
                del self._links[publisher.identity]
                await link.close()
            raise
        return link

    def _leave(self, lane: Lane) -> None:
        link = lane.link
        while self._inbox:  # what was handed over before must not come after the end
            self._take_in()
        link.dispatch.remove_lane(lane.queue)
        link.act()
        link.lanes -= 1
        if not link.lanes and link.publisher.identity in self._links:
            del self._links[link.publisher.identity]
            self._closing = [task for task in self._closing if not task.done()]
            self._closing.append(self._thread.create_task(link.close(), name="close-publisher"))

    async def _drain(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        # Polled: the budget is given back under a lock of the producers', which has no event of
        # this loop.
        while self.budget.used_messages and time.monotonic() < until and not self._thread.crash:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        while self._inbox:
            self._take_in()
        for link in self._links.values():
            link.dispatch.abandon(
                "the pool was closed before it was answered; publish it again with the same event id"
            )
            link.turn()
        for _ in self._workers:
            self.tasks.put_nowait(None)
        await asyncio.gather(*self._workers, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links.values()))
        self._links.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)
        log.info("ACK pool closed: %s", self._counts)


CLOSE_SECONDS = 5.0
PATIENCE = 120.0

os.register_at_fork(after_in_child=AckPool.forget_after_fork)
atexit.register(AckPool.settle_at_exit)
