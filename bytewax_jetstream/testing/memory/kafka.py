"""Publishes to the broker in memory as librdkafka does to Kafka: retries in order, then gives up.

It stands for librdkafka as well as for the broker. It retries by itself and stores nothing twice,
because the broker knows a producer's own messages; it does not know event ids. A message that the
library gives up may be stored, and is unknown.
"""

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from functools import partial

from ...envelope import Envelope
from ...errors import EnvelopeError
from ...publishing import (
    Outgoing,
    Policy,
    PublisherEvents,
    Receipt,
    Refusal,
    Route,
    Singles,
    Verdict,
    Wire,
    prepare_each,
)
from ...settings import PoolSettings
from .checks import check_for_kafka
from .connection import Connection
from .faults import Faults
from .storage import Storage

__all__ = ["KafkaLike"]

BACKOFF = 0.05
"""Seconds until a message is tried again that was refused for now."""
TIMED_OUT = -192
"""Kafka's error code for a message that its library has given up."""

Partition = tuple[str, int]
"""A topic and a partition of it."""


class _Message:
    """A message that the library has, until it is reported."""

    def __init__(self, number: int, index: int, envelope: Envelope, expires: float) -> None:
        self.number = number
        self.index = index
        self.envelope = envelope
        self.expires = expires
        """When the library gives it up."""
        self.answer: Receipt | Refusal | None = None
        """What the broker said, whether or not the library knows."""
        self.why = "it was not sent"
        """Why it has no answer yet."""
        self.reported = False


class KafkaLike:
    """Stores each envelope once a run, and retries as Kafka's library does; what it gives up may be
    stored.

    :arg identity: Of the broker: its lanes share one connection.
    """

    broker = "kafka"

    def __init__(
        self, faults: Faults, storage: Storage, pool: PoolSettings, *, identity: Hashable
    ) -> None:
        self._faults = faults
        self._storage = storage
        self._pool = pool
        self._identity = identity
        self._events: PublisherEvents
        self._connection: Connection | None = None
        self._queues: defaultdict[Partition, deque[_Message]] = defaultdict(deque)
        """What waits for each partition, in order: a message that is tried again holds up those
        behind it."""
        self._pausing: set[Partition] = set()
        """Partitions whose first message is tried again later."""
        self._unreported: deque[_Message] = deque()
        """What the library has, oldest first."""
        self._gives_up = False
        """Whether it will look for messages to give up."""

    @property
    def identity(self) -> Hashable:
        """That of the broker."""
        return self._identity

    @property
    def policy(self) -> Policy:
        """That of the Kafka publisher."""
        return Policy(
            delivery_timeout=self._pool.delivery_timeout,
            ack_timeout=None,
            one_per_aggregate=False,
            window=10_000,
            window_bytes=64 * 1024 * 1024,
            max_send=1_024,
            first_window_bytes=1_000_000,
        )

    async def start(self, events: PublisherEvents) -> None:
        """Connect.

        :raises ConnectError: when the broker is down.
        """
        self._events = events
        self._connection = Connection(
            self._faults, events, on_up=self._up, on_down=self._disconnected
        )
        events.connected()

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Wire | EnvelopeError]:
        """Check envelopes; there is nothing to encode."""
        return prepare_each(check_for_kafka, envelopes)

    def duplicate_window(self, topic: str) -> float | None:
        """None: like Kafka, it remembers no event ids."""
        return None

    def route(self, topic: str) -> Route | None:
        """Kafka's library forms batches of its own."""
        return None

    def send(self, outgoing: Outgoing) -> None:
        """Give it to the library, which has the broker take it."""
        assert isinstance(outgoing, Singles), "there are no routes, and no groups"
        assert self._connection is not None, "nothing is sent before the start"
        timeout = self._pool.delivery_timeout
        # As the Kafka publisher: early enough that results come by the delivery timeout.
        expires = self._connection.loop.time() + max(timeout - 1, timeout / 2)
        partitions = dict[Partition, None]()
        for index, envelope in enumerate(outgoing.envelopes):
            message = _Message(outgoing.number, index, envelope, expires)
            self._unreported.append(message)
            partition = envelope.topic, self._storage.partition_of(envelope)
            if partition[1] >= self._storage.partitions:
                self._refuse_partition(self._connection, message, partition)
                continue
            self._queues[partition].append(message)
            partitions[partition] = None
        for partition in partitions:
            self._produce(self._connection, partition)
        self._give_up_later(self._connection)

    def flush_hint(self) -> float:
        """Nothing ever lingers here."""
        return float("inf")

    def transit(self) -> tuple[int, int]:
        """Not known here."""
        return 0, 0

    async def close(self) -> None:
        """Let go of the connection; nothing is waited for."""
        if self._connection is not None:
            self._connection.close()

    def statistics(self) -> dict[str, int]:
        """Counters of the library."""
        return {
            "queued": sum(not message.reported for message in self._unreported),
            "reconnects": self._connection.resets if self._connection is not None else 0,
        }

    def _up(self) -> None:
        """Try everything again at once; the broker knows what it stored."""
        assert self._connection is not None, "it was connected before"
        for message in list(self._unreported):
            if message.answer is not None:
                self._answer(self._connection, message)
        self._pausing.clear()
        for partition in list(self._queues):
            self._produce(self._connection, partition)

    def _disconnected(self, reason: str) -> None:
        for message in self._unreported:
            message.why = reason

    # The broker takes messages

    def _produce(self, connection: Connection, partition: Partition) -> None:
        """Have the broker take what waits for a partition, up to a message that must be retried."""
        queue = self._queues[partition]
        while queue and connection.is_up and partition not in self._pausing:
            message = queue[0]
            if message.reported:  # given up
                queue.popleft()
                continue
            if self._faults.loses_request(message.envelope.event_id):
                message.why = self._silence
                self._pause(connection, partition, self._pool.ack_timeout)
                continue
            answer = self._faults.refuses(message.envelope)
            if answer is None:
                message.answer = self._storage.store(message.envelope)
            elif answer.verdict is Verdict.RETRY:
                message.why = answer.reason
                self._pause(connection, partition, BACKOFF)
                continue
            else:
                message.answer = answer
            queue.popleft()
            self._answer(connection, message)

    def _pause(self, connection: Connection, partition: Partition, seconds: float) -> None:
        self._pausing.add(partition)
        connection.later(seconds, partial(self._resume, connection, partition))

    def _resume(self, connection: Connection, partition: Partition) -> None:
        self._pausing.discard(partition)
        self._produce(connection, partition)

    def _refuse_partition(
        self, connection: Connection, message: _Message, partition: Partition
    ) -> None:
        topic, number = partition
        reason = (
            f"topic {topic} has no partition {number}: give one of 0 to "
            f"{self._storage.partitions - 1}, or None"
        )
        message.answer = Refusal(Verdict.REJECT, reason)
        self._answer(connection, message)

    # The library hears of it

    @property
    def _silence(self) -> str:
        return f"no answer within {self._pool.ack_timeout:g} s"

    def _answer(self, connection: Connection, message: _Message) -> None:
        """Answer the library, which asks again when the answer is lost."""
        if message.reported:
            return
        if self._faults.loses_answer(message.envelope.event_id):
            message.why = self._silence
            connection.later(self._pool.ack_timeout, partial(self._answer, connection, message))
        else:
            connection.answer(partial(self._report, message))

    def _report(self, message: _Message) -> None:
        if message.reported or message.answer is None:
            return
        message.reported = True
        if isinstance(message.answer, Receipt):
            self._events.acked(message.number, message.index, message.answer)
        else:
            self._events.refused(message.number, message.index, message.answer)
        self._forget_reported()

    def _give_up_later(self, connection: Connection) -> None:
        if self._unreported and not self._gives_up:
            self._gives_up = True
            seconds = self._unreported[0].expires - connection.loop.time()
            connection.later(max(0.0, seconds), partial(self._give_up, connection))

    def _give_up(self, connection: Connection) -> None:
        """Report what has been with the library for too long: it may be stored."""
        self._gives_up = False
        while self._unreported and self._unreported[0].expires <= connection.loop.time():
            message = self._unreported.popleft()
            if not message.reported:
                message.reported = True
                reason = (
                    f"the library gave up: timed out ({message.why}): check the broker, then "
                    "publish it again with the same event id"
                )
                refusal = Refusal(Verdict.GIVE_UP, reason, TIMED_OUT)
                self._events.refused(message.number, message.index, refusal)
        self._forget_reported()
        self._events.process()
        self._give_up_later(connection)

    def _forget_reported(self) -> None:
        while self._unreported and self._unreported[0].reported:
            self._unreported.popleft()
