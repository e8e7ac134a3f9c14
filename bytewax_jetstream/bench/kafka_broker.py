"""A Kafka broker of the run, and what a second connection finds in it."""

from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import confluent_kafka
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from ..errors import BenchError
from .brokers import Figures, Stored, process_cpu, tally_ids
from .cases import Case
from .load import TOPICS

__all__ = ["KafkaBroker"]

SECONDS = 30.0
AT_ONCE = 10_000


class KafkaBroker:
    """A broker of our own, or the cluster at `url`."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or ""
        self._pid: int | None = None
        self._ends = dict.fromkeys(TOPICS, 0)
        """For each topic, where the round begins that is measured next."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if not self.url:
            from ..testing import KafkaServer

            server = self._stack.enter_context(KafkaServer())
            self.url, self._pid = server.bootstrap, server.pid
        self._admin = AdminClient({"bootstrap.servers": self.url})
        for topic, made in self._admin.create_topics(
            [NewTopic(topic, 1) for topic in TOPICS]
        ).items():
            try:
                made.result(SECONDS)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BenchError(
                        f"topic {topic} cannot be created at {self.url}: {error}",
                        broker="kafka",
                        url=self.url,
                    ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def prepare(self, case: Case, run: str) -> None:
        """Remember where the topics end; they are made once, because a new one is slow at first."""
        consumer = self._consumer()
        try:
            self._ends = {topic: self._end(consumer, topic) for topic in TOPICS}
        finally:
            consumer.close()

    def figures(self, *, first: bool) -> Figures:
        """Its CPU; Kafka has no requests beside those of producers and consumers, and counts no
        frames.
        """
        return Figures(cpu=None if self._pid is None else process_cpu(self._pid))

    def count(self, case: Case, run: str) -> Stored:
        """Read what came to the topics since `prepare`."""
        consumer, event_ids = self._consumer(), []
        try:
            left = sum(self._end(consumer, topic) - begin for topic, begin in self._ends.items())
            consumer.assign(
                [TopicPartition(topic, 0, begin) for topic, begin in self._ends.items()]
            )
            while left > 0:
                messages = consumer.consume(min(AT_ONCE, left), SECONDS)  # which waits for as many
                if not messages:
                    raise self._unread(case, f"{left} stored messages could not be read back")
                for message in messages:
                    if (error := message.error()) is not None:
                        raise self._unread(
                            case, f"the stored messages could not be read back: {error}"
                        )
                    event_ids.append(_event_id(message))
                left -= len(messages)
        finally:
            consumer.close()
        return tally_ids(event_ids, run)

    def clear(self, case: Case) -> None:
        """Let the broker delete what the round has stored."""
        futures: dict[TopicPartition, Future[Any]] = self._admin.delete_records(
            [TopicPartition(topic, 0, confluent_kafka.OFFSET_END) for topic in TOPICS]
        )
        for deleted in futures.values():
            deleted.result(SECONDS)

    def versions(self) -> dict[str, str]:
        """The client library's and, of a broker of our own, Kafka's."""
        found = {"librdkafka": confluent_kafka.libversion()[0]}
        if self._pid is not None:
            from ..testing.kafka_jars import VERSION

            found["kafka"] = VERSION
        return found

    def _unread(self, case: Case, what: str) -> BenchError:
        return BenchError(
            f"{what}; check the broker's log",
            broker="kafka",
            strategy=case.strategy,
            url=self.url,
        )

    def _consumer(self) -> Consumer:
        return Consumer(
            {"bootstrap.servers": self.url, "group.id": "bench", "enable.auto.commit": False}
        )

    def _end(self, consumer: Consumer, topic: str) -> int:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), SECONDS)
        return int(end)


def _event_id(message: Message) -> str:
    value = dict(message.headers() or ()).get("Event-Id")
    return value.decode() if isinstance(value, bytes) else ""
