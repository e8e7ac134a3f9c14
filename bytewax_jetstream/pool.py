"""The shared ACK pool: one thread, one budget and one set of ACK workers for all lanes and brokers.

    producer threads                      pool thread (one event loop)
    Lane.submit ── one hand-off a batch ─► Dispatch ─► Publisher.send ─► broker
    Lane.collect ◄─ mailbox ◄─ ACK workers ◄─ answered tasks ◄─ answers ◄──┘

It knows no broker and no Bytewax; what is sent when is decided in `dispatch`. States: new, running,
draining, closed. The drain order is fixed: admission stops; what is out is waited for; what is left by
the deadline is settled as unknown; the ACK workers settle every answered task and stop; publishers
close; the thread ends.
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

from .dispatch import Dispatch
from .envelope import Envelope, Outcome, PublishResult, picklable
from .errors import ConnectError, PoolClosedError, SettleTimeoutError
from .flight import Acked, Ended, LaneQueue, Receipt, Refusal, Stored, Verdict, size_of
from .loop import LoopThread
from .publisher import Publisher
from .settings import PoolSettings

__all__ = ["AckPool", "Lane", "PoolState"]

log = logging.getLogger(__name__)
T = TypeVar("T")

PIECE = 1_000
"""Messages a lane hands over at once: large enough that the hand-off costs nothing, small beside the budget."""
MOST_AT_ONCE = 4_000
"""Messages the pool's thread takes in before it reads answers again."""
LOOK_AGAIN = 0.001
"""Seconds the pool's thread leaves handed-over envelopes waiting while answers are awaited anyway."""
SLICE = 0.1
"""Seconds a producer waits before it looks up again, so that signals and a dead pool are noticed."""


class PoolState(StrEnum):
    """What an `AckPool` does: only a running one takes envelopes."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    CLOSED = "closed"


class Budget:
    """How many messages and bytes may be unsettled; whoever would exceed it waits.

    Given back by the pool's own thread when an envelope is settled, whether or not anybody has
    collected the result: so no step can block another step of its thread.
    """

    def __init__(self, messages: int, size: int) -> None:
        self.messages, self.bytes = messages, size
        self.used_messages = self.used_bytes = 0
        self.stalls = 0
        self._changed = threading.Condition()
        self._released = 0

    def acquire(self, messages: int, size: int, lane: "Lane", patience: float) -> None:
        """Wait for room; a piece larger than the whole budget goes when nothing else is out.

        :raises SettleTimeoutError: when nothing at all was settled for `patience` seconds.
        """
        with self._changed:
            if self._fits(messages, size):
                self._take(messages, size)
                return
            self.stalls += 1
            released, since = self._released, time.monotonic()
            while not self._fits(messages, size):
                lane.check()
                self._changed.wait(SLICE)
                if self._released != released:
                    released, since = self._released, time.monotonic()
                elif time.monotonic() - since > patience:
                    raise SettleTimeoutError(
                        f"the budget of {self.messages} messages is spent and nothing was settled for "
                        f"{patience:g} s: see whether the broker answers"
                    )
            self._take(messages, size)

    def release(self, messages: int, size: int) -> None:
        with self._changed:
            self.used_messages -= messages
            self.used_bytes -= size
            self._released += 1
            self._changed.notify_all()

    def _fits(self, messages: int, size: int) -> bool:
        return not self.used_messages or (
            self.used_messages + messages <= self.messages and self.used_bytes + size <= self.bytes
        )

    def _take(self, messages: int, size: int) -> None:
        self.used_messages += messages
        self.used_bytes += size


class Delivery(NamedTuple):
    """What an ACK worker settled in one go."""

    oks: list[PublishResult]
    """Stored ones."""
    errs: list[PublishResult]
    """Rejected and unknown ones."""
    duplicates: int
    last_event_id: str


class Lane:
    """An ordered queue into the pool, for one thread to fill and to collect from.

    Whatever it accepts ends in exactly one `PublishResult`. A full budget blocks `submit`; nothing is
    ever dropped. A lane outlives neither its pool nor a fork.
    """

    def __init__(self, pool: "AckPool", link: "_Link", name: str, worker: int, deadline: Callable[[], float]) -> None:
        self.name = name
        self.worker = worker
        self.queue = LaneQueue(self)
        self._pool = pool
        self.link = link
        self._mailbox: deque[Delivery] = deque()
        self._news = threading.Condition()
        self._unsettled = 0
        self._stop_reason: str | None = None
        self._deadline = deadline
        self._closed = False

    def __repr__(self) -> str:
        return f"<Lane {self.name!r}, {self._unsettled} unsettled, {len(self._mailbox)} mails>"

    @property
    def unsettled(self) -> int:
        """How many accepted envelopes have no result yet."""
        return self._unsettled

    @property
    def stop_reason(self) -> str | None:
        """Why a dataflow must not commit: a result that is unknown, or refused for a reason that concerns all."""
        return self._stop_reason

    def submit(self, envelopes: Sequence[Envelope], *, epoch: int = 0) -> None:
        """Hand envelopes to the pool, in order; returns when all are accepted, before any is published.

        Blocks while the budget is spent. A bad envelope is accepted and becomes a rejected result.

        :raises PoolClosedError: when the lane is closed, or the pool is draining, closed, dead or of another process.
        :raises SettleTimeoutError: when the budget stays spent for longer than a delivery may take.
        """
        budget, patience = self._pool.budget, self._pool.settings.delivery_timeout + 10
        largest = min(PIECE, max(1, budget.messages // 2))
        start = 0
        while start < len(envelopes):
            piece = envelopes[start : start + largest]
            size = sum(map(size_of, piece))
            while size > budget.bytes // 2 and len(piece) > 1:
                piece = piece[: len(piece) // 2]
                size = sum(map(size_of, piece))
            start += len(piece)
            self.check()
            budget.acquire(len(piece), size, self, patience)
            with self._news:
                self._unsettled += len(piece)
            self._pool.hand_over(self.link, self.queue, piece, epoch)

    def collect(self) -> list[PublishResult]:
        """Take the results that are there, without waiting."""
        results: list[PublishResult] = []
        for delivery in self.take():
            results += delivery.oks
            results += delivery.errs
        return results

    def take(self) -> list[Delivery]:
        """Take the results that are there, as they were settled, without waiting."""
        mailbox = self._mailbox
        return [mailbox.popleft() for _ in range(len(mailbox))]

    def wait(self, below: int, until: float) -> bool:
        """Wait until fewer than `below` envelopes are unsettled; False at `until` (`time.monotonic`).

        :raises PoolClosedError: when the pool cannot settle them any more.
        """
        hurry = self.link.publisher.hurry
        while True:
            with self._news:
                if self._unsettled < below:
                    return True
            again = hurry()  # without the lock, which whoever settles has to take
            with self._news:
                if self._unsettled < below:
                    return True
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._pool.check(settling=True)
                self._check_deadline()
                self._news.wait(min(left, SLICE, again))

    def flush(self, timeout: float | None = None) -> list[PublishResult]:
        """Wait until nothing is unsettled, and take all results: the barrier.

        :arg timeout: Seconds; default a delivery timeout and an ack timeout, by when all is settled.
        :raises SettleTimeoutError: when something is still unsettled then.
        """
        settings = self._pool.settings
        seconds = settings.delivery_timeout + settings.ack_timeout + 1 if timeout is None else timeout
        if not self.wait(1, time.monotonic() + seconds):
            raise SettleTimeoutError(
                f"{self._unsettled} envelopes of lane {self.name} are not settled after {seconds:g} s: "
                "see whether the broker answers; they are published again when the epoch is replayed"
            )
        return self.collect()

    def check(self) -> None:
        """Raise when nothing can be submitted any more."""
        if self._closed:
            raise PoolClosedError(f"lane {self.name} is closed: open another")
        self._check_deadline()
        self._pool.check()

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline():
            raise SettleTimeoutError(
                f"{self._unsettled} envelopes of lane {self.name} are not settled in time: see whether the broker "
                "answers; they are published again when the epoch is replayed"
            )

    def close(self) -> None:
        """Leave the pool, without waiting; never raises. Whatever is unsettled becomes unknown: flush first."""
        if not self._closed:
            self._closed = True
            self._pool.release(self)

    def deliver(self, delivery: Delivery, stop_reason: str | None) -> None:
        """Called by an ACK worker with what it has settled."""
        with self._news:
            if stop_reason is not None and self._stop_reason is None:
                self._stop_reason = stop_reason  # before anybody can take the results, to pass them on
            self._mailbox.append(delivery)
            self._unsettled -= len(delivery.oks) + len(delivery.errs)
            self._news.notify_all()


class AckTask(NamedTuple):
    """Envelopes of a lane whose answers have come, for an ACK worker to settle."""

    lane: Lane
    broker: str
    settled: list[Ended]
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
        self.dispatch = Dispatch(publisher.policy, publisher.prepare, Random(), publisher.route)

    # PublisherEvents

    def connected(self) -> None:
        self.dispatch.connected()
        self.turn()

    def disconnected(self, reason: str) -> None:
        log.warning("%s: %s; %d envelopes are tried again", self.publisher.broker, reason, self.dispatch.out)
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

    def envelope(self, flight: int, index: int) -> Envelope | None:
        return self.dispatch.envelope(flight, index)

    def failed(self, reason: str) -> None:
        log.error("%s: %s", self.publisher.broker, reason)
        self.failure = reason
        self.dispatch.abandon(reason)
        self.turn()

    def turn(self) -> None:
        """Take in what waits, for whichever link, and act; whose envelopes they are is looked at soon."""
        self._pool.take_in()
        self.act()

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
    """Publishes envelopes and says what became of each; one a process, shared by all lanes and brokers.

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
        self.tasks: asyncio.Queue[AckTask | None] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._closing: list[asyncio.Task[None]] = []
        self._counts = dict.fromkeys(("stored", "duplicates", "rejected", "unknown"), 0)
        self._live.add(self)

    def __repr__(self) -> str:
        brokers = ", ".join(repr(link.dispatch) for link in self._links.values())
        return f"<AckPool {self.state}, {self.budget.used_messages} unsettled, {brokers or 'no brokers'}>"

    def __reduce__(self) -> Any:
        raise TypeError("an AckPool belongs to its process and cannot be pickled: make one where it is used")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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
        """Let go of the shared pool; the last one closes it, without waiting for what nobody waits for."""
        with cls._shared_lock:
            cls._borrowers -= 1
            if cls._borrowers or cls._shared is None:
                return
            pool, cls._shared = cls._shared, None
        pool.close(0.0)

    @classmethod
    def forget_after_fork(cls) -> None:
        """In a forked child: the parent's pool has no thread here, so the next borrower makes another."""
        cls._shared, cls._borrowers, cls._shared_lock = None, 0, threading.Lock()
        cls._live = WeakSet()

    @classmethod
    def settle_at_exit(cls) -> None:
        """A program that ends without closing its pool must not lose what is in flight, or end as if all were well."""
        unknown = 0
        for pool in [pool for pool in cls._live if pool.budget.used_messages]:
            log.warning("the program ends with %d envelopes in flight: close the pool", pool.budget.used_messages)
            before = pool.statistics()["unknown"]
            pool.close()
            unknown += pool.statistics()["unknown"] - before + pool.budget.used_messages
        if unknown:
            log.critical("%d envelopes may not be stored: publish them again with the same event ids", unknown)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # nothing else sets an exit code here

    # For users of one pool

    def lane(
        self, publisher: Publisher, *, name: str, worker: int = 0, deadline: Callable[[], float] = lambda: float("inf")
    ) -> Lane:
        """Open an ordered queue to a broker; connects, and makes or checks streams, when it is the first.

        :arg publisher: Publishers of equal settings share the first one's connection.
        :arg name: Shown in logs, results and checkpoints.
        :arg deadline: Says by when (`time.monotonic`) waits of this lane must end, whatever is unsettled then.
        :raises ConnectError: when the broker cannot be used within its connect timeout.
        :raises StreamError: when a stream or topic is not what the settings ask.
        """
        self._start(publisher.broker)
        link = self.run(self._open(publisher), "opening a connection")
        lane = Lane(self, link, name, worker, deadline)
        self._thread.call(lambda: link.dispatch.add_lane(lane.queue))
        return lane

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
                    "out": link.dispatch.out,
                    "retries": link.dispatch.retries,
                    "late_acks": link.dispatch.late_acks,
                    "whole_flights": link.dispatch.whole_flights,
                    "in_whole_flights": link.dispatch.in_whole_flights,
                    "streams_in_doubt": link.dispatch.in_doubt,
                    **link.publisher.statistics(),
                }
                for link in list(self._links.values())
                if link.ready is not None and link.ready.done()
            ],
        }

    def close(self, drain: float | None = None) -> None:
        """Stop in the fixed order; returns within `drain` seconds and a little, called any number of times.

        :arg drain: Seconds to wait for what is unsettled, default the drain timeout; what is left then
            gets an unknown result.
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
            log.error("the pool did not drain within %g s; what it had unsettled is unknown", seconds)
        except Exception as error:
            log.error("the pool could not drain (%r); what it had unsettled is unknown", error)

    def check(self, *, settling: bool = False) -> None:
        """Raise when this pool takes nothing any more or, with `settling`, cannot even settle what it has."""
        working = self.state is PoolState.RUNNING or (settling and self.state is PoolState.DRAINING)
        if working and self._thread.crash is None and self._pid == os.getpid():
            return
        if self._pid != os.getpid():
            raise PoolClosedError(f"this pool belongs to process {self._pid}: make a new one after a fork")
        if self._thread.crash is not None:
            raise PoolClosedError(
                f"the pool's thread has died of {self._thread.crash!r}: restart the flow, the epoch is replayed"
            ) from self._thread.crash
        raise PoolClosedError(f"the pool is {self.state}: it takes no envelopes any more")

    # For lanes

    def hand_over(self, link: "_Link", lane: LaneQueue, envelopes: Sequence[Envelope], epoch: int) -> None:
        """Pass envelopes to the pool's thread, waking it only when it is idle.

        While something is out it looks by itself, at every answer and every `LOOK_AGAIN` seconds, so
        envelopes that come one by one gather to flights instead of costing a thread switch each.
        """
        self._inbox.append((link, lane, envelopes, epoch))
        if not self._looking:
            self._looking = True
            self._thread.call(self._look)

    def release(self, lane: Lane) -> None:
        """Forget a lane; with its last lane a publisher closes."""
        if self.state is PoolState.RUNNING and self._pid == os.getpid():
            with contextlib.suppress(PoolClosedError):  # closed in between: then the lane is gone with it
                self._thread.call(lambda: self._leave(lane))

    def run(self, coroutine: Coroutine[Any, Any, T], what: str) -> T:
        """Run a coroutine on the pool's thread and wait for it, but not for ever."""
        try:
            return self._thread.run(coroutine, PATIENCE)
        except TimeoutError:
            raise ConnectError(f"{what} did not end within {PATIENCE:g} s: see whether the broker answers") from None

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
            self._workers.append(self._thread.create_task(self._work(number), name=f"ack-worker-{number}"))
        log.info(
            "ACK pool started: %d ACK workers, budget %d messages and %d bytes, transport %s",
            self.settings.ack_workers,
            self.budget.messages,
            self.budget.bytes,
            broker,
        )

    async def _work(self, number: int) -> None:
        """Settle answered tasks; a worker never waits for a broker, so a silent one cannot use them up."""
        log.debug("ACK worker %d started", number)
        while (task := await self.tasks.get()) is not None:
            self._settle(task)
        log.debug("ACK worker %d stopped", number)

    def _settle(self, task: AckTask) -> None:
        """Turn answers into results, deliver them, and give the budget back."""
        lane, broker, settled, at = task
        worker, stop, size, duplicates = lane.worker, None, 0, 0
        oks: list[PublishResult] = []
        errs: list[PublishResult] = []
        for one in settled:
            if isinstance(one, Stored):
                oks += _results(one, broker, at, worker)
                size += one.parcel.size
                duplicates += bool(one.receipt.duplicate) * len(one.parcel)
                continue
            if isinstance(one, Acked):
                oks += _results_of_each(one, broker, at, worker)
                size += sum([entry.size for entry in one.entries])
                duplicates += sum([bool(receipt[3]) for receipt in one.receipts])
                continue
            entry, outcome, receipt, refusal = one
            size += entry.size
            if refusal is None:
                oks += _results_of_each(Acked([entry], [receipt or NOWHERE]), broker, at, worker)
                duplicates += bool(receipt and receipt[3])
                continue
            kept = picklable(entry.envelope)
            if outcome is Outcome.UNKNOWN or refusal.verdict is Verdict.STOP:
                stop = stop or f"envelope {kept.event_id} on {kept.topic} is {outcome}: {refusal.reason}"
            (result,) = _results_of_each(Acked([entry], [NOWHERE]), broker, at, worker)
            topic, _, event_id, aggregate_id, event_type, *_ = kept
            errs.append(
                result._replace(
                    outcome=outcome,
                    event_id=event_id,
                    topic=topic,
                    aggregate_id=aggregate_id,
                    event_type=event_type,
                    reason=refusal.reason,
                    code=refusal.code,
                    envelope=kept,
                )
            )
        unknown = sum(result.outcome is Outcome.UNKNOWN for result in errs)
        self._count(stored=len(oks), duplicates=duplicates, rejected=len(errs) - unknown, unknown=unknown)
        last = settled[-1]
        if isinstance(last, Stored):
            envelope = last.parcel.envelopes[-1]
        else:
            envelope = (last.entries[-1] if isinstance(last, Acked) else last.entry).envelope
        lane.deliver(Delivery(oks, errs, duplicates, envelope.event_id), stop)
        self.budget.release(len(oks) + len(errs), size)

    def _count(self, **numbers: int) -> None:
        for name, number in numbers.items():
            self._counts[name] += number

    def _look(self) -> None:
        """Take in, and look again while anything is under way."""
        self._looking = False  # before the inbox is looked at: who appends after that look wakes us
        self.take_in()
        for link in list(self._links.values()):
            link.act()
        if self._inbox or any(link.dispatch.out for link in self._links.values()):
            self._looking = True
            asyncio.get_running_loop().call_later(0 if self._inbox else LOOK_AGAIN, self._look)

    def take_in(self) -> None:
        """Accept what producers handed over, a bounded number at a time so that answers are read in between."""
        inbox, room = self._inbox, MOST_AT_ONCE
        while inbox and room > 0:
            link, lane, envelopes, epoch = inbox.popleft()
            link.accept(lane, envelopes, epoch)
            room -= len(envelopes)

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
            self.take_in()
        link.dispatch.remove_lane(lane.queue)
        link.act()
        link.lanes -= 1
        if not link.lanes and link.publisher.identity in self._links:
            del self._links[link.publisher.identity]
            self._closing = [task for task in self._closing if not task.done()]
            self._closing.append(self._thread.create_task(link.close(), name="close-publisher"))

    async def _drain(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        # Polled: the budget is given back under a lock of the producers', which has no event of this loop.
        while self.budget.used_messages and time.monotonic() < until and not self._thread.crash:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        while self._inbox:
            self.take_in()
        for link in self._links.values():
            link.dispatch.abandon("the pool was closed before it was answered; publish it again with the same event id")
            link.turn()
        for _ in self._workers:
            self.tasks.put_nowait(None)
        await asyncio.gather(*self._workers, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links.values()))
        self._links.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)
        log.info("ACK pool closed: %s", self._counts)


def _results_of_each(acked: Acked, broker: str, at: float, worker: int) -> list[PublishResult]:
    """Past the keyword constructor, as this runs once a message (0.2 us instead of 0.9)."""
    kind, new, outcome = PublishResult, _new, Outcome.STORED
    return [
        new(
            kind,
            (
                outcome, envelope[2], envelope[0], envelope[3], envelope[4], broker, stream, partition, sequence,
                duplicate, entry.attempts, at - entry.batch[0], None, None, None, worker, entry.batch[2],
            ),
        )
        for entry, (stream, partition, sequence, duplicate) in zip(acked.entries, acked.receipts, strict=True)
        for envelope in (entry.envelope,)
    ]  # fmt: skip


def _results(stored: Stored, broker: str, at: float, worker: int) -> list[PublishResult]:
    """Likewise, with all that does not differ between the messages looked up once."""
    (stream, partition, sequence, duplicate), parcel = stored.receipt, stored.parcel
    kind, new, outcome, attempts = PublishResult, _new, Outcome.STORED, parcel.attempts
    ack_seconds, epoch = at - parcel.batch.submitted, parcel.batch.epoch
    return [
        new(
            kind,
            (
                outcome, event_id, topic, aggregate_id, event_type, broker, stream, partition, sequence, duplicate,
                attempts, ack_seconds, None, None, None, worker, epoch,
            ),
        )
        for topic, _, event_id, aggregate_id, event_type, _, _, _ in parcel.envelopes
    ]  # fmt: skip


_new = tuple.__new__
NOWHERE = Receipt()
CLOSE_SECONDS = 5.0
PATIENCE = 120.0

os.register_at_fork(after_in_child=AckPool.forget_after_fork)
atexit.register(AckPool.settle_at_exit)
