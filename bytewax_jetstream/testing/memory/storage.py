"""`Storage`: what the broker in memory has stored, in order; duplicates, expected sequences."""

import threading
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple
from zlib import crc32

from ...envelope import Envelope, HeaderValue, PublishOptions, as_mapping
from ...publishing import Receipt, Refusal, Verdict

__all__ = ["STREAM", "Storage", "Stored"]

STREAM = "MEMORY"
"""The one stream of a broker like JetStream; it takes every topic."""
UNMET = 10071
"""JetStream's error code for an expected last sequence that is another."""


class Stored(NamedTuple):
    """A message as the broker has it."""

    topic: str
    payload: bytes | None
    event_id: str
    aggregate_id: str | None
    event_type: str | None
    headers: Mapping[str, HeaderValue]
    """With the first value of each name; `Headers` where a name is repeated."""
    stream: str | None
    """None for a broker like Kafka."""
    partition: int | None
    """None for a broker like JetStream."""
    sequence: int
    """The stream sequence, from 1; or the offset in the partition, from 0."""
    timestamp: datetime | None = None


class Storage:
    """The stream, or the partitions; filled on the pool's thread and read on any.

    :arg partitions: Partitions of each topic; 0 for one stream that knows event ids.
    """

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self._lock = threading.Lock()
        self._messages: list[Stored] = []
        self._by_id: dict[str, Stored] = {}
        """The first message of each event id."""
        self._ends: Counter[tuple[str, int]] = Counter()
        """How many messages each partition of a topic has."""
        self._last: Counter[str] = Counter()
        """The last stream sequence of each topic."""

    def messages(self) -> list[Stored]:
        """All messages, in the order in which they were stored."""
        with self._lock:
            return list(self._messages)

    def duplicate_of(self, event_id: str) -> Receipt | None:
        """The receipt of a message whose event id the stream knows."""
        known = self._by_id.get(event_id) if not self.partitions else None
        return known and Receipt(STREAM, None, known.sequence, duplicate=True)

    def partition_of(self, envelope: Envelope) -> int:
        """The partition an envelope goes to: the one it names, or that of its aggregate."""
        if envelope.partition is not None:
            return envelope.partition
        key = envelope.aggregate_id if envelope.aggregate_id is not None else envelope.event_id
        return crc32(key.encode("utf-8", "surrogatepass")) % self.partitions

    def store(self, envelope: Envelope) -> Receipt | Refusal:
        """Store a message; refuse it if the stream's last sequence is not the expected one."""
        with self._lock:
            if self.partitions:
                partition = self.partition_of(envelope)
                offset = self._ends[envelope.topic, partition]
                self._ends[envelope.topic, partition] += 1
                self._add(envelope, None, partition, offset)
                return Receipt(None, partition, offset)
            if envelope.options is not None:
                refusal = self._unmet(envelope.topic, envelope.options)
                if refusal is not None:
                    return refusal
            sequence = len(self._messages) + 1
            self._last[envelope.topic] = sequence
            self._add(envelope, STREAM, None, sequence)
            return Receipt(STREAM, None, sequence, duplicate=False)

    def _add(
        self, envelope: Envelope, stream: str | None, partition: int | None, sequence: int
    ) -> None:
        topic, payload, event_id, aggregate_id, event_type, _, _, _, timestamp = envelope
        stored = Stored(
            topic, payload, event_id, aggregate_id, event_type, as_mapping(envelope.header_pairs),
            stream, partition, sequence, timestamp,
        )  # fmt: skip
        self._messages.append(stored)
        self._by_id.setdefault(event_id, stored)

    def _unmet(self, topic: str, options: PublishOptions) -> Refusal | None:
        for expected, last in (
            (options.expected_last_sequence, len(self._messages)),
            (options.expected_last_subject_sequence, self._last[topic]),
        ):
            if expected is not None and expected != last:
                reason = f"the last sequence is {last}, and {expected} was expected"
                return Refusal(Verdict.REJECT, reason, UNMET)
        return None
