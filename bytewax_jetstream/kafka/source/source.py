"""`KafkaSource`: checks its arguments, looks at the topics, and opens a reader for each worker."""

import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from bytewax.inputs import FixedPartitionedSource

from ... import drain
from ...recovery_state import KafkaPlace, KafkaState, read_kafka_state
from ...settings import KafkaSettings
from .look_up import Found, look_up, topic_ids
from .message import Item
from .partition import KafkaPartition, OnError
from .place import Begin, KafkaStart, Topic, begin
from .reader import Reader

__all__ = ["KafkaSource", "KafkaStart", "OnError"]

log = logging.getLogger(__name__)

TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}").fullmatch
SOURCE_OWN = frozenset(
    {
        "auto.commit.enable",
        "auto.commit.interval.ms",
        "auto.offset.reset",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "group.id",
        "group.instance.id",
        "group.protocol",
        "group.remote.assignor",
        "max.poll.interval.ms",
        "partition.assignment.strategy",
        "session.timeout.ms",
        "heartbeat.interval.ms",
    }
)
"""Properties of librdkafka that would do nothing here, or change where reading goes on."""
FEWEST_NAMES = 16
FRESH_SECONDS = 5.0
"""How old a look at the topics may be when a partition begins."""
ID_SECONDS = 3.0
"""How long a comparison of topic ids may take; the end of the run may wait for it."""


class KafkaSource(FixedPartitionedSource[Item, KafkaState]):
    """Reads every message of its topics; resumes by offset from the recovery store, without a
    consumer group.

    Each partition of a topic is a partition of the input; one that is added later is read from its
    first offset. Yields `KafkaMessage`, which is Bytewax's `KafkaSourceMessage` with the ids of
    cluster and topic, and Bytewax's `KafkaError` for what could not be read. All partitions of a
    worker share one consumer.

    The place in a partition is moved by messages only. If messages were removed before they were
    read, reading goes on at the first that is there, with a warning and a `KafkaError` that has
    their number. If the topic was made again, or lacks messages that were read, the run stops with
    `SourceError`, whatever `on_error` says.

    The start fails with one sentence when a topic is missing, no broker answers within the connect
    timeout, or the brokers refuse this user.

    :arg settings: Which Kafka.
    :arg topics: Name of the topic, or of several.
    :arg tail: Wait for new messages at the end.
    :arg start: Where to start the first time: `first`, `new`, or an offset that every partition
        has. The end that `new` means is in the recovery store from the first epoch on.
    :arg batch_size: Most messages in a batch.
    :arg on_error: What happens when reading fails in a way that may pass: the topic is deleted, a
        permission is taken away, or no broker answers for the pool's delivery timeout. `stop` ends
        the run with `SourceError`; the epoch is not committed, so nothing is missed. `errs` emits a
        `KafkaError`, and goes on when it can.
    :arg group: Name of a consumer group that gets the offsets of each epoch once it is committed,
        so that tools which watch consumer groups show how far this flow is. They are never read
        back, and a commit that fails is only counted and logged. The offsets of a run's last epoch
        come at the next start. No consumer may be a member of the group.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        topics: str | Sequence[str],
        tail: bool = True,
        start: KafkaStart = "first",
        batch_size: int = 1000,
        on_error: OnError = "stop",
        group: str | None = None,
    ) -> None:
        names = _checked_names(topics)
        _check(settings, start, batch_size, on_error, group)
        drain.install(settings.pool.drain_timeout)
        self._settings = settings
        self._names = names
        self._tail, self._start = tail, start
        self._batch_size, self._on_error = batch_size, on_error
        self._group = group
        self._lock = threading.Lock()
        """Workers open and close their partitions at the same time."""
        self._found: tuple[float, Found] | None = None
        self._spare: dict[str, int] = {}
        self._readers: dict[int, Reader] = {}
        """The reader of each worker thread."""
        self._resumed: set[str] = set()
        """Topics of which a partition goes on, so that `start` is past for the others too."""
        self._warned = False
        forget_parent = weakref.WeakMethod(self._forget_parent)

        def in_child() -> None:
            if (forget := forget_parent()) is not None:
                forget()

        os.register_at_fork(after_in_child=in_child)

    def _forget_parent(self) -> None:
        """In a forked child: the parent's lock may be held, and its consumers are not ours."""
        self._lock = threading.Lock()
        self._inherited = self._readers  # kept, or their end would end the parent's consumers
        self._readers = {}
        self._found = None

    def list_parts(self) -> list[str]:
        """Each Kafka partition is an input partition, and so are some that may be added later:
        Bytewax asks once, and what it was told must be there at each resume.
        """
        found = self._look()
        with self._lock:
            for name in self._names:
                names = _names_for(len(found.topics[name].logs))
                self._spare[name] = max(names, self._spare.get(name, 0))
        return [f"{number}-{name}" for name in self._names for number in range(self._spare[name])]

    def build_part(
        self, step_id: str, for_part: str, resume_state: KafkaState | None
    ) -> drain.DrainingPartition:
        """Find the place to begin at, so that errors come before any message.

        :raises ConnectError: when no broker answers, or the brokers refuse this user.
        :raises TopicError: when the topic is missing.
        :raises SourceError: when the place in the recovery store is not in this topic.
        """
        index, _, name = for_part.partition("-")
        number = int(index)
        place = None if resume_state is None else self._place(resume_state, step_id)
        if place is not None:
            self._resumed.add(name)
        # The engine first builds the partitions that have a state. One that has none then is newer
        # than the last run, and nothing of it was read.
        start = "first" if name in self._resumed else self._start
        found = self._look()
        topic = found.topics[name]
        first = begin(place, start, name, topic, number, step_id)
        with self._lock:
            reader = self._lease(step_id, found)
            try:
                resumed = place is not None
                part = self._partition(step_id, reader, name, number, topic, first, resumed)
            except BaseException:
                self._release_locked(reader)
                raise
        return drain.DrainingPartition(part)

    def _partition(
        self,
        step_id: str,
        reader: Reader,
        name: str,
        number: int,
        topic: Topic,
        first: Begin,
        resumed: bool,
    ) -> KafkaPartition:
        return KafkaPartition(
            reader,
            name,
            number,
            topic.topic_id,
            first,
            step=step_id,
            spare=max(self._spare.get(name, 0), number + 1),
            tail=self._tail,
            batch_size=self._batch_size,
            on_error=self._on_error,
            resumed=resumed,
            release=lambda: self._release(reader),
        )

    def _place(self, state: object, step_id: str) -> KafkaPlace:
        place = read_kafka_state(state, step_id)
        if type(state) is int and not self._warned:
            self._warned = True
            log.warning(
                "step %s goes on at offsets that an earlier version stored without the topic's id: "
                "if a topic was made again since, messages are missed or repeated; from the next "
                "epoch on that is noticed",
                step_id,
            )
        return place

    def _look(self) -> Found:
        with self._lock:
            now = time.monotonic()
            if self._found is None or now - self._found[0] > FRESH_SECONDS:
                isolation = str(self._settings.add_config.get("isolation.level", "read_committed"))
                self._found = now, look_up(self._settings, self._names, isolation)
            return self._found[1]

    def _lease(self, step_id: str, found: Found) -> Reader:
        """This thread's reader."""
        thread = threading.get_ident()
        reader = self._readers.get(thread)
        if reader is None:
            reader = self._readers[thread] = Reader(
                self._settings,
                step_id,
                found,
                lambda names: topic_ids(self._settings, names, ID_SECONDS),
                tail=self._tail,
                batch_size=self._batch_size,
                group=self._group,
            )
        reader.users += 1
        return reader

    def _release(self, reader: Reader) -> None:
        with self._lock:
            self._release_locked(reader)

    def _release_locked(self, reader: Reader) -> None:
        reader.users -= 1
        if not reader.users:
            self._readers = {
                thread: other for thread, other in self._readers.items() if other is not reader
            }
            reader.close()
        if not self._readers:
            self._resumed.clear()
            self._found = None  # of this run; the next one may go on beyond what was there


def _names_for(partitions: int) -> int:
    """How many partitions to name: a power of two, so that a topic that is made again with a few
    less still has all names of the recovery store, and what happened can be told.
    """
    names = FEWEST_NAMES
    while names < partitions + partitions // 4 + 4:
        names *= 2
    return names


def _checked_names(topics: str | Sequence[str]) -> list[str]:
    names: list[Any] = [topics] if isinstance(topics, str) else list(topics)
    if not names:
        raise ValueError("name at least one topic to read: topics=...")
    for name in names:
        if not isinstance(name, str) or not TOPIC(name) or name in (".", ".."):
            raise ValueError(
                f"{name!r} is not the name of a Kafka topic: write out each topic, "
                "because patterns are not supported"
            )
    # Of a str subclass, such as StrEnum, the value counts.
    names = [str.__str__(name) for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f"topics {names!r}: give each once")
    return names


def _check(
    settings: KafkaSettings, start: object, batch_size: object, on_error: object, group: object
) -> None:
    if start not in ("first", "new") and (type(start) is not int or start < 0):
        raise ValueError(f"invalid start {start!r}: give 'first', 'new', or an offset from 0")
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"invalid batch_size {batch_size!r}: give an int from 1")
    if on_error not in ("stop", "errs"):
        raise ValueError(f"invalid on_error {on_error!r}: give 'stop' or 'errs'")
    if group is not None and (not isinstance(group, str) or not group.strip()):
        raise ValueError(f"invalid group {group!r}: give the name of a consumer group")
    own = sorted(SOURCE_OWN & settings.add_config.keys())
    if own:
        raise ValueError(
            f"{', '.join(own)} in add_config: this source reads without a consumer group, and the "
            "recovery store says where it goes on, so leave it out; group=... names a consumer "
            "group that is told how far it is"
        )
