"""The Kafka broker of a run, and what a second connection finds there."""

import time
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import confluent_kafka
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from ..errors import BenchError
from ..testing import KafkaServer
from ..testing.kafka_jars import VERSION
from .brokers import Figures, Stored, process_cpu, tally_ids
from .cases import Case
from .load import ID_HEADERS, new_place, topics_of

__all__ = ["KafkaBroker"]

SECONDS = 30.0
PAUSE = 0.05
AT_ONCE = 10_000


class KafkaBroker:
    """The Kafka cluster at `url`; without one, a broker that is started for the run."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or ""
        self._pid: int | None = None
        self.place = new_place()
        self._topics = topics_of(self.place)
        self._made: list[str] = []
        """The topics that are ours to delete."""
        self._ends = dict.fromkeys(self._topics, 0)
        """The offset in each topic where the next round begins."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if not self.url:
            server = self._stack.enter_context(KafkaServer())
            self.url, self._pid = server.bootstrap, server.pid
        self._admin = AdminClient({"bootstrap.servers": self.url})
        try:
            self._create_topics()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        try:
            if self._made and self._pid is None:
                for deleted in self._admin.delete_topics(self._made).values():
                    deleted.result(SECONDS)
        finally:
            self._made = []
            self._stack.close()

    def prepare(self, case: Case, run: str) -> None:
        """Remember where the topics end; every round uses the same ones, as new ones are slow."""
        consumer = self._consumer()
        try:
            self._ends = {topic: self._end(consumer, topic) for topic in self._topics}
        finally:
            consumer.close()

    def figures(self, *, first: bool) -> Figures:
        """Its CPU time; Kafka has no management requests to count, and does not count frames."""
        return Figures(cpu=None if self._pid is None else process_cpu(self._pid))

    def count(self, case: Case, run: str) -> Stored:
        """Read the messages that were stored since `prepare`."""
        consumer, event_ids = self._consumer(), []
        try:
            left = sum(self._end(consumer, topic) - begin for topic, begin in self._ends.items())
            consumer.assign(
                [TopicPartition(topic, 0, begin) for topic, begin in self._ends.items()]
            )
            while left > 0:
                messages = consumer.consume(min(AT_ONCE, left), SECONDS)  # waits for all of them
                if not messages:
                    raise BenchError(f"{left} stored messages could not be read back")
                for message in messages:
                    if (error := message.error()) is not None:
                        raise BenchError(f"a stored message could not be read back: {error}")
                    event_ids.append(_event_id(message))
                left -= len(messages)
        finally:
            consumer.close()
        return tally_ids(event_ids, run)

    def clear(self) -> None:
        """Let the broker delete the messages of the round."""
        futures: dict[TopicPartition, Future[Any]] = self._admin.delete_records(
            [TopicPartition(topic, 0, confluent_kafka.OFFSET_END) for topic in self._topics]
        )
        for deleted in futures.values():
            deleted.result(SECONDS)

    def versions(self) -> dict[str, str]:
        """The client library's version, and Kafka's if the broker was started for the run."""
        found = {"librdkafka": confluent_kafka.libversion()[0]}
        if self._pid is not None:
            found["kafka"] = VERSION
        return found

    def _create_topics(self) -> None:
        created = self._admin.create_topics([NewTopic(topic, 1) for topic in self._topics])
        refused: dict[str, KafkaException] = {}
        for topic, future in created.items():
            try:
                future.result(SECONDS)
                self._made.append(topic)
            except KafkaException as error:
                refused[topic] = error
        for topic, refusal in refused.items():
            raise BenchError(
                f"topic {topic} cannot be created at {self.url}: {refusal.args[0].str()}"
            )

    def _consumer(self) -> Consumer:
        return Consumer(
            {"bootstrap.servers": self.url, "group.id": "bench", "enable.auto.commit": False}
        )

    def _end(self, consumer: Consumer, topic: str) -> int:
        until = time.monotonic() + SECONDS
        while True:
            try:
                _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), SECONDS)
                return int(end)
            except KafkaException as error:  # a topic that was just made has no leader yet
                if time.monotonic() > until:
                    raise BenchError(f"topic {topic} cannot be read: {error}") from None
                time.sleep(PAUSE)


def _event_id(message: Message) -> str:
    value = dict(message.headers() or ()).get(ID_HEADERS["header"])
    return value.decode() if isinstance(value, bytes) else ""
