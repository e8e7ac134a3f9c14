"""`GroupCommits`: tells a consumer group how far the committed epochs are; for monitoring only.

Nothing is ever read back, and no member of the group is needed. So a commit that fails harms
nothing: it is counted, and logged, and the next one says the same and more.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ...metrics import Sample, table

__all__ = ["GroupCommits"]

log = logging.getLogger(__name__)

SEND_SECONDS = 1.0
"""How often offsets are sent at most."""
CLOSE_SECONDS = 1.0
"""How long the end of a run waits for the answer to the last commit."""
TELL_SECONDS = 60.0
"""How often a failure is logged at most."""


class GroupCommits:
    """The offsets that one consumer commits; all methods are for the thread that reads with it."""

    def __init__(self, step: str, group: str) -> None:
        self._step, self._group = step, group
        self._due: dict[tuple[str, int], int] = {}
        self._unanswered = 0
        self._sent_at = float("-inf")
        self._told_at = float("-inf")
        self._counts = {"ok": 0, "failed": 0}

    def add(self, topic: str, partition: int, position: int) -> None:
        """The group is to be told this offset of the next message."""
        self._due[topic, partition] = position

    def send(self, consumer: Consumer, now: float) -> None:
        """Send what is due, unless that was just done; never waits."""
        if not self._due or now - self._sent_at < SEND_SECONDS:
            return
        self._sent_at = now
        offsets = [TopicPartition(*place, position) for place, position in self._due.items()]
        self._due = {}
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
            self._unanswered += 1
        except KafkaException as error:
            self._failed(error)

    def answered(self, error: KafkaError | None, offsets: list[Any]) -> None:
        """Called by librdkafka when a commit was answered."""
        self._unanswered -= 1
        refused = next((each.error for each in offsets if each.error is not None), None)
        if error is None and refused is None:
            self._counts["ok"] += 1
        else:
            self._failed(error or refused)

    def close(self, consumer: Consumer) -> None:
        """Send what is due, and wait a little for the answer."""
        self.send(consumer, float("inf"))
        until = time.monotonic() + CLOSE_SECONDS
        consumer.unassign()
        while self._unanswered > 0 and time.monotonic() < until:
            consumer.poll(0.05)

    def samples(self) -> Iterator[Sample]:
        """What the metrics say of it. Called on the thread of a scrape."""
        for result, count in self._counts.items():
            yield Sample(table.GROUP_COMMITS, (self._step, result), count)

    def _failed(self, error: object) -> None:
        self._counts["failed"] += 1
        now = time.monotonic()
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            log.warning(
                "step %s: the offsets of an epoch could not be committed to consumer group %s "
                "(%s), so tools that watch the group show older ones; nothing else depends on it: "
                "grant READ on the group, and let no consumer join it",
                self._step,
                self._group,
                error,
            )
