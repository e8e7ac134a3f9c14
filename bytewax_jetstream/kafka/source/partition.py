"""`KafkaPartition`: one partition of the input, which may not be there yet."""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal

from bytewax.inputs import StatefulSourcePartition
from confluent_kafka import KafkaError, KafkaException

from ...errors import SourceError
from ...metrics import Partition, Sample, retire, watch
from ...recovery_state import KafkaPlace, KafkaState, kafka_state
from .message import Item, KafkaFailure, failure
from .place import Begin, Log, made_again, truncated
from .reader import Feed, Reader
from .watch import News

__all__ = ["KafkaPartition", "OnError"]

log = logging.getLogger(__name__)

OnError = Literal["stop", "errs"]
"""What an error does that may pass, such as a permission that is missing."""

SILENCE = frozenset(
    {
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._FAIL,  # noqa: SLF001
    }
)
"""What ends a run though another may go on: no broker answers."""
ABSENT_NAP = timedelta(seconds=0.05)
"""How soon a partition that is not there looks again."""
EPOCH_NAP = timedelta(seconds=0.01)
"""On a worker that reads nothing, one partition looks this often: an epoch ends on a worker only
when one of its partitions is awake, and then for all of them.
"""
ANSWER_SECONDS = 2.0
"""How long a partition's leader may take to say what it holds."""


class KafkaPartition(StatefulSourcePartition[Item, KafkaState]):
    """Emits every message of a partition in order, from its place on.

    Its state is the offset of the next message, which only messages move, with the topic's id and
    the leader epoch, which show on resuming whether this is still the log that was read.

    :arg spare: How many partitions of the topic this run can read.
    :arg resumed: Whether it begins where a committed epoch ended.
    """

    def __init__(
        self,
        reader: Reader,
        topic: str,
        number: int,
        topic_id: str | None,
        begin: Begin,
        *,
        step: str,
        spare: int,
        tail: bool,
        batch_size: int,
        on_error: OnError,
        resumed: bool,
        release: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._topic, self._number, self._topic_id = topic, number, topic_id
        self._step, self._spare = step, spare
        self._tail, self._batch_size, self._on_error = tail, batch_size, on_error
        self._release = release
        self._awake: datetime | None = None
        self._feed: Feed | None = None
        self._waiting: list[Item] = []
        """Errors to be emitted before anything else."""
        self._overgrown = self._committed = False
        self._snapshot: int | None = None
        """Up to where the last snapshot has everything, until its epoch is committed."""
        self._emitted = self._skipped = 0
        if begin.position is not None:
            self._feed = reader.open(topic, number, begin.position, begin.epoch)
            if begin.missed_from is not None:
                self._waiting.append(self._missed(begin.missed_from, begin.position))
            elif resumed:
                self._snapshot = begin.position
        watch(self)

    def __repr__(self) -> str:
        return f"partition {self._number} of topic {self._topic}"

    def next_batch(self) -> list[Item]:
        """The messages that have arrived, at most a batch; waits for none.

        :raises SourceError: when reading on would miss or repeat messages, or cannot go on.
        """
        self._awake = None
        # After a snapshot, the engine calls this only once the snapshot's epoch is committed.
        if self._snapshot is not None and self._feed is not None:
            self._reader.committed(self._feed, self._snapshot)
            self._snapshot = None
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            return waiting
        reader, feed = self._reader, self._feed
        if reader.news:
            return self._told(reader.news.pop(0))
        if self._overgrown or (self._tail and reader.partitions(self._topic) > self._spare):
            return self._end_overgrown()
        if feed is None:
            return self._look_for_partition()
        if not feed.items:
            reader.poll()
        if feed.items:
            batch: list[Item] = list(feed.take(self._batch_size))
            self._emitted += len(batch)
            return batch
        if feed.displaced is not None:
            return self._find_place(feed, feed.displaced)
        if feed.ended:
            raise StopIteration
        self._awake = datetime.now(UTC) + timedelta(seconds=reader.nap)
        return []

    def next_awake(self) -> datetime | None:
        """When to look again; None for at once."""
        return self._awake

    def snapshot(self) -> KafkaState:
        """The place to go on at."""
        self._committed = self._overgrown
        feed = self._feed
        if feed is None:
            return kafka_state(KafkaPlace(None, self._topic_id, None))
        self._snapshot = feed.passed
        return kafka_state(KafkaPlace(feed.position, self._topic_id, feed.epoch))

    def samples(self) -> Iterable[Sample]:
        """What the metrics say of it; nothing while it is not there. Called on the thread of a
        scrape.
        """
        feed = self._feed
        if feed is None:
            return ()
        return Partition("kafka", self._step, self._topic, str(self._number)).samples(
            emitted=self._emitted,
            position=feed.position,
            lag=None if feed.end is None else max(0, feed.end - feed.passed),
            skipped=self._skipped,
        )

    def close(self) -> None:
        """Read no more; the last partition of a worker closes its consumer."""
        retire(self)
        if self._feed is not None:
            self._reader.close_feed(self._feed)
        self._release()

    def _look_for_partition(self) -> list[Item]:
        if not self._tail:
            raise StopIteration
        if self._number < self._reader.partitions(self._topic):
            log.info("%s has appeared, and is read from its first offset", self)
            # A new log begins at 0. If retention was faster, that is noticed like anywhere else.
            self._feed = self._reader.open(self._topic, self._number, 0, None)
            return []
        keeps_time = self._reader.keeps_time(self)
        self._awake = datetime.now(UTC) + (EPOCH_NAP if keeps_time else ABSENT_NAP)
        return []

    def _end_overgrown(self) -> list[Item]:
        """Emit nothing more; end the run once the epoch is committed, so that nothing is repeated.

        After a snapshot, the engine calls `next_batch` only when the snapshot is committed.

        :raises SourceError: when it is.
        """
        self._overgrown = True
        if self._committed:
            count = self._reader.partitions(self._topic)
            raise SourceError(
                f"topic {self._topic} has {count} partitions now, and this run can read "
                f"{self._spare}: start the flow again, and it reads all of them; what it read is "
                "committed",
                step=self._step,
                topic=self._topic,
                partition=count - 1,
                run_again=True,
            )
        self._awake = datetime.now(UTC) + ABSENT_NAP
        return []

    def _told(self, news: News) -> list[Item]:
        """What the reader has to tell: the end of the run, or an item.

        :raises SourceError: when reading must not go on.
        """
        if news.made_again:
            assert news.topic is not None
            feed = self._feed if news.topic == self._topic else None
            position = None if feed is None else feed.position
            raise made_again(news.topic, self._step, self._number, position)
        if self._on_error == "stop":
            raise SourceError(
                news.reason,
                step=self._step,
                topic=news.topic,
                partition=news.partition,
                offset=news.offset,
                code=news.code,
                run_again=news.code in SILENCE,
            )
        log.warning("step %s: %s", self._step, news.reason)
        return [
            failure(
                news.code,
                news.reason,
                topic=news.topic,
                partition=news.partition,
                offset=news.offset,
            )
        ]

    def _find_place(self, feed: Feed, why: str) -> list[Item]:
        """There is nothing to read at the position: find out why, and where to go on.

        :raises SourceError: when messages that were read are not there any more.
        """
        try:
            first, end = self._reader.watermarks(feed, ANSWER_SECONDS)
        except KafkaException:  # the watch tells if the topic is gone, or if no broker answers
            self._awake = datetime.now(UTC) + timedelta(seconds=5)
            return []
        position = feed.position
        if position < first:
            self._reader.move(feed, first)
            return [self._missed(position, first)]
        if position > end or "truncation" in why or "No epoch found" in why:
            raise truncated(self._topic, self._number, position, Log(first, end), self._step)
        log.warning("%s is read again from offset %d on: %s", self, position, why)
        self._reader.move(feed, position)
        self._awake = datetime.now(UTC) + timedelta(seconds=1)
        return []

    def _missed(self, first: int, end: int) -> KafkaFailure:
        self._skipped += end - first
        reason = (
            f"{self}: {end - first} offsets, {first} to {end - 1}, were removed before they were "
            "read: the topic keeps messages for too short a time, or the flow was away for too long"
        )
        log.warning("step %s: %s", self._step, reason)
        return failure(
            KafkaError.OFFSET_OUT_OF_RANGE,
            reason,
            topic=self._topic,
            partition=self._number,
            offset=first,
        )
