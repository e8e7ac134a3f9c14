"""A partition that reads through a durable consumer, and acknowledges what is committed."""

import logging
import time
from datetime import UTC, datetime

from bytewax.inputs import StatefulSourcePartition

from ...errors import SourceError
from ...recovery_state import Ranges, SourceState, durable_state
from ..message import Item, RawMessage, UnreadableMessage, decode, parse_position
from .consumers import Found, Reading, durable_consumer
from .feed import Feed
from .ledger import Ledger
from .reader import IDLE, Reader, UnreadableCount
from .shared_connection import SharedConnection, release

__all__ = ["DurablePartition"]

log = logging.getLogger(__name__)

ACK_WAIT_SHARE = 0.8
"""Of ack_wait, how much may have passed when the epoch ends: its commit takes time too."""


class DurablePartition(StatefulSourcePartition[Item, SourceState]):
    """Emits every message, and acknowledges it when its epoch is committed.

    Its state names the messages that this commit makes due for acknowledgement.
    """

    def __init__(
        self, shared: SharedConnection, reading: Reading, tail: bool, batch_size: int, state: Ranges
    ) -> None:
        self._shared = shared
        self._reading = reading
        self._tail = tail
        self._batch_size = batch_size
        self._reader = Reader(shared, reading, self._find, batch_size)
        found = self._reader.open(None)
        if found.unacknowledged:
            log.info(
                "%s: %d messages were delivered before and not acknowledged; they come again "
                "within ack_wait",
                reading,
                found.unacknowledged,
            )
        self._ack_wait = found.config["ack_wait"] / 1e9
        self._max_ack_pending = found.config["max_ack_pending"]
        self._ledger = Ledger(state, found.ack_floor)
        self._position = found.position
        self._feed: Feed | None = None
        self._oldest: float | None = None
        """When the first message of this epoch arrived."""
        self._ending = False
        self._warned = False
        self._unreadable = UnreadableCount(reading)
        self._awake: datetime | None = None

    def next_batch(self) -> list[Item]:
        """The messages that have arrived, at most a batch; never waits."""
        # After a snapshot, the engine calls this only once the snapshot's epoch is committed on
        # all workers.
        self._ledger.commit()
        self._awake = datetime.now(UTC) + IDLE
        feed = self._reader.current()
        if feed is None:
            return []
        if feed is not self._feed:
            self._feed = feed
            self._ledger.lost()
        self._acknowledge(feed)
        if self._ending and not self._ledger.unsettled:
            raise StopIteration
        ended = feed.ended  # before the queue: messages that arrived before the end are good
        batch, arrived = feed.take(self._batch_size) if not self._ending else ([], 0.0)
        if batch:
            self._awake = None
            if self._oldest is None:
                self._oldest = arrived
            return self._decode(batch)
        if ended is not None:
            self._reader.reopen(self._position, ended)
        else:
            self._wait(feed)
        return []

    def next_awake(self) -> datetime | None:
        """When to look again; None for at once."""
        return self._awake

    def snapshot(self) -> SourceState:
        """Close the epoch in the ledger.

        :raises SourceError: when the epoch takes nearly as long as ack_wait.
        """
        waited = 0.0 if self._oldest is None else time.monotonic() - self._oldest
        if waited > ACK_WAIT_SHARE * self._ack_wait:
            raise SourceError(
                f"{self._reading}: messages waited {waited:.1f} s for the end of their epoch, and "
                f"after an ack_wait of {self._ack_wait:g} s the server delivers them again: raise "
                "ack_wait, or shorten the epoch",
                stream=self._reading.stream,
                subject=self._reading.subject,
                consumer=self._reading.durable,
                seconds=waited,
                limit=self._ack_wait,
            )
        self._oldest = None
        return durable_state(self._ledger.close_epoch())

    def close(self) -> None:
        """Give uncommitted messages and the connection back."""
        self._unreadable.report()
        self._reader.close(self._ledger.uncommitted())
        release(self._shared)

    async def _find(self, position: int | None) -> Found:
        return await durable_consumer(
            self._shared.connection, self._reading, may_create=position is None
        )

    def _decode(self, batch: list[RawMessage]) -> list[Item]:
        items: list[Item] = []
        stream, take = self._reading.stream, self._ledger.take
        for raw in batch:
            try:
                sequence, _, nanoseconds = parse_position(raw[1])
            except ValueError as error:
                log.warning("%s: ignored a malformed message: %s", self._reading, error)
                continue
            self._position = sequence + 1
            if not take(sequence, nanoseconds, raw[1]):
                continue
            item = decode(stream, sequence, nanoseconds, raw)
            if type(item) is UnreadableMessage:
                self._unreadable.add(item)
            items.append(item)
        return items

    def _acknowledge(self, feed: Feed) -> None:
        """Take in confirmations, and send due acks.

        :raises SourceError: when an ack is not confirmed within the delivery timeout.
        """
        ledger, now = self._ledger, time.monotonic()
        ledger.confirm(feed.confirmed, now)
        if ledger.has_due:
            feed.ack(*ledger.send(now))
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
        if self._tail or self._ending:
            return
        unsettled = self._ledger.unsettled
        feed.look(unsettled)
        if feed.look_seen is not None:
            asked_with, info = feed.look_seen
            # Every unacknowledged message is ours, and was when the server was asked.
            self._ending = (
                info["num_pending"] == 0 and info["num_ack_pending"] == asked_with == unsettled
            )
