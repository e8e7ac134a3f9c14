"""A partition that reads a stream by sequence; the server keeps nothing for it."""

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from bytewax.inputs import StatefulSourcePartition

from ...metrics import Partition, Sample, retire, watch
from ...recovery_state import SequenceState, SourceState, sequence_state
from ..message import (
    Item,
    RawMessage,
    UnreadableMessage,
    decode,
    parse_pending,
    parse_position,
)
from .consumers import sequence_consumer
from .feed import Feed
from .lag import Lag
from .reader import IDLE, Reader, UnreadableCount
from .reading import Found, Reading
from .same_stream import nanoseconds
from .shared_connection import SharedConnection, release
from .skipped import Skipped

__all__ = ["SequencePartition"]

log = logging.getLogger(__name__)


class SequencePartition(StatefulSourcePartition[Item, SourceState]):
    """Emits every message in the stream's order, and again from the last committed position.

    Its state is the stream sequence of the next message, with what tells the stream from another
    one of its name.
    """

    def __init__(
        self,
        shared: SharedConnection,
        reading: Reading,
        tail: bool,
        batch_size: int,
        before: SequenceState | None,
    ) -> None:
        self._shared = shared
        self._reading = reading
        self._batch_size = batch_size
        self._before = before
        """Where reading was before this partition has read anything."""
        self._created = ""
        self._reader = Reader(shared, reading, self._find, batch_size)
        found = self._reader.open(None if before is None else before.position)
        assert found.stream is not None, "a stream that is read by sequence is asked for"
        self._created, state = found.stream["created"], found.stream["state"]
        if before is not None and before.created is None:
            log.warning(
                "%s: the recovery state was written by an older version, which did not note from "
                "which stream it is: if the stream was deleted and created again since, this run "
                "does not notice it, later ones do",
                reading,
            )
        self._position = found.position
        self._time = 0
        """When the message before the position was stored, in nanoseconds; 0 if unknown."""
        if before is not None and before.position == found.position and before.time:
            self._time = before.time
        elif found.position - 1 == state["last_seq"]:
            self._time = nanoseconds(state["last_ts"])
        self._last = None if tail else state["last_seq"]
        self._skipped = Skipped(reading, state["last_seq"])
        wanted = reading.start if before is None else before.position
        if isinstance(wanted, int) and wanted < found.position:
            self._skipped.add(wanted, found.position, time.monotonic())
        self._feed: Feed | None = None
        self._number = 0
        """Consumer sequence of the last message. It has no gaps, so one shows a lost message; the
        stream's sequence may have gaps.
        """
        self._pending = found.pending
        """How many messages waited for delivery after the last one; exact where it is needed."""
        self._unreadable = UnreadableCount(reading)
        self._awake: datetime | None = None
        self._emitted = 0
        self._lag = Lag(shared, reading, found)
        watch(self)

    @property
    def skipped(self) -> int:
        """How many messages were removed from the stream before they were read."""
        return self._skipped.count

    def next_batch(self) -> list[Item]:
        """The messages that have arrived, at most a batch; never waits."""
        self._awake = None
        if self._last is not None and self._position > self._last:
            raise StopIteration
        feed = self._reader.current()
        if feed is None:
            self._awake = datetime.now(UTC) + IDLE
            return []
        if feed is not self._feed:
            self._feed, self._number = feed, 0
        self._reader.look_at_gaps(self._skipped)
        ended = feed.ended  # before the queue: messages that arrived before the end are good
        batch, _ = feed.take(self._batch_size)
        if batch:
            items = self._decode(batch)
            self._emitted += len(items)
            return items
        self._awake = datetime.now(UTC) + IDLE
        if ended is not None:
            self._reader.reopen(self._position, ended)
        elif self._last is not None and self._is_at_end(feed):
            self._gap(self._last + 1)
            raise StopIteration
        return []

    def next_awake(self) -> datetime | None:
        """When to look again; None for at once."""
        return self._awake

    def samples(self) -> Iterator[Sample]:
        """What the metrics say of it. Called on the thread of a scrape."""
        reading, feed = self._reading, self._reader.feed
        if reading.subject is None:
            lag = self._lag.from_position(self._position, self._last)
        else:  # as of the last message that was taken: the server does not tell more of a filter
            lag = max(self._pending, 0 if feed is None else feed.queued)
        self._lag.ask()
        partition = Partition("jetstream", reading.step, reading.stream, reading.subject or "")
        return partition.samples(
            emitted=self._emitted,
            position=self._position,
            lag=lag,
            skipped=self._skipped.count,
            reopened=self._reader.reopened,
        )

    def snapshot(self) -> SourceState:
        """The position to go on with."""
        return sequence_state(SequenceState(self._position, self._created, self._time))

    def close(self) -> None:
        """Delete the consumer, and give the connection back."""
        self._unreadable.report()
        self._reader.report_skipped(self._skipped)
        retire(self)
        self._reader.close()
        release(self._shared)

    async def _find(self, position: int | None) -> Found:
        before = self._before
        if self._created:
            before = SequenceState(self._position, self._created, self._time)
        return await sequence_consumer(self._shared.connection, self._reading, position, before)

    def _decode(self, batch: list[RawMessage]) -> list[Item]:
        items: list[Item] = []
        stream, last = self._reading.stream, self._last
        number, position, stored = self._number, self._position, self._time
        lost = False
        previous: bytes | None = None
        for raw in batch:
            try:
                sequence, received, time_ = parse_position(raw[1])
            except ValueError as error:
                log.warning("%s: ignored a malformed message: %s", self._reading, error)
                continue
            lost = received != number + 1
            if lost:
                break
            if sequence != position:
                self._position = position
                if previous is not None:
                    self._pending = parse_pending(previous)
                self._gap(sequence if last is None else min(sequence, last + 1))
            if last is not None and sequence > last:
                if position <= last:
                    position, stored = last + 1, 0
                break
            item = decode(stream, sequence, time_, raw)
            if type(item) is UnreadableMessage:
                self._unreadable.add(item)
            items.append(item)
            number, position, stored, previous = received, sequence + 1, time_, raw[1]
        self._number, self._position, self._time = number, position, stored
        if previous is not None:
            self._pending = parse_pending(previous)
        if lost:
            self._reader.reopen(position, "a message that the server sent did not arrive")
        return items

    def _gap(self, end: int) -> None:
        """What lies between the position and this sequence was not delivered."""
        if self._position < end:
            waited = self._pending > 0
            self._skipped.gap(self._position, end, waited=waited, now=time.monotonic())

    def _is_at_end(self, feed: Feed) -> bool:
        """Whether the server has nothing left to send, and everything it sent has arrived."""
        feed.look(0)
        if feed.look_seen is None:
            return False
        info = feed.look_seen[1]
        return bool(info["num_pending"] == 0 and info["delivered"]["consumer_seq"] == self._number)
