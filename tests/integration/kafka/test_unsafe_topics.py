"""Topics that could lose what is stored in them are not published to, and none is made unasked."""

from collections.abc import Iterator
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSink
from confluent_kafka.admin import AdminClient

import bytewax_jetstream.operators as jop
from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.errors import TopicError
from bytewax_jetstream.settings import KafkaTopicSettings
from bytewax_jetstream.testing import KafkaServer
from tests.support.dataflows import root_cause, run
from tests.support.kafka import new_topic, records
from tests.support.lanes import kafka, publish
from tests.support.streams import envelopes

UNCLEAN = "may elect a leader that lacks stored messages: set unclean.leader.election.enable=false"


@pytest.mark.parametrize("declared", ["topics", "topic_settings"])
def test_declared_topic_with_unclean_leader_election_is_refused(
    declared: str, kafka_address: str
) -> None:
    topic = new_topic(kafka_address, unclean_leader_election_enable="true")
    settings = (KafkaTopicSettings(name=topic),) if declared == "topic_settings" else ()

    with pytest.raises(TopicError, match=rf"^topic {topic} {UNCLEAN}"):
        publish(kafka(kafka_address, topics=(topic,), topic_settings=settings))


def test_envelopes_for_a_topic_with_unclean_leader_election_are_rejected(
    kafka_address: str,
) -> None:
    unsafe = new_topic(kafka_address, unclean_leader_election_enable="true")
    safe = new_topic(kafka_address)

    results = publish(kafka(kafka_address), *envelopes(5, unsafe), *envelopes(5, safe, first=5))

    assert [results[f"e-{number}"].outcome for number in range(10)] == (
        [Outcome.REJECTED] * 5 + [Outcome.STORED] * 5
    )
    assert UNCLEAN in str(results["e-0"].reason)
    assert records(kafka_address, unsafe) == []


@pytest.fixture(scope="module")
def generous() -> Iterator[KafkaServer]:
    """A broker that makes a topic as soon as a client asks for it."""
    with KafkaServer(config="auto.create.topics.enable=true\n") as server:
        yield server


def _topics(server: KafkaServer) -> set[str]:
    return set(AdminClient({"bootstrap.servers": server.bootstrap}).list_topics(timeout=60).topics)


def test_reading_a_missing_topic_does_not_make_it(generous: KafkaServer) -> None:
    flow = Dataflow("reading")
    found: list[Any] = []
    read = jop.input("in", flow, kafka(generous.bootstrap), topics="unmade.read", tail=False)
    op.output("out", read.oks, TestingSink(found))

    with pytest.raises(BytewaxRuntimeError) as failed:
        run(flow)

    assert "there is no topic unmade.read to read" in str(root_cause(failed.value))
    assert "unmade.read" not in _topics(generous)


def test_publishing_to_a_missing_topic_does_not_make_it(generous: KafkaServer) -> None:
    results = publish(kafka(generous.bootstrap), *envelopes(3, "unmade.sent"))

    assert {result.outcome for result in results.values()} == {Outcome.REJECTED}
    assert "unmade.sent" not in _topics(generous)


def test_envelopes_for_a_missing_topic_that_is_not_checked_do_not_make_it(
    generous: KafkaServer,
) -> None:
    settings = kafka(generous.bootstrap, topic_strategy="skip", delivery_timeout=12)

    results = publish(settings, *envelopes(3, "unmade.unchecked"))

    assert {result.outcome for result in results.values()} == {Outcome.REJECTED}
    assert "unmade.unchecked" not in _topics(generous)
