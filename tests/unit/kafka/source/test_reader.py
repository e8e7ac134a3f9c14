from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, TopicPartition

from bytewax_jetstream.kafka.source.look_up import Found
from bytewax_jetstream.kafka.source.place import Log, Topic
from bytewax_jetstream.kafka.source.reader import Reader
from bytewax_jetstream.settings import KafkaSettings


class Message:
    """Like one of librdkafka's."""

    def __init__(
        self,
        partition: int | None = 0,
        offset: int = 0,
        code: int | None = None,
        name: bytes = b"a",
    ) -> None:
        self._topic = None if partition is None else "t"
        self._partition, self._offset, self._code, self._name = partition, offset, code, name

    def error(self) -> KafkaError | None:
        return None if self._code is None else KafkaError(self._code, "why")

    def topic(self) -> str | None:
        return self._topic

    def partition(self) -> int | None:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return b"%d" % self._offset

    def headers(self) -> Any:
        return [(self._name.decode(), b"")]

    def latency(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (0, 0)

    def leader_epoch(self) -> int:
        return 4


class Consumer:
    """Gives what a test says; `made` is the last one."""

    made: "Consumer"

    def __init__(self, config: dict[str, Any]) -> None:
        Consumer.made = self
        self.config = config
        self.waiting: list[Message] = []
        self.calls: list[tuple[str, list[tuple[int, int]]]] = []

    def consume(self, count: int, timeout: float) -> list[Message]:
        assert timeout == 0, "the worker must not wait"
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self.calls.append(("assign", [(one.partition, one.offset) for one in places]))

    def incremental_unassign(self, places: list[TopicPartition]) -> None:
        self.calls.append(("unassign", [(one.partition, 0) for one in places]))

    def seek(self, place: TopicPartition) -> None:
        self.calls.append(("seek", [(place.partition, place.offset)]))

    def get_watermark_offsets(self, place: TopicPartition, **_: Any) -> tuple[int, int]:
        return (-1001, -1001)

    def close(self) -> None:
        self.calls.append(("close", []))


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.setattr("bytewax_jetstream.kafka.source.reader.Consumer", Consumer)
    found = Found("cluster", {"t": Topic("id", (Log(0, 0), Log(0, 0)))})
    reader = Reader(KafkaSettings(), "step", found, lambda names: {}, tail=True, batch_size=10)
    yield reader
    reader.close()


def test_messages_come_to_their_partitions_and_move_their_places(reader: Reader) -> None:
    feeds = [reader.open("t", number, 5, None) for number in (0, 1)]
    Consumer.made.waiting = [Message(number % 2, 10 + number) for number in range(6)]

    reader.poll()

    assert [item.offset for item in feeds[0].take(2)] == [10, 12]
    assert (feeds[0].position, feeds[0].epoch) == (13, 4)
    assert [item.offset for item in feeds[0].take(2)] == [14]
    assert [item.offset for item in feeds[1].take(10)] == [11, 13, 15]
    assert feeds[1].position == 16


def test_errors_move_no_place_and_are_told_once(reader: Reader) -> None:
    feed = reader.open("t", 0, 5, None)
    denied = KafkaError.TOPIC_AUTHORIZATION_FAILED
    Consumer.made.waiting = [
        Message(0, 5),
        Message(0, 99, code=denied),
        Message(0, 99, code=denied),
        Message(1, 99, code=denied),
    ]

    reader.poll()

    assert feed.position == 5, "nothing was taken yet"
    feed.take(10)
    assert feed.position == 6
    Consumer.made.waiting = [Message(0, 7, code=denied)]
    reader.poll()
    assert (feed.take(10), feed.position) == ([], 6)
    (news,) = reader.news
    assert (news.code, news.topic, news.partition, news.offset) == (denied, "t", 0, 99)


def test_errors_about_the_group_are_ignored(reader: Reader) -> None:
    reader.open("t", 0, 5, None)
    Consumer.made.waiting = [
        Message(None, -1001, code=KafkaError.GROUP_AUTHORIZATION_FAILED),
        Message(None, -1001, code=KafkaError._MAX_POLL_EXCEEDED),
    ]

    reader.poll()

    assert reader.news == []


def test_errors_of_the_whole_consumer_are_told(reader: Reader) -> None:
    Consumer.made.waiting = [Message(None, -1001, code=KafkaError._FATAL)]

    reader.poll()

    assert [news.code for news in reader.news] == [KafkaError._FATAL]


def test_message_whose_header_cannot_be_decoded_is_told_and_the_others_come(
    reader: Reader,
) -> None:
    feed = reader.open("t", 0, 5, None)
    Consumer.made.waiting = [Message(0, 5), Message(0, 6, name=b"\xff"), Message(0, 7)]

    reader.poll()

    assert [item.offset for item in feed.take(10)] == [5, 7]
    (news,) = reader.news
    assert news.reason.startswith("offset 6 of partition 0 of topic t has a header whose name is")
    assert news.reason.endswith('on_error="errs" passes over it')


def test_idle_partitions_take_no_more_than_the_feeds_may_hold(reader: Reader) -> None:
    busy, idle = reader.open("t", 0, 0, None), reader.open("t", 1, 0, None)
    Consumer.made.waiting = [Message(0, number) for number in range(100)]

    for _ in range(50):
        reader.poll()

    assert (len(busy.items), len(idle.items)) == (10, 0)
    busy.take(10)
    reader.poll()
    assert busy.items[0].offset == 10


def test_epoch_is_checked_by_a_seek_and_only_if_there_is_one(reader: Reader) -> None:
    reader.open("t", 0, 5, 3)
    reader.open("t", 1, 6, None)

    reader.poll()

    assert Consumer.made.calls == [("assign", [(0, 5), (1, 6)]), ("seek", [(0, 5)])]


def test_moved_partition_goes_on_at_the_new_place(reader: Reader) -> None:
    feed = reader.open("t", 0, 5, None)
    reader.poll()
    feed.displaced = "out of range"
    reader.move(feed, 20)
    reader.poll()

    assert Consumer.made.calls == [
        ("assign", [(0, 5)]), ("unassign", [(0, 0)]), ("assign", [(0, 20)])
    ]  # fmt: skip
    assert feed.position == 20


def test_consumer_keeps_its_promises_whatever_add_config_says() -> None:
    config = {"queued.max.messages.kbytes": 1024, "fetch.wait.max.ms": 10}
    found = Found(None, {"t": Topic(None, (Log(0, 0),))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bytewax_jetstream.kafka.source.reader.Consumer", Consumer)
        reader = Reader(
            KafkaSettings(add_config=config),
            "step",
            found,
            lambda names: {},
            tail=False,
            batch_size=1,
        )
        reader.close()

    made = Consumer.made.config
    assert made["queued.max.messages.kbytes"] == 1024
    assert made["fetch.wait.max.ms"] == 10
    assert made["auto.offset.reset"] == "error"
    assert made["enable.auto.commit"] is False
    assert made["allow.auto.create.topics"] is False
    assert made["enable.partition.eof"] is True
