"""`SharedPublisher`: a publisher and its dispatch: passes on its reports, and sends what is due."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from math import inf
from random import Random
from typing import NamedTuple

from ..dispatch import Dispatch, LaneQueue, Settlement
from ..envelope import Envelope
from ..metrics import Sample, retire, table
from ..publishing import Publisher, Receipt, Refusal
from .mailbox import Mailbox
from .transit import Transit

__all__ = ["AckTask", "SharedPublisher"]

log = logging.getLogger(__name__)

STALL_SECONDS = 5.0
"""After how long without progress a broker without an ack timeout is said to stall."""
LOOK_SECONDS = 0.02
"""How often it is looked at most what the peer has taken, while it settles nothing."""
BUSY_LOOK_SECONDS = 0.25
"""The same while it does. Answers renew attempts, too, and asking the kernel costs a switch to
another thread, which may keep this one waiting for 5 ms."""
TIMER_SLACK = 0.001
"""Seconds by which a timer may be late before it is set again."""


class AckTask(NamedTuple):
    """Envelopes of a lane whose answers have come, for an ACK worker to settle."""

    mailbox: Mailbox
    broker: str
    settled: list[Settlement]
    at: float
    """When the answer was looked at."""
    duplicate_window: Callable[[str], float | None]


class SharedPublisher:
    """Passes what its publisher reports to its dispatch, and what the dispatch sends back.

    Implements `PublisherEvents`. Everything in here runs on the pool's thread, except for
    `statistics` and `count_long_epoch`.

    :arg on_settled: Takes what an ACK worker is to settle.
    :arg on_processed: Called after each look at what the broker reported.
    """

    def __init__(
        self,
        publisher: Publisher,
        on_settled: Callable[[AckTask], None],
        on_processed: Callable[[], None],
    ) -> None:
        self.publisher = publisher
        self.ready: asyncio.Task[None] | None = None
        """The publisher's start; done when lanes may use it."""
        self.users = 0
        """Lanes that are open or being opened."""
        policy = publisher.policy
        self.gathers = not policy.atomic
        """Whether submissions may be accepted together. Groups must not: which envelopes are
        stored all or none follows from the submission."""
        self.dispatch = Dispatch(
            policy, publisher.prepare, Random(), publisher.route, publisher.duplicate_window
        )
        self._mailboxes: dict[LaneQueue, Mailbox] = {}
        self._on_settled = on_settled
        self._on_processed = on_processed
        self._long_epochs = 0
        self._counting = threading.Lock()
        self.settled_at = time.monotonic()
        """When something of this publisher was settled last."""
        self._transit = Transit()
        self._unlooked: int | None = None
        """The first position written since it was looked what the peer has taken."""
        self._looked_at = 0.0
        self._stalled_since = inf
        self._stall_seconds = 0.0
        """After how long without progress to say so."""
        self._failure: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = inf

    def add_lane(self, mailbox: Mailbox) -> LaneQueue:
        """Serve another lane; its results go to this mailbox."""
        queue = self.dispatch.add_lane()
        self._mailboxes[queue] = mailbox
        return queue

    def remove_lane(self, queue: LaneQueue) -> None:
        """Forget a lane; what it had unsettled becomes unknown."""
        self.dispatch.remove_lane(queue)
        self.act()
        del self._mailboxes[queue]

    def accept(
        self,
        queue: LaneQueue,
        envelopes: Sequence[Envelope],
        epoch: int,
        seen: int,
        handed_over: float | None = None,
    ) -> None:
        """Take a submission in; its caller had collected so many unknown results."""
        self.dispatch.submit(queue, envelopes, epoch, time.monotonic(), seen, handed_over)
        if self._failure is not None:
            self.dispatch.abandon(self._failure)

    def act(self) -> None:
        """Send what may be sent, hand on what is settled, and come back when something is due."""
        now = time.monotonic()
        if self._unlooked is None:
            self._unlooked = self.dispatch.position
        while (outgoing := self.dispatch.next_send(now)) is not None:
            self.publisher.send(outgoing)
        quiet = now - self.settled_at > LOOK_SECONDS
        if now - self._looked_at > (LOOK_SECONDS if quiet else BUSY_LOOK_SECONDS):
            self._note_taken(now)
        for queue, settled in self.dispatch.take_settled():
            publisher, mailbox = self.publisher, self._mailboxes[queue]
            task = AckTask(mailbox, publisher.broker, settled, now, publisher.duplicate_window)
            self._on_settled(task)
            self.settled_at = now
        due = min(self.dispatch.next_tick(), self._stall_due())
        if self._timer is None or due < self._timer_due - TIMER_SLACK:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_due = None, due
            if due != inf:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(max(0.0, due - now), self._tick)

    def abandon(self, reason: str) -> None:
        """Settle everything as unknown."""
        self.dispatch.abandon(reason)
        self.process()

    async def close(self) -> None:
        """Close the publisher; never raises. What it has counted stays in the metrics."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self.publisher.close()
        except Exception:
            log.exception("%s: closing failed", self.publisher.broker)
        retire(self)

    def statistics(self) -> dict[str, str | int | float]:
        """The counters of this broker."""
        now = time.monotonic()
        stalled, oldest = now - self.dispatch.progress_at, now - self.dispatch.oldest_submitted()
        return {
            "broker": self.publisher.broker,
            "lanes": self.users,
            "last_progress_seconds": round(max(0.0, stalled), 3),
            "oldest_unsettled_seconds": round(max(0.0, oldest), 3),
            "long_epochs": self._long_epochs,
            **self.dispatch.statistics(),
            **self.publisher.statistics(),
        }

    def samples(self) -> Iterator[Sample]:
        """What is told of this broker when somebody scrapes."""
        statistics, labels = self.publisher.statistics(), (self.publisher.broker,)
        counts, now = self.dispatch.statistics(), time.monotonic()
        oldest = self.dispatch.oldest_submitted()
        yield Sample(table.LANES, labels, self.users)
        if self.publisher.policy.ack_timeout is not None:  # or its library connects by itself
            yield Sample(table.CONNECTED, labels, counts["connected"])
        yield Sample(table.RECONNECTS, labels, statistics.get("reconnects", 0))
        yield Sample(table.IN_FLIGHT_MESSAGES, labels, counts["in_flight"])
        yield Sample(table.IN_FLIGHT_BYTES, labels, counts["admitted_bytes"])
        yield Sample(table.OLDEST_UNSETTLED, labels, max(0.0, now - oldest))
        yield Sample(table.LAST_PROGRESS, labels, max(0.0, now - self.dispatch.progress_at))
        for reason, count in self.dispatch.retries.items():
            yield Sample(table.RETRIES, (*labels, reason), count)
        yield Sample(table.LATE_ACKS, labels, counts["late_acks"])
        yield Sample(table.BATCHES, labels, counts["batches"])
        yield Sample(table.BATCH_MESSAGES, labels, counts["messages_in_batches"])

    def count_long_epoch(self) -> None:
        """An epoch of one of its lanes is open for too long; called on any thread."""
        with self._counting:
            self._long_epochs += 1

    # PublisherEvents

    def connected(self) -> None:
        """Envelopes may be sent."""
        self.dispatch.connected(time.monotonic())
        self.process()

    def disconnected(self, reason: str) -> None:
        """What is in flight is tried again."""
        in_flight = self.dispatch.in_flight
        broker = self.publisher.broker
        log.warning("%s: %s; %d envelopes are sent again", broker, reason, in_flight)
        self._transit.clear()
        self._unlooked = None
        self.dispatch.disconnected(reason, time.monotonic())
        self.process()

    def acked(self, number: int, index: int, receipt: Receipt) -> None:
        """A single, or a group, is stored."""
        self.dispatch.acked(number, index, receipt, time.monotonic())

    def acked_many(self, acks: Sequence[tuple[int, int, Receipt]]) -> None:
        """Singles are stored."""
        self.dispatch.acked_many(acks, time.monotonic())

    def batch_stored(
        self, number: int, count: int, stream: str | None = None, *, duplicate: bool | None = None
    ) -> None:
        """The first messages of a batch are stored."""
        self.dispatch.batch_stored(number, count, time.monotonic(), stream, duplicate=duplicate)

    def batch_ended(self, number: int, count: int, stream: str | None = None) -> None:
        """A batch is over."""
        self.dispatch.batch_ended(number, count, time.monotonic(), stream)

    def batch_returned(self, number: int, count: int, *, duplicate: bool | None = None) -> None:
        """A batch is over; the rest goes as singles."""
        self.dispatch.batch_returned(number, count, time.monotonic(), duplicate=duplicate)

    def refused(self, number: int, index: int, refusal: Refusal) -> None:
        """A message is not stored."""
        self.dispatch.refused(number, index, refusal, time.monotonic())

    def delayed(self, number: int, index: int, refusal: Refusal) -> None:
        """A single is not stored now; the publisher tries it again."""
        self.dispatch.delayed(number, index, refusal)

    def group_known(self, number: int, index: int, receipts: Sequence[Receipt | None]) -> None:
        """Some envelopes of a group are stored, the others go again."""
        self.dispatch.group_known(number, index, receipts)

    def known(self, number: int, receipts: Sequence[Receipt | None]) -> None:
        """The answer to an `Ask`."""
        self.dispatch.known(number, receipts)

    def in_flight(self, number: int, index: int) -> Sequence[Envelope]:
        """What is awaited at an index."""
        return self.dispatch.in_flight_at(number, index)

    def in_flight_on(self, topic: str) -> Sequence[tuple[int, int]]:
        """What is awaited on a topic."""
        return self.dispatch.in_flight_on(topic)

    def failed(self, reason: str) -> None:
        """Whatever is unsettled, or submitted from now on, becomes unknown."""
        log.error("%s: %s", self.publisher.broker, reason)
        self._failure = reason
        self.abandon(reason)

    def process(self) -> None:
        """Act on what the broker reported; submissions gather until the pool's next look."""
        self.act()
        self._on_processed()

    def _note_taken(self, now: float) -> None:
        """Tell the dispatch how far the peer has taken what was sent."""
        first = self.dispatch.position if self._unlooked is None else self._unlooked
        self._unlooked, self._looked_at = None, now
        position = self._transit.look(first, *self.publisher.transit())
        if position is not None:
            self.dispatch.taken(position, now)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        self._note_taken(now)
        if now >= self._stall_due():
            self._tell_stall(now)
        self.dispatch.tick(now)
        self.process()

    def _stall_due(self) -> float:
        """When to say that nothing is settled, unless there is progress before."""
        since = self.dispatch.progress_at
        if since != self._stalled_since:
            self._stalled_since = since
            self._stall_seconds = self.publisher.policy.ack_timeout or STALL_SECONDS
        return since + self._stall_seconds

    def _tell_stall(self, now: float) -> None:
        log.warning(
            "%s: nothing was settled for %.3g s, %d envelopes are unsettled (%s)",
            self.publisher.broker,
            now - self._stalled_since,
            self.dispatch.unsettled,
            self.dispatch.waits_for(),
        )
        self._stall_seconds *= 2
