"""`Reader`: one consumer for all partitions that a worker thread reads; each has a `Feed`."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bytewax.connectors.kafka import BYTEWAX_CONSUMER_LAG_GAUGE
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ...metrics import retire, watch
from ...settings import KafkaSettings
from ..config import accepted, connection
from ..credentials import Credentials
from ..library_log import library_log
from .group_commits import GroupCommits
from .look_up import Found, LastError, cannot_read
from .message import Read, message_of
from .watch import News, Watch

__all__ = ["Feed", "Reader"]

log = logging.getLogger(__name__)

QUEUE_KIB = 32 * 1024
"""Most that librdkafka reads ahead, for all partitions of a worker together."""
FETCH_BYTES = 16 * 1024 * 1024
"""Most that one answer of a broker holds."""
MOST_AT_ONCE = 10_000
"""Most messages that are taken from librdkafka at once."""
NAP_EACH = 0.00025
SHORTEST_NAP, LONGEST_NAP = 0.002, 0.05
"""An idle partition sleeps this many seconds for each partition of its worker, within these bounds:
so idle partitions cost the same, however many they are.
"""
LAG_SECONDS = 1.0
BLOCKED_SECONDS = 5.0
"""For how long nothing was taken from librdkafka; then the dataflow counts as blocked."""
END_SECONDS = 1.0
"""How long the leader of a partition may take to say where it ends."""
TELL_AGAIN = 60.0
"""Seconds until the same error of the same partition is told again."""

NO_GROUP = "bytewax_jetstream-without-a-group"
"""librdkafka insists on a name."""
ABOUT_GROUPS = frozenset(
    {
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError._MAX_POLL_EXCEEDED,  # noqa: SLF001
    }
)
"""Errors about the consumer group, by which nothing is read."""


class Feed:
    """What has arrived of one partition, and how far it was taken."""

    def __init__(self, topic: str, number: int, position: int, epoch: int | None) -> None:
        self.topic = topic
        self.number = number
        self.position = position
        """The offset after the last message that was taken."""
        self.epoch = epoch
        """Leader epoch of that message."""
        self.items: list[Read] = []
        self.newest_epoch = epoch
        self.ended = False
        """The end has been reached, and is not waited at."""
        self.displaced: str | None = None
        """Why librdkafka could not read at the position."""
        self.end: int | None = None
        """Where the partition ends, as its leader said last."""
        self.looked = position
        """Up to where there is nothing more to come: the end, when it was reached last. It may be
        behind the last message, because of the marks that transactions leave."""

    @property
    def passed(self) -> int:
        """Up to where nothing waits to be emitted; the position, or behind it."""
        return self.position if self.items else max(self.position, self.looked)

    def take(self, most: int) -> list[Read]:
        """The messages that have arrived, and go on behind them."""
        items = self.items
        if len(items) > most:
            items, self.items = items[:most], items[most:]
        else:
            self.items = []
        if items:
            offset = items[-1].offset
            assert offset is not None
            self.position = offset + 1
            epoch = self.newest_epoch
            self.epoch = epoch if epoch is not None and epoch >= 0 else None
        return items


class Reader:
    """One consumer, and the feeds of the partitions assigned to it; for one thread.

    :arg group: Gets the offsets of committed epochs, for whoever watches it.
    :raises ConnectError: when librdkafka rejects the settings.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        step_id: str,
        found: Found,
        ask_ids: Callable[[Sequence[str]], Mapping[str, str]],
        *,
        tail: bool,
        batch_size: int,
        group: str | None = None,
    ) -> None:
        self.users = 0
        self.news: list[News] = []
        """What must be told to the dataflow, by whichever partition comes first."""
        self._step_id, self._tail = step_id, tail
        self._cluster = found.cluster
        self._ids = {name: topic.topic_id for name, topic in found.topics.items()}
        self._most = min(batch_size, MOST_AT_ONCE)
        self._feeds: dict[tuple[str | None, int | None], Feed] = {}
        self._new: list[Feed] = []
        """Feeds that are not yet assigned."""
        self._arrived = 0
        """How many messages lie in the feeds, at most."""
        self._timekeeper: object | None = None
        self._told: dict[tuple[str | None, int | None, int], float] = {}
        self._lag_due = 0.0
        self._polled = time.monotonic()
        """When messages were last asked for: not while the dataflow is blocked."""
        self._last = LastError()
        self._commits = GroupCommits(step_id, group) if group is not None else None
        self._credentials = Credentials(settings)
        with accepted(settings):
            self._consumer = Consumer(
                {
                    "queued.max.messages.kbytes": QUEUE_KIB,
                    "queued.min.messages": 50_000,
                    "fetch.max.bytes": FETCH_BYTES,
                    # When the queue is full, look soon again: it is short.
                    "fetch.queue.backoff.ms": 10,
                    "reconnect.backoff.max.ms": 1000,
                    **connection(settings),
                    "group.id": group or NO_GROUP,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    # Never a place of the library's own choice.
                    "auto.offset.reset": "error",
                    "enable.partition.eof": True,
                    "allow.auto.create.topics": False,
                    # Back-pressure may last longer than five minutes.
                    "max.poll.interval.ms": 86_400_000,
                    "error_cb": self._on_error,
                    "logger": library_log,
                    **({"on_commit": self._commits.answered} if self._commits else {}),
                }
            )
        if self._commits is not None:
            watch(self._commits)
        self._watch = Watch(
            lambda name, seconds: self._consumer.list_topics(name, timeout=seconds),
            ask_ids,
            {name: len(topic.logs) for name, topic in found.topics.items()},
            self._ids,
            patience=settings.pool.delivery_timeout,
            why=lambda: self._last.error,
            also=self._look_at_ends,
        )
        self._watch.start()

    @property
    def nap(self) -> float:
        """How long an idle partition should sleep."""
        return min(LONGEST_NAP, max(SHORTEST_NAP, len(self._feeds) * NAP_EACH))

    def keeps_time(self, absent: object) -> bool:
        """Whether this absent partition is the one that looks often, because none is read."""
        if self._timekeeper is None:
            self._timekeeper = absent
        return not self._feeds and self._timekeeper is absent

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has by now."""
        return self._watch.partitions[topic]

    def open(self, topic: str, number: int, position: int, epoch: int | None) -> Feed:
        """Begin to read a partition at an offset.

        :arg epoch: Leader epoch of the message before it: the library asks the partition's leader
            whether that message is still in its log.
        """
        feed = Feed(topic, number, position, epoch)
        self._feeds[topic, number] = feed
        self._new.append(feed)
        return feed

    def move(self, feed: Feed, position: int) -> None:
        """Go on at another offset."""
        self._unassign(feed)
        feed.position, feed.epoch, feed.newest_epoch = position, None, None
        feed.displaced, feed.looked = None, position
        feed.items = []
        self._new.append(feed)

    def close_feed(self, feed: Feed) -> None:
        """Read a partition no more."""
        if self._feeds.pop((feed.topic, feed.number), None) is not None and self.users > 1:
            self._unassign(feed)

    def committed(self, feed: Feed, position: int) -> None:
        """The epoch in which a partition was read up to this offset is committed."""
        if self._commits is not None:
            self._commits.add(feed.topic, feed.number, position)

    def watermarks(self, feed: Feed, seconds: float) -> tuple[int, int]:
        """First offset and end of a partition, asked of its leader.

        :raises KafkaException: when it does not answer in time.
        """
        return self._consumer.get_watermark_offsets(
            TopicPartition(feed.topic, feed.number), timeout=seconds
        )

    def poll(self) -> None:
        """Take what has arrived, unless the feeds hold enough; never waits."""
        if self._new:
            self._assign()
        while self._watch.news:
            self.news.append(self._watch.news.pop(0))
        if self._arrived >= self._most:
            self._arrived = sum([len(feed.items) for feed in self._feeds.values()])
            if self._arrived >= self._most:
                return
        now = self._polled = time.monotonic()
        if now >= self._lag_due:
            self._lag_due = now + LAG_SECONDS
            self._show_lag()
        if self._commits is not None:
            self._commits.send(self._consumer, now)
        messages = self._consumer.consume(self._most, 0)
        self._credentials.renew(self._consumer)
        if messages:
            self._arrived += len(messages)
            self._sort(messages)

    def close(self) -> None:
        """End the consumer and its threads, within a bounded time; never raises."""
        if not self._watch.stop():
            log.warning("a look at topics does not end, so its consumer is not closed")
            return
        if self._commits is not None:
            try:
                self._commits.close(self._consumer)
            except (KafkaException, RuntimeError) as error:
                log.warning("the last offsets for a consumer group are not committed: %s", error)
            retire(self._commits)
        try:
            self._consumer.close()
        except (KafkaException, RuntimeError) as error:
            log.warning("closing a consumer: %s", error)

    def _on_error(self, error: KafkaError) -> None:
        self._last(error)
        self._credentials.note(error)

    def _assign(self) -> None:
        places = [
            TopicPartition(feed.topic, feed.number, feed.position)
            if feed.epoch is None
            else TopicPartition(feed.topic, feed.number, feed.position, leader_epoch=feed.epoch)
            for feed in self._new
        ]
        self._new = []
        self._consumer.incremental_assign(places)
        for place in places:
            if place.leader_epoch is not None:
                # The library checks the epoch of a place by itself only if it hears of the leader
                # after the assignment; at a seek, always.
                try:
                    self._consumer.seek(place)
                except KafkaException as error:
                    log.debug("%s is not checked again: %s", place, error)

    def _unassign(self, feed: Feed) -> None:
        if feed in self._new:
            self._new.remove(feed)
        else:
            self._consumer.incremental_unassign([TopicPartition(feed.topic, feed.number)])

    def _sort(self, messages: list[Message]) -> None:
        """Put messages into their feeds."""
        feeds, cluster, ids = self._feeds, self._cluster, self._ids
        feed: Feed | None = None
        topic_id: str | None = None
        for message in messages:
            if message.error() is not None:
                self._sort_error(message)
                continue
            if feed is None or message.partition() != feed.number or message.topic() != feed.topic:
                feed = feeds.get((message.topic(), message.partition()))
                if feed is None:
                    continue
                topic_id = ids[feed.topic]
            if feed.ended:
                continue
            try:
                feed.items.append(message_of(message, feed.topic, feed.number, cluster, topic_id))
            except UnicodeDecodeError as error:
                self._tell(
                    KafkaError._BAD_MSG,  # noqa: SLF001
                    f"offset {message.offset()} of partition {feed.number} of topic {feed.topic} "
                    f'has a header whose name is not UTF-8 ({error}): on_error="errs" passes '
                    "over it",
                    message,
                )
            feed.newest_epoch = message.leader_epoch()

    def _sort_error(self, message: Message) -> None:
        error: Any = message.error()
        code, feed = error.code(), self._feeds.get((message.topic(), message.partition()))
        if code == KafkaError._PARTITION_EOF:  # noqa: SLF001
            if feed is not None:
                feed.looked, feed.ended = message.offset() or 0, not self._tail
        elif code == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            if feed is not None:
                feed.displaced = error.str()
        elif code in ABOUT_GROUPS:
            log.debug("an error about a consumer group, by which nothing is read: %s", error)
        elif feed is not None or message.topic() is None:
            self._tell(code, cannot_read(code, error.str(), message.topic()), message)

    def _tell(self, code: int, reason: str, message: Message) -> None:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        kind = topic, partition, code
        now = time.monotonic()
        if self._told.get(kind, 0.0) <= now or code == KafkaError._BAD_MSG:  # noqa: SLF001
            self._told[kind] = now + TELL_AGAIN
            known = offset if offset is not None and offset >= 0 else None
            self.news.append(News(code, reason, topic, partition, known))

    def _look_at_ends(self, stopping: Callable[[], bool]) -> None:
        """While the dataflow is blocked, ask where partitions end: what has arrived says nothing
        of what came since. Runs on the thread that looks at the topics.
        """
        for feed in list(self._feeds.values()):
            if stopping() or time.monotonic() - self._polled < BLOCKED_SECONDS:
                return
            try:
                _, feed.end = self.watermarks(feed, END_SECONDS)
            except KafkaException as error:
                log.debug("where a partition ends is not known: %s", error)
                return

    def _show_lag(self) -> None:
        """Set Bytewax's own metric, from what the last answers of the brokers said."""
        for feed in self._feeds.values():
            _, end = self._consumer.get_watermark_offsets(
                TopicPartition(feed.topic, feed.number), cached=True
            )
            if end >= 0:  # it is -1001 before the first answer
                feed.end = end
                BYTEWAX_CONSUMER_LAG_GAUGE.labels(
                    step_id=self._step_id, topic=feed.topic, partition=feed.number
                ).set(max(0, end - feed.passed))
