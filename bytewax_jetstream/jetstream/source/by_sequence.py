"""A partition that reads a stream by sequence; the server keeps nothing for it."""

import logging
from datetime import UTC, datetime

from bytewax.inputs import StatefulSourcePartition

from ...recovery_state import SourceState, sequence_state
from ..message import Item, RawMessage, UnreadableMessage, decode, parse_position
from .consumers import Found, Reading, sequence_consumer
from .feed import Feed
from .reader import IDLE, Reader, UnreadableCount
from .shared_connection import SharedConnection, release

__all__ = ["SequencePartition"]

log = logging.getLogger(__name__)


class SequencePartition(StatefulSourcePartition[Item, SourceState]):
    """Emits every message in the stream's order, and again from the last committed position.

    Its state is the stream sequence of the next message.
    """

    def __init__(
        self,
        shared: SharedConnection,
        reading: Reading,
        tail: bool,
        batch_size: int,
        position: int | None,
    ) -> None:
        self._shared = shared
        self._reading = reading
        self._batch_size = batch_size
        self._created: str | None = None
        self._reader = Reader(shared, reading, self._find, batch_size)
        found = self._reader.open(position)
        if position is not None and position < found.position:
            log.warning(
                "%s: sequences %d to %d were removed before they were read",
                reading,
                position,
                found.position - 1,
            )
        self._created = found.created
        self._position = found.position
        self._last = None if tail else found.last
        self._feed: Feed | None = None
        self._number = 0
        """Consumer sequence of the last message. It has no gaps, so one shows a lost message; the
        stream's sequence may have gaps.
        """
        self._unreadable = UnreadableCount(reading)
        self._awake: datetime | None = None

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
        ended = feed.ended  # before the queue: messages that arrived before the end are good
        batch, _ = feed.take(self._batch_size)
        if batch:
            return self._decode(batch)
        self._awake = datetime.now(UTC) + IDLE
        if ended is not None:
            self._reader.reopen(self._position, ended)
        elif self._last is not None and self._is_at_end(feed):
            raise StopIteration
        return []

    def next_awake(self) -> datetime | None:
        """When to look again; None for at once."""
        return self._awake

    def snapshot(self) -> SourceState:
        """The position to go on with."""
        return sequence_state(self._position)

    def close(self) -> None:
        """Delete the consumer, and give the connection back."""
        self._unreadable.report()
        self._reader.close()
        release(self._shared)

    async def _find(self, position: int | None) -> Found:
        return await sequence_consumer(
            self._shared.connection, self._reading, position, self._created
        )

    def _decode(self, batch: list[RawMessage]) -> list[Item]:
        items: list[Item] = []
        stream, last = self._reading.stream, self._last
        number, position = self._number, self._position
        gap = False
        for raw in batch:
            try:
                sequence, received, nanoseconds = parse_position(raw[1])
            except ValueError as error:
                log.warning("%s: ignored a malformed message: %s", self._reading, error)
                continue
            gap = received != number + 1
            if gap:
                break
            if last is not None and sequence > last:
                position = sequence
                break
            item = decode(stream, sequence, nanoseconds, raw)
            if type(item) is UnreadableMessage:
                self._unreadable.add(item)
            items.append(item)
            number, position = received, sequence + 1
        self._number, self._position = number, position
        if gap:
            self._reader.reopen(position, "a message that the server sent did not arrive")
        return items

    def _is_at_end(self, feed: Feed) -> bool:
        """Whether the server has nothing left to send, and everything it sent has arrived."""
        feed.look(0)
        if feed.look_seen is None:
            return False
        info = feed.look_seen[1]
        return bool(info["num_pending"] == 0 and info["delivered"]["consumer_seq"] == self._number)
