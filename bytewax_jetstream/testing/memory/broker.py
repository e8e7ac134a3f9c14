"""`MemoryBroker`: what a test creates, gives to its flow as settings, and looks into."""

from dataclasses import dataclass
from typing import Literal

from ...publishing import Publisher
from ...settings import PoolSettings
from .faults import Faults
from .jetstream import JetStreamLike
from .kafka import KafkaLike
from .storage import Storage, Stored

__all__ = ["MemoryBroker", "MemorySettings"]


class MemoryBroker(Faults):
    """Keeps every envelope it stores, in order, for a test to look at; `settings` goes wherever
    settings of a broker go.

    It lives as long as the object does: several runs of a dataflow, and several pools, publish to
    the same broker. Faults are off at first and may be changed at any moment, from any thread;
    which messages and answers are lost follows from the seed, the event id and the attempt.

    :arg like: `jetstream` knows event ids, and answers a known one as a duplicate; the pool
        retries. `kafka` does not know them; it stands for the broker and its client library,
        which retries by itself.
    :arg seed: The same seed loses the same messages and answers.
    :arg pool: Sizes and deadlines of the pool; a test of silence wants short ones.
    :arg batches: Like JetStream: whether the stream takes batches, with flow acks and one answer
        for many messages.
    :arg partitions: Like Kafka: partitions of each topic.
    """

    def __init__(
        self,
        like: Literal["jetstream", "kafka"] = "jetstream",
        *,
        seed: int = 0,
        pool: PoolSettings | None = None,
        batches: bool = True,
        partitions: int = 4,
    ) -> None:
        if like not in ("jetstream", "kafka"):
            raise ValueError(f"like is {like!r}: give 'jetstream' or 'kafka'")
        if type(partitions) is not int or partitions < 1:
            raise ValueError(f"partitions is {partitions!r}: give 1 or more")
        super().__init__(seed)
        self.like = like
        self.pool = pool or PoolSettings()
        """For the settings and publishers that are made from now on."""
        self._batches = batches
        self._storage = Storage(partitions if like == "kafka" else 0)

    def __repr__(self) -> str:
        state = "down" if self.is_down else "up"
        return f"<MemoryBroker like {self.like}, {state}, {len(self.stored)} messages stored>"

    @property
    def settings(self) -> "MemorySettings":
        """For `jop.publish` and `jop.output`; equal for one broker, and never for two."""
        return MemorySettings(self, self.pool)

    @property
    def stored(self) -> list[Stored]:
        """All messages, in the order in which they were stored."""
        return self._storage.messages()

    def stored_on(self, topic: str) -> list[Stored]:
        """The messages of a topic, in the order in which they were stored."""
        return [message for message in self.stored if message.topic == topic]

    def publisher(self) -> Publisher:
        """A publisher for a pool without a dataflow: `pool.lane(broker.publisher(), name=…)`."""
        if self.like == "kafka":
            return KafkaLike(self, self._storage, self.pool, identity=self)
        return JetStreamLike(self, self._storage, self.pool, identity=self, batches=self._batches)


@dataclass(frozen=True)
class MemorySettings:
    """What makes a publish step store its envelopes in a broker in memory."""

    broker: MemoryBroker
    pool: PoolSettings

    def publisher(self) -> Publisher:
        """A publisher to the broker; all of one broker share a connection."""
        return self.broker.publisher()
