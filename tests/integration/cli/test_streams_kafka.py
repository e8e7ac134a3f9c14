"""`streams plan`, `apply` and `check` beside a real Kafka broker."""

import time

import pytest

from tests.support.commands import Ended, Given, call
from tests.support.kafka import new_topic


@pytest.fixture
def topic(kafka_address: str, given: Given) -> str:
    """The name of a topic that is not there; the broker is set."""
    given(kafka_brokers=kafka_address)
    return f"planned-{time.time_ns()}"


def _lines(ended: Ended) -> list[str]:
    return [line.strip() for line in ended.out.splitlines()]


def test_missing_topic_is_planned_made_and_then_checked(topic: str, given: Given) -> None:
    given(kafka_topic_settings=[{"name": topic, "partitions": 3, "cleanup_policy": "compact"}])

    plan, check = call("streams", "plan"), call("streams", "check")

    assert (plan.code, check.code) == (1, 4)
    assert f"+ topic {topic} is missing, and would be created" in _lines(plan)
    assert {"partitions: 3", "cleanup.policy: compact"} <= set(_lines(plan))
    assert check.err.splitlines()[0] == f"topic {topic} is missing"
    assert "missing" in call("streams", "plan").out, "the plan has made the topic"

    made = call("streams", "apply")

    assert made.code == 0
    assert f"created topic {topic}" in _lines(made)
    assert call("streams", "plan").code == call("streams", "check").code == 0


def test_longer_retention_needs_no_yes_and_a_shorter_one_changes_nothing(
    kafka_address: str, given: Given
) -> None:
    topic = new_topic(kafka_address, retention_ms="7200000")
    given(kafka_brokers=kafka_address)
    given(kafka_topic_settings=[{"name": topic, "retention": "PT1H"}])
    assert call("streams", "plan").code == 0
    given(kafka_topic_settings=[{"name": topic, "retention": "PT3H"}])

    made = call("streams", "apply")

    assert made.code == 0
    assert "retention.ms: 7200000 -> 10800000" in _lines(made)
    assert call("streams", "plan").code == 0


@pytest.mark.parametrize(
    ("wants", "says"),
    [
        ({"cleanup_policy": "compact"}, "removes all but the last message of each key"),
        ({"partitions": 5}, "the order of an aggregate is lost"),
    ],
    ids=["cleanup.policy", "partitions"],
)
def test_change_that_could_lose_messages_or_order_needs_yes(
    kafka_address: str, given: Given, wants: dict[str, object], says: str
) -> None:
    topic = new_topic(kafka_address)
    given(kafka_brokers=kafka_address)
    given(kafka_topic_settings=[{"name": topic, **wants}])

    refused = call("streams", "apply")

    assert refused.code == 2
    assert f"risk: with {'more partitions' if 'partitions' in wants else 'cleanup'}" in refused.out
    assert says in refused.out
    assert call("streams", "plan").code == 1, "something was changed"
    assert call("streams", "apply", "--yes").code == 0
    assert call("streams", "plan").code == 0


@pytest.mark.parametrize(
    ("wants", "says"),
    [
        ({"replicas": 3}, "cannot be created: "),
        ({"max_message_bytes": 10_000}, "set batch_bytes=10000, or raise"),
    ],
    ids=["the brokers refuse it", "too small for this flow"],
)
def test_topic_that_could_not_be_used_is_said_before_anything_is_made(
    topic: str, given: Given, wants: dict[str, object], says: str
) -> None:
    given(kafka_topic_settings=[{"name": topic, **wants}, {"name": f"{topic}-other"}])

    plan, made = call("streams", "plan"), call("streams", "apply")

    assert plan.code == made.code == 4
    assert f"! topic {topic} cannot be made as the settings require" in _lines(plan)
    assert says in plan.out
    assert f"topic {topic}-other is missing" in call("streams", "check").err


def test_topic_with_too_few_replicas_cannot_be_changed(kafka_address: str, given: Given) -> None:
    topic = new_topic(kafka_address)
    given(kafka_brokers=kafka_address, kafka_topic_settings=[{"name": topic, "replicas": 2}])

    plan = call("streams", "plan")

    assert plan.code == 4
    assert "its replication factor is 1, the settings require 2: change the topic" in plan.out


def test_topic_that_is_only_named_has_to_be_there(topic: str, given: Given) -> None:
    given(kafka_topics=topic)

    plan = call("streams", "plan", "--json")

    assert plan.code == 4
    (entry,) = plan.json["brokers"][0]["entries"]
    assert (entry["name"], entry["action"]) == (topic, "cannot")
    assert "declare a KafkaTopicSettings for it" in entry["obstacles"][0]


def test_broker_that_is_not_there_is_one_sentence(topic: str, given: Given) -> None:
    given(kafka_brokers="127.0.0.1:9", kafka_topics=topic, kafka_connect_timeout=1)

    ended = call("streams", "plan")

    assert ended.code == 3
    assert ended.err.startswith("bytewax-jetstream streams plan: no connection to Kafka at 127.")
    assert len(ended.err.splitlines()) == 1
