"""Bytewax's view of JetStream: a source whose partitions are streams, or subjects of streams."""

import logging
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from ... import drain
from ...drain import DrainingPartition
from ...errors import SourceError
from ...recovery_state import (
    Ranges,
    SourceState,
    durable_state,
    read_source_state,
    sequence_state,
)
from ...settings import JetStreamSettings
from ..message import JetStreamMessage, RawMessage, Start, UnreadableMessage, decode, parse_position
from .consumers import Found, Reading, durable_consumer, sequence_consumer
from .feed import Feed
from .ledger import Ledger
from .reader import Reader
from .shared_connection import Link, lease, release

__all__ = ["JetStreamSource"]

log = logging.getLogger(__name__)

Item = JetStreamMessage | UnreadableMessage

IDLE = timedelta(milliseconds=2)
"""An idle source looks again so soon: while it sleeps, no other source's epoch can end."""
ACK_WAIT = timedelta(seconds=90)
"""Default of `ack_wait`: an epoch of 10 s, in which a publisher may wait 60 s for its broker, and
room.
"""
ACK_WAIT_SHARE = 0.8
"""Of ack_wait, how much may have passed when the epoch ends: its commit takes time too."""
NAME = re.compile(r"[^\s.*>/\\]{1,255}").fullmatch
SUBJECT = re.compile(r"(\*|[^\s.*>]+)(\.(\*|[^\s.*>]+))*(\.>)?|>").fullmatch


class JetStreamSource(FixedPartitionedSource[Item, SourceState]):
    """Reads every message of one or more streams, and after a crash goes on where the last epoch
    was committed.

    Messages come in the stream's order; one that cannot be read comes as an `UnreadableMessage` in
    its place. Streams are the unit of parallelism, or each pair of a stream and one of `subjects`:
    as many workers as there are pairs can read. Partitions must not be taken away while their
    recovery state is kept. All of them stop at SIGTERM and SIGINT, with the epoch committed.

    *By sequence*, without `durable`: the server keeps nothing for the source. Where to go on is in
    Bytewax's recovery store; with it, reading is as good as exactly once. Messages that were purged
    or expired before they were read are passed over.

    *With a durable consumer*: for work-queue and interest streams, or where the server is to keep
    the place. A message is acknowledged when Bytewax has committed its epoch, never before; after a
    crash what was not acknowledged comes again, once `ack_wait` has passed, so at least once and no
    longer in the stream's order. With recovery, what was committed is not emitted again even if its
    ack was lost.

    :arg settings: How to reach JetStream.

    :arg streams: Names of streams.

    :arg subjects: Read only messages on these subjects (`orders.*`, `orders.>`), which must not
    overlap.

    :arg durable: Name of the durable consumer, made if it is missing. With more than one of
        `subjects` each has its own, named after it and a digest of the subject.

    :arg tail: Wait for new messages at the end. Without, by sequence, reading ends at what was the
        stream's last message at start; with `durable`, when nothing is left and the last epoch's
        messages are acknowledged, so it takes until the end of that epoch.

    :arg start: Where to start without recovery state, or when the durable consumer is made:
        `first`, `new`, a stream sequence, or a time (with its zone).

    :arg batch_size: Messages in a batch, at most. Four batches are read ahead, up to 32 MiB, for
    each partition.

    :arg ack_wait: With `durable`: after how long the server delivers an unacknowledged message
        again. Must exceed an epoch: if it nearly does not, the run stops with an error.

    :arg max_ack_pending: With `durable`: how many messages may be unacknowledged, which must exceed
        an epoch's: if it does not, reading waits for the epoch's end.
    """

    def __init__(
        self,
        settings: JetStreamSettings,
        *,
        streams: Sequence[str] | str,
        subjects: Sequence[str] | str = (),
        durable: str | None = None,
        tail: bool = True,
        start: Start = "first",
        batch_size: int = 1000,
        ack_wait: timedelta = ACK_WAIT,
        max_ack_pending: int = 100_000,
    ) -> None:
        streams = (streams,) if isinstance(streams, str) else tuple(streams)
        subjects = (subjects,) if isinstance(subjects, str) else tuple(subjects)
        _check_names(streams, subjects, durable)
        if batch_size < 1 or max_ack_pending < 1 or ack_wait <= timedelta(0):
            raise ValueError("batch_size, max_ack_pending and ack_wait must be positive")
        if isinstance(start, datetime):
            if start.tzinfo is None:
                raise ValueError(f"start {start} has no time zone: add one, such as datetime.UTC")
        elif start not in ("first", "new") and (type(start) is not int or start < 1):
            raise ValueError(
                f"invalid start {start!r}: give 'first', 'new', a sequence from 1, or a time"
            )
        drain.install(settings.pool.drain_timeout)
        self._settings = settings
        self._tail = tail
        self._batch_size = batch_size
        self._readings: dict[str, Reading] = {}
        for stream in streams:
            for subject in subjects or (None,):
                name = durable
                if durable is not None and subject is not None and len(subjects) > 1:
                    name = f"{durable}-{sha256(subject.encode()).hexdigest()[:8]}"
                # A stream's name has no slash, so the first one tells the two apart.
                part = stream if subject is None else f"{stream}/{subject}"
                self._readings[part] = Reading(
                    stream, subject, start, name, ack_wait, max_ack_pending
                )

    def list_parts(self) -> list[str]:
        """The streams, or each of them with each subject."""
        return list(self._readings)

    def build_part(
        self, step_id: str, for_part: str, resume_state: SourceState | None
    ) -> DrainingPartition:
        """Connect, and find or make the consumer; what stands in the way is raised here, before any
        message.

        :raises ConnectError: when the server is not there or does not let this user in.
        :raises StreamError: when the stream is missing.
        :raises SourceError: when it cannot be read like this.
        """
        reading = self._readings[for_part]
        resumed = None if resume_state is None else read_source_state(resume_state, step_id)
        if resumed is not None and isinstance(resumed, int) != (reading.durable is None):
            was = "by sequence" if isinstance(resumed, int) else "with a durable consumer"
            raise SourceError(
                f"{reading} was read {was} by step {step_id} before: give the input another step "
                "id, or read it as before",
                step=step_id,
                stream=reading.stream,
                subject=reading.subject,
                consumer=reading.durable,
            )
        link = lease(self._settings)
        try:
            part: StatefulSourcePartition[Item, SourceState]
            if reading.durable is None:
                assert not isinstance(resumed, tuple)
                part = _BySequence(link, reading, self._tail, self._batch_size, resumed)
            else:
                assert not isinstance(resumed, int)
                part = _ByAck(link, reading, self._tail, self._batch_size, resumed or ())
        except BaseException:
            release(link)
            raise
        return DrainingPartition(part)


class _BySequence(StatefulSourcePartition[Item, SourceState]):
    """Its state is the stream sequence to go on with."""

    def __init__(
        self, link: Link, reading: Reading, tail: bool, batch_size: int, position: int | None
    ) -> None:
        self._link = link
        self._reading = reading
        self._batch_size = batch_size
        self._created: str | None = None
        self._reader = Reader(link, reading, self._find, batch_size)
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
        """Consumer sequence of the last message; it has no gaps, as the stream's sequence may have.
        """
        self._poison = _Poison(reading)
        self._awake: datetime | None = None

    def next_batch(self) -> list[Item]:
        self._awake = None
        if self._last is not None and self._position > self._last:
            raise StopIteration
        feed = self._reader.current()
        if feed is None:
            self._awake = datetime.now(UTC) + IDLE
            return []
        if feed is not self._feed:
            self._feed, self._number = feed, 0
        ended = feed.ended  # read before the queue: what came before the end is still good
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
        return self._awake

    def snapshot(self) -> SourceState:
        return sequence_state(self._position)

    def close(self) -> None:
        self._poison.report()
        self._reader.close()
        release(self._link)

    async def _find(self, position: int | None) -> Found:
        return await sequence_consumer(
            self._link.connection, self._reading, position, self._created
        )

    def _decode(self, batch: list[RawMessage]) -> list[Item]:
        items: list[Item] = []
        stream, number, position, last = (
            self._reading.stream,
            self._number,
            self._position,
            self._last,
        )
        gap = False
        for raw in batch:
            try:
                sequence, its_number, nanoseconds = parse_position(raw[1])
            except ValueError as error:
                log.warning("%s: ignored a malformed message: %s", self._reading, error)
                continue
            gap = its_number != number + 1
            if gap:
                break
            if last is not None and sequence > last:
                position = sequence
                break
            item = decode(stream, sequence, nanoseconds, raw)
            if type(item) is UnreadableMessage:
                self._poison.count(item)
            items.append(item)
            number, position = its_number, sequence + 1
        self._number, self._position = number, position
        if gap:
            self._reader.reopen(position, "a message the server has sent did not arrive")
        return items

    def _is_at_end(self, feed: Feed) -> bool:
        """Whether the server has nothing more to send, and has sent nothing that is not here."""
        feed.look(0)
        if feed.look_seen is None:
            return False
        info = feed.look_seen[1]
        return bool(info["num_pending"] == 0 and info["delivered"]["consumer_seq"] == self._number)


class _ByAck(StatefulSourcePartition[Item, SourceState]):
    """Its state is what its epoch's commit makes due for acknowledgement."""

    def __init__(
        self, link: Link, reading: Reading, tail: bool, batch_size: int, state: Ranges
    ) -> None:
        self._link = link
        self._reading = reading
        self._tail = tail
        self._batch_size = batch_size
        self._reader = Reader(link, reading, self._find, batch_size)
        found = self._reader.open(None)
        if found.unacknowledged:
            log.info(
                "%s: %d messages were delivered before and not acknowledged; they come again within ack_wait",
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
        self._poison = _Poison(reading)
        self._awake: datetime | None = None

    def next_batch(self) -> list[Item]:
        # The engine asks again after a snapshot only once that snapshot's epoch is committed
        # everywhere.
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
        ended = feed.ended  # read before the queue: what came before the end is still good
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
        return self._awake

    def snapshot(self) -> SourceState:
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
        self._poison.report()
        self._reader.close(self._ledger.uncommitted())
        release(self._link)

    async def _find(self, position: int | None) -> Found:
        return await durable_consumer(
            self._link.connection, self._reading, may_create=position is None
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
                self._poison.count(item)
            items.append(item)
        return items

    def _acknowledge(self, feed: Feed) -> None:
        """Hear what is confirmed, send what is due, and stop when nothing is confirmed for too
        long.
        """
        ledger, now = self._ledger, time.monotonic()
        ledger.confirm(feed.confirmed, now)
        if ledger.has_due:
            feed.ack(*ledger.send(now))
        limit = self._link.settings.pool.delivery_timeout
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
        """Nothing to emit: see whether it is for the epoch's end, or the stream's."""
        waiting = self._ledger.waiting
        if 0 < self._max_ack_pending <= waiting and not self._warned:
            self._warned = True
            log.warning(
                "%s: %d messages wait for the end of their epoch, as many as max_ack_pending allows, and reading waits "
                "with them: raise max_ack_pending, or shorten the epoch",
                self._reading,
                waiting,
            )
        if self._tail or self._ending:
            return
        unsettled = self._ledger.unsettled
        feed.look(unsettled)
        if feed.look_seen is not None:
            asked_with, info = feed.look_seen
            # All that is left unacknowledged is here, and was when the server was asked.
            self._ending = (
                info["num_pending"] == 0 and info["num_ack_pending"] == asked_with == unsettled
            )


class _Poison:
    """Counts the messages of a partition that cannot be read."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._count = 0

    def count(self, error: UnreadableMessage) -> None:
        self._count += 1
        if self._count == 1:
            log.warning(
                "%s: message %d cannot be read: %s", self._reading, error.sequence, error.reason
            )

    def report(self) -> None:
        if self._count > 1:
            log.warning("%s: %d messages could not be read", self._reading, self._count)


def _check_names(streams: Sequence[str], subjects: Sequence[str], durable: str | None) -> None:
    """Raise when a name cannot be one, or a message would come twice.

    :raises ValueError: with what is wrong.
    """
    if not streams or len(set(streams)) < len(streams):
        raise ValueError(f"streams {streams!r}: give at least one, and each once")
    for name in (*streams, *((durable,) if durable is not None else ())):
        if not NAME(name):
            raise ValueError(
                f"{name!r} is not a valid name of a stream or consumer: "
                "use no spaces, dots, wildcards or slashes"
            )
    for at, subject in enumerate(subjects):
        if not SUBJECT(subject):
            raise ValueError(
                f"{subject!r} is not a valid subject: use words with dots between them, * for one "
                "word, > for the rest"
            )
        for other in subjects[:at]:
            if _overlap(subject, other):
                raise ValueError(
                    f"subjects {other} and {subject} overlap, so a message on both would come "
                    "twice: leave one out"
                )


def _overlap(one: str, other: str) -> bool:
    """Whether a subject can match both patterns."""
    ours, theirs = one.split("."), other.split(".")
    for mine, its in zip(ours, theirs, strict=False):
        if ">" in (mine, its):
            return True
        if mine != its and "*" not in (mine, its):
            return False
    return len(ours) == len(theirs)
