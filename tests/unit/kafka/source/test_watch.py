from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from bytewax_jetstream.kafka.source.watch import News, Watch

UNKNOWN = KafkaError.UNKNOWN_TOPIC_OR_PART


class Cluster:
    """Answers as brokers do."""

    def __init__(self) -> None:
        self.partitions: dict[str, int] = {"a": 2}
        self.ids = {"a": "one"}
        self.errors: dict[str, int] = {}
        self.up = True
        self.asked_ids = 0

    def list_topics(self, name: str, seconds: float) -> Any:
        if not self.up:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT, "nobody"))
        code = self.errors.get(name)
        topic = SimpleNamespace(
            error=None if code is None else KafkaError(code),
            partitions=dict.fromkeys(range(self.partitions[name])),
        )
        return SimpleNamespace(topics={name: topic})

    def ask_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        self.asked_ids += 1
        return {name: self.ids[name] for name in names if name not in self.errors}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def watch(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    return Watch(
        cluster.list_topics,
        cluster.ask_ids,
        {"a": 2},
        {"a": "one"},
        patience=30.0,
        why=lambda: KafkaError(KafkaError._AUTHENTICATION, "wrong password"),
    )


def _codes(watch: Watch) -> list[int]:
    return [news.code for news in watch.news]


def test_new_partitions_are_seen_and_old_ones_stay(watch: Watch, cluster: Cluster) -> None:
    cluster.partitions["a"] = 5
    watch.look(1.0)
    assert watch.partitions == {"a": 5}
    cluster.partitions["a"] = 3
    watch.look(2.0)
    assert watch.partitions == {"a": 5}
    assert cluster.asked_ids == 1, "a topic that shrinks may be another one"


def test_missing_topic_is_told_once_and_only_when_it_stays_away(
    watch: Watch, cluster: Cluster
) -> None:
    cluster.errors["a"] = UNKNOWN
    for now in (1.0, 5.9):
        watch.look(now)
    assert watch.news == []
    for now in (6.0, 10.0, 100.0):
        watch.look(now)
    assert _codes(watch) == [UNKNOWN]


def test_topic_that_was_away_for_a_moment_is_not_told_of_but_compared(
    watch: Watch, cluster: Cluster
) -> None:
    cluster.errors["a"] = UNKNOWN
    watch.look(1.0)
    cluster.errors.clear()
    watch.look(3.0)
    watch.look(20.0)
    assert (watch.news, cluster.asked_ids) == ([], 1)
    cluster.errors["a"] = UNKNOWN
    watch.look(21.0)
    cluster.errors.clear()
    cluster.ids["a"] = "two"
    watch.look(22.0)
    assert watch.news == [News(KafkaError.UNKNOWN_TOPIC_ID, "", "a", made_again=True)]


def test_ids_are_compared_once_a_minute(watch: Watch, cluster: Cluster) -> None:
    for now in range(0, 130, 2):
        watch.look(float(now))

    assert cluster.asked_ids == 2


def test_missing_right_is_told_again_only_after_it_was_there(
    watch: Watch, cluster: Cluster
) -> None:
    cluster.errors["a"] = KafkaError.TOPIC_AUTHORIZATION_FAILED
    watch.look(1.0)
    watch.look(2.0)
    assert _codes(watch) == [KafkaError.TOPIC_AUTHORIZATION_FAILED]
    cluster.errors.clear()
    watch.look(3.0)
    cluster.errors["a"] = KafkaError.TOPIC_AUTHORIZATION_FAILED
    watch.look(4.0)
    assert len(watch.news) == 2


def test_silent_brokers_are_told_of_after_the_delivery_timeout_with_the_cause(
    watch: Watch, cluster: Cluster
) -> None:
    cluster.up = False
    watch.look(1.0)
    watch.look(30.9)
    assert watch.news == []
    watch.look(31.0)
    watch.look(40.0)
    (news,) = watch.news
    assert news.reason == (
        "no broker has answered for 30 s (wrong password): check that the brokers are running"
    )
    cluster.up = True
    watch.look(41.0)
    cluster.up = False
    watch.look(42.0)
    watch.look(71.9)
    assert len(watch.news) == 1
    watch.look(72.0)
    assert len(watch.news) == 2
