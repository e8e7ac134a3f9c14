"""A partition that reads through a durable consumer, and acknowledges what is committed."""

import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from bytewax.inputs import StatefulSourcePartition

from ...errors import SourceError
from ...metrics import Partition, Sample, retire, watch
from ...recovery_state import DurableState, SourceState, durable_state
from ..message import (
    Item,
    RawMessage,
    UnreadableMessage,
    decode,
    parse_pending,
    parse_position,
)
from .consumers import durable_consumer, warn_of_pause
from .feed import Feed
from .lag import Lag
from .ledger import Ledger
from .reader import IDLE, Reader, UnreadableCount
from .reading import Found, Reading
from .shared_connection import SharedConnection, release
from .skipped import Skipped

__all__ = ["DurablePartition"]

log = logging.getLogger(__name__)

HOLD_SECONDS = 900.0
HOLD_WAITS = 10
"""A message is kept from being delivered again for so many seconds, or so many times ack_wait,
whichever is longer. A process that hangs for longer loses its messages to others.
"""
RENEWALS = 3
"""How often in an ack_wait the server is told that messages are still worked on."""
QUIET_SECONDS = 5.0
"""How often a quiet consumer is looked at."""
NANOSECONDS = 1e9


class DurablePartition(StatefulSourcePartition[Item, SourceState]):
    """Emits every message, and acknowledges it when its epoch is committed.

    Until then the server is told from time to time that the message is being worked on, so that it
    does not deliver it again: also while a step or the barrier keeps the engine's thread.

    Its state names the messages that this commit makes due for acknowledgement, and the consumer.
    """

    def __init__(
        self,
        shared: SharedConnection,
        reading: Reading,
        tail: bool,
        batch_size: int,
        before: DurableState | None,
    ) -> None:
        self._shared = shared
        self._reading = reading
        self._tail = tail
        self._batch_size = batch_size
        self._before = before
        self._reader = Reader(shared, reading, self._find, batch_size)
        found = self._reader.open(None)
        assert reading.durable is not None, "the consumer has a name"
        self._before = DurableState((), reading.durable, found.created)
        if before is not None and before.created is None:
            log.warning(
                "%s: the recovery state was written by an older version, which did not note from "
                "which durable consumer it is: if %s was deleted and created again since, this run "
                "does not notice it, later ones do",
                reading,
                reading.durable,
            )
        if found.unacknowledged:
            log.info(
                "%s: %d messages were delivered before and not acknowledged; they come again "
                "within ack_wait",
                reading,
                found.unacknowledged,
            )
        waits = [found.config["ack_wait"], *(found.config.get("backoff") or ())]
        self._ack_wait = min(waits) / NANOSECONDS
        self._hold = max(HOLD_SECONDS, HOLD_WAITS * self._ack_wait)
        self._max_ack_pending = found.config["max_ack_pending"]
        self._ledger = Ledger(() if before is None else before.ranges, found.ack_floor)
        self._lock = threading.Lock()
        """Held while the ledger is read or changed; the connection's thread reads it."""
        self._position, self._last = found.position, found.last
        self._skipped = self._count_skipped(found)
        self._number = found.number + 1
        """Consumer sequence of the next delivery; a gap shows that others read, too."""
        self._pending = found.pending
        self._feed: Feed | None = None
        self._oldest: float | None = None
        """When the first message of this epoch arrived."""
        self._closed_oldest: float | None = None
        """When the first message arrived of those that wait for their commit."""
        self._renewed = 0.0
        self._ending = False
        self._warned = False
        self._paused = found.paused
        self._heard = time.monotonic()
        """When messages last came, or it was looked why none come."""
        self._unreadable = UnreadableCount(reading)
        self._awake: datetime | None = None
        self._emitted = self._redelivered = 0
        self._lag = Lag(shared, reading, found)
        watch(self)
        shared.keep_calling(self._keep_alive)

    @property
    def skipped(self) -> int:
        """How many messages were removed from the stream before they were read."""
        return 0 if self._skipped is None else self._skipped.count

    def next_batch(self) -> list[Item]:
        """The messages that have arrived, at most a batch; never waits."""
        self._awake = datetime.now(UTC) + IDLE
        with self._lock:
            # After a snapshot, the engine calls this only once the snapshot's epoch is committed on
            # all workers.
            self._ledger.commit()
            feed = self._reader.current()
            if feed is None:
                return []
            if feed is not self._feed:
                self._feed = feed
                self._ledger.lost()
            self._acknowledge(feed)
            if self._ending and not self._ledger.unsettled:
                raise StopIteration
            if self._skipped is not None:
                self._reader.look_at_gaps(self._skipped)
            ended = feed.ended  # before the queue: messages that arrived before the end are good
            batch, arrived = feed.take(self._batch_size) if not self._ending else ([], 0.0)
            if batch:
                self._awake, self._heard = None, time.monotonic()
                if self._oldest is None:
                    self._oldest = arrived
                items = self._decode(batch)
                self._emitted += len(items)
                return items
        if ended is not None:
            self._reader.reopen(self._position, ended)
        else:
            self._wait(feed)
        return []

    def next_awake(self) -> datetime | None:
        """When to look again; None for at once."""
        return self._awake

    def samples(self) -> Iterator[Sample]:
        """What the metrics say of it. Called on the thread of a scrape."""
        reading, feed = self._reading, self._reader.feed
        self._lag.ask()
        partition = Partition("jetstream", reading.step, reading.stream, reading.subject or "")
        return partition.samples(
            emitted=self._emitted,
            position=self._position,
            lag=self._lag.behind_consumer(0 if feed is None else feed.queued),
            skipped=self.skipped,
            redelivered=self._redelivered,
            reopened=self._reader.reopened,
        )

    def snapshot(self) -> SourceState:
        """Close the epoch in the ledger.

        :raises SourceError: when messages waited longer than they are kept from others.
        """
        waited = 0.0 if self._oldest is None else time.monotonic() - self._oldest
        if waited > self._hold:
            raise SourceError(
                f"{self._reading}: messages waited {waited:.1f} s for the end of their epoch, and "
                f"with an ack_wait of {self._ack_wait:g} s the server delivers them again after "
                f"{self._hold:g} s: raise ack_wait, or shorten the epoch",
                stream=self._reading.stream,
                subject=self._reading.subject,
                consumer=self._reading.durable,
                seconds=waited,
                limit=self._hold,
            )
        with self._lock:
            ranges = self._ledger.close_epoch()
            self._closed_oldest = _earlier(self._closed_oldest, self._oldest)
            self._oldest = None
        assert self._before is not None, "it is known from the start"
        return durable_state(self._before._replace(ranges=ranges))

    def close(self) -> None:
        """Give uncommitted messages and the connection back."""
        self._shared.stop_calling(self._keep_alive)
        self._unreadable.report()
        if self._skipped is not None:
            self._reader.report_skipped(self._skipped)
        retire(self)
        self._reader.close(self._ledger.uncommitted())
        release(self._shared)

    async def _find(self, position: int | None) -> Found:
        return await durable_consumer(
            self._shared.connection, self._reading, self._before, may_create=position is None
        )

    def _keep_alive(self, now: float) -> None:
        """Tell the server that messages are worked on; runs on the connection's thread."""
        feed = self._reader.feed
        with self._lock:
            oldest = _earlier(self._oldest, self._closed_oldest)
        if feed is not None:
            oldest = _earlier(oldest, feed.untaken_since())
        if (
            oldest is None
            or now - max(oldest, self._renewed) < self._ack_wait / RENEWALS
            or now - oldest > self._hold
            or not self._shared.connection.is_up
        ):
            return
        self._renewed = now
        with self._lock:
            replies = self._ledger.held()
        if feed is not None:
            replies += feed.untaken()
        self._shared.connection.write(
            b"".join([b"PUB %s 4\r\n+WPI\r\n" % reply for reply in replies])
        )

    def _decode(self, batch: list[RawMessage]) -> list[Item]:
        items: list[Item] = []
        stream, take = self._reading.stream, self._ledger.take
        expected, position = self._number, self._position
        previous: bytes | None = None
        for raw in batch:
            try:
                sequence, number, nanoseconds = parse_position(raw[1])
            except ValueError as error:
                log.warning("%s: ignored a malformed message: %s", self._reading, error)
                continue
            if sequence > position and number == expected:
                self._position = position
                if previous is not None:
                    self._pending = parse_pending(previous)
                self._gap(sequence)
            expected, previous = number + 1, raw[1]
            if sequence >= position:
                position = sequence + 1
            else:  # a consumer delivers in order the first time
                self._redelivered += 1
            if not take(sequence, nanoseconds, raw[1]):
                continue
            item = decode(stream, sequence, nanoseconds, raw)
            if type(item) is UnreadableMessage:
                self._unreadable.add(item)
            items.append(item)
        self._number, self._position = expected, position
        if previous is not None:
            self._pending = parse_pending(previous)
        return items

    def _count_skipped(self, found: Found) -> Skipped | None:
        """A counter, with what was removed before this run; None if that cannot be known."""
        if found.stream is None:
            return None
        retention, state = found.stream["config"].get("retention"), found.stream["state"]
        if self._reading.subject is not None and retention != "limits":
            return None  # the first sequence moves with what others acknowledge
        skipped = Skipped(self._reading, state["last_seq"])
        if self._reading.subject is None and found.position < state["first_seq"]:
            skipped.add(found.position, state["first_seq"], time.monotonic())
            self._position = state["first_seq"]
        return skipped

    def _gap(self, end: int) -> None:
        """What lies between the position and this sequence was not delivered to anybody."""
        if self._skipped is not None and self._position < end:
            waited = self._pending > 0
            self._skipped.gap(self._position, end, waited=waited, now=time.monotonic())

    def _acknowledge(self, feed: Feed) -> None:
        """Take in confirmations, and send due acks.

        :raises SourceError: when an ack is not confirmed within the delivery timeout.
        """
        ledger, now = self._ledger, time.monotonic()
        ledger.confirm(feed.confirmed, now)
        if ledger.has_due:
            feed.ack(*ledger.send(now))
        self._closed_oldest = None
        limit = self._shared.settings.pool.delivery_timeout
        if now - ledger.sent_since(now) > limit:
            raise SourceError(
                f"{self._reading}: the server confirmed no acknowledgement for {limit:g} s: "
                "check its log",
                stream=self._reading.stream,
                subject=self._reading.subject,
                consumer=self._reading.durable,
                seconds=now - ledger.sent_since(now),
                limit=limit,
                run_again=True,
            )

    def _wait(self, feed: Feed) -> None:
        """Nothing has arrived: warn if max_ack_pending is reached; see if the stream has ended."""
        waiting = self._ledger.waiting
        if 0 < self._max_ack_pending <= waiting and not self._warned:
            self._warned = True
            log.warning(
                "%s: %d messages wait for the end of their epoch, as many as max_ack_pending "
                "allows, and reading waits with them: raise max_ack_pending, or shorten the epoch",
                self._reading,
                waiting,
            )
        if self._ending:
            return
        if self._tail:
            self._look_for_pause(feed)
            return
        unsettled = self._ledger.unsettled
        feed.look(unsettled)
        if feed.look_seen is not None:
            asked_with, info = feed.look_seen
            # Every unacknowledged message is ours, and was when the server was asked.
            self._ending = (
                info["num_pending"] == 0 and info["num_ack_pending"] == asked_with == unsettled
            )
            if self._ending and self._number == info["delivered"]["consumer_seq"] + 1:
                self._gap(self._last + 1)

    def _look_for_pause(self, feed: Feed) -> None:
        """When nothing has come for a while, see whether somebody has paused the consumer."""
        now = time.monotonic()
        if now - self._heard < QUIET_SECONDS:
            return
        feed.look(0)
        if feed.look_seen is None:
            return
        (_, info), feed.look_seen, self._heard = feed.look_seen, None, now
        paused = bool(info.get("paused"))
        if paused and not self._paused:
            warn_of_pause(info, self._reading)
        self._paused = paused


def _earlier(one: float | None, other: float | None) -> float | None:
    """The earlier of two times, of which each may be missing."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
