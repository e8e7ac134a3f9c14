"""Wrong input to Kafka is one clear error or one rejected result, and harms nothing else."""

import logging
import re
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from bytewax.errors import BytewaxRuntimeError

import bytewax_jetstream.operators as jop
from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions
from bytewax_jetstream.errors import ConnectError, TopicError
from bytewax_jetstream.settings import KafkaTopicSettings
from bytewax_jetstream.testing import KafkaServer
from tests.support.dataflows import Envelopes, publishing, root_cause, run
from tests.support.kafka import audit, make_topic, new_topic, records
from tests.support.kafka_rights import (
    DESCRIBE,
    WRITE,
    acting_as,
    allow,
    asking_for_passwords,
)
from tests.support.lanes import kafka, opened, publish, settle
from tests.support.streams import FLAWLESS, envelopes
from tests.support.ways import both_ways, publish_by

CANARY = "canary-51ce07"


def _bad(**fields: Any) -> Envelope:
    return Envelope(**{"topic": "bad", "payload": b"", "event_id": "bad", **fields})


BAD_ENVELOPES = [
    (_bad(topic=""), "the topic is empty"),
    (_bad(topic=None), "the topic must be a str, not NoneType"),
    (_bad(topic=["a"]), "the topic must be a str, not list"),
    (_bad(topic="bad/x"), "is not a valid Kafka topic name: use only letters, digits"),
    (_bad(topic="bad x"), "is not a valid Kafka topic name"),
    (_bad(topic="bad\r\nx"), "is not a valid Kafka topic name"),
    (_bad(topic="bäd"), "is not a valid Kafka topic name"),
    (_bad(topic=".."), "is not a valid Kafka topic name"),
    (_bad(topic="x" * 5_000), "has 5000 characters, the limit is 249: shorten it"),
    (
        _bad(topic="never-made"),
        "there is no topic never-made: create it, or declare a KafkaTopicSettings",
    ),
    (_bad(payload="text"), "the payload must be bytes or None, not str"),
    (
        _bad(payload=b"x" * 1_100_000),
        "Message size too large (10): split the message, or raise max_message_bytes",
    ),
    (_bad(event_id=""), "the event id is missing"),
    (_bad(event_id=None), "the event id is missing"),
    (_bad(event_id=7), "the event id must be a str, not int"),
    (_bad(aggregate_id=7), "must each be a str or None"),
    (_bad(aggregate_id=["a"]), "must each be a str or None"),
    (_bad(event_type=b"x"), "must each be a str or None"),
    (_bad(headers={"Event-Id": "x"}), "header Event-Id is reserved: use the envelope's fields"),
    (_bad(headers={"event-type": "x"}), "header event-type is reserved"),
    (_bad(headers={"": "x"}), "invalid header name '': give a str that is not empty"),
    (_bad(headers={7: "x"}), "invalid header name 7: give a str that is not empty"),
    (_bad(headers={"a": 7}), "header a must be a str, bytes or None, not int"),
    (_bad(headers={"a": "\ud800"}), "header a '\\ud800' has lone surrogates"),
    (_bad(headers=["a"]), "must be a mapping, or a sequence of (name, value) pairs, not a list"),
    (_bad(event_id="a\ud800"), "the event id 'a\\ud800' has lone surrogates, which are not text"),
    (_bad(aggregate_id="\ud800"), "has lone surrogates, which are not text: remove them"),
    (_bad(timestamp=0), "the timestamp must be a datetime, not int"),
    (_bad(partition=99), "has no partition 99: give 0 to 3, or None"),
    (_bad(partition=-1), "invalid partition -1"),
    (_bad(partition="1"), "invalid partition '1'"),
    (_bad(partition=True), "invalid partition True"),
    (
        _bad(options=PublishOptions(expected_last_sequence=1)),
        "PublishOptions are for JetStream only",
    ),
]


@both_ways
def test_bad_envelope_is_rejected_with_what_to_do_and_the_others_are_stored(
    kafka_address: str, way: str
) -> None:
    good, bad = new_topic(kafka_address), new_topic(kafka_address)
    fine = envelopes(len(BAD_ENVELOPES), good)
    wrong = [
        each._replace(topic=bad if each.topic == "bad" else each.topic, headers=each.headers)
        for each, _ in BAD_ENVELOPES
    ]
    mixed = [each for pair in zip(fine, wrong, strict=True) for each in pair]

    results = publish_by(way, kafka(kafka_address), mixed)

    assert len(results) == len(mixed)
    rejected = {
        str(result.envelope): result for result in results if result.outcome is Outcome.REJECTED
    }
    for each, (_, says) in zip(wrong, BAD_ENVELOPES, strict=True):
        result = rejected.pop(str(each))
        assert says in str(result.reason)
        assert len(str(result.reason)) < 300
    assert not rejected
    assert audit(kafka_address, good, fine) == FLAWLESS
    assert records(kafka_address, bad) == []


@pytest.mark.parametrize("keyless", [{50}, {0, 99}, {3, 4, 70}], ids=str)
@pytest.mark.parametrize("declared", [True, False])
def test_compacted_topic_rejects_only_envelopes_without_a_key(
    kafka_address: str, keyless: set[int], declared: bool
) -> None:
    topic = new_topic(kafka_address, cleanup_policy="compact", partitions=1)
    batch = [
        each._replace(aggregate_id=None) if number in keyless else each
        for number, each in enumerate(envelopes(100, topic))
    ]
    with opened(kafka(kafka_address, topics=(topic,) if declared else ())) as (_, lane):
        results = settle(lane, batch)
        later = settle(lane, [each._replace(event_id=f"{each.event_id}-2") for each in batch])

        assert lane.stop_reason is None
    for some in (results, later):
        rejected = [each for each in some.values() if each.outcome is not Outcome.STORED]
        assert {each.event_id.removesuffix("-2") for each in rejected} == {
            f"e-{number}" for number in keyless
        }
        assert {each.outcome for each in rejected} == {Outcome.REJECTED}
        assert "is compacted and needs a key: give it an aggregate id" in str(rejected[0].reason)


@pytest.mark.parametrize("declared", ["topics", "topic_settings"])
def test_declared_topic_with_a_limit_below_the_batch_size_is_refused_at_the_start(
    kafka_address: str, declared: str
) -> None:
    topic = new_topic(kafka_address, max_message_bytes="10000")
    named: dict[str, Any] = {"topics": (topic,)}
    if declared == "topic_settings":
        named = {"topic_settings": (KafkaTopicSettings(name=topic),)}

    with pytest.raises(
        TopicError, match=r"set batch_bytes=10000, or raise the topic's max\.message\.bytes"
    ):
        publish(kafka(kafka_address, **named))

    results = publish(kafka(kafka_address, batch_bytes=10_000, **named), *envelopes(2_000, topic))
    assert {each.outcome for each in results.values()} == {Outcome.STORED}


@both_ways
def test_unreachable_broker_is_named_within_the_connect_timeout(way: str) -> None:
    settings = kafka("127.0.0.1:1", connect_timeout=1)
    began = time.monotonic()

    def attempt() -> None:
        if way == "pool":
            publish(settings, *envelopes(1, "x"))
        else:
            run(publishing(Envelopes(envelopes(1, "x")), settings).flow)

    with pytest.raises((ConnectError, BytewaxRuntimeError)) as failed:
        attempt()

    said = str(root_cause(failed.value))
    assert re.match(
        r"no connection to Kafka at 127\.0\.0\.1:1 within 1 s \(.*\): "
        r"check that the brokers are running",
        said,
    )
    assert time.monotonic() - began < 30


def test_silent_broker_is_named_within_the_connect_timeout(
    own_kafka_server: KafkaServer,
) -> None:
    own_kafka_server.pause()
    began = time.monotonic()

    with pytest.raises(ConnectError, match=r"^no connection to Kafka at .* within 1 s"):
        publish(kafka(own_kafka_server.bootstrap, connect_timeout=1), *envelopes(1, "x"))

    assert time.monotonic() - began < 30


def test_missing_topic_to_read_is_one_clear_error(kafka_address: str) -> None:
    from bytewax.dataflow import Dataflow
    from bytewax.operators import output
    from bytewax.testing import TestingSink

    flow = Dataflow("reading")
    found: list[Any] = []
    output(
        "out", jop.input("in", flow, kafka(kafka_address), topics="nowhere").oks, TestingSink(found)
    )

    with pytest.raises(BytewaxRuntimeError) as failed:
        run(flow)

    assert (
        str(root_cause(failed.value))
        == "there is no topic nowhere to read: create it, or correct the name"
    )


@pytest.mark.parametrize("strategy", ["create", "create_or_update", "validate"])
def test_missing_declared_topic_is_one_clear_error(kafka_address: str, strategy: Any) -> None:
    with pytest.raises(
        TopicError, match=r"^there is no topic nowhere: create it, or declare a KafkaTopicSettings"
    ):
        publish(kafka(kafka_address, topics=("nowhere",), topic_strategy=strategy))


def test_topics_are_created_checked_and_updated_by_strategy(kafka_address: str) -> None:
    name = f"strategy-{time.time_ns()}"
    small = KafkaTopicSettings(name=name, partitions=2, cleanup_policy="compact")
    large = KafkaTopicSettings(name=name, partitions=3, cleanup_policy="delete")
    with pytest.raises(
        TopicError, match=rf"^topic {name} is missing: create it, or use topic_strategy=create$"
    ):
        publish(kafka(kafka_address, topic_settings=(small,), topic_strategy="validate"))
    publish(kafka(kafka_address, topic_settings=(small,)))
    publish(kafka(kafka_address, topic_settings=(small,), topic_strategy="validate"))

    with pytest.raises(
        TopicError,
        match=r"it has 2 partitions, the settings require 3; "
        r"cleanup\.policy is compact, the settings require delete",
    ) as refused:
        publish(kafka(kafka_address, topic_settings=(large,)))
    assert (refused.value.topic, len(refused.value.shortcomings)) == (name, 2)
    publish(kafka(kafka_address, topic_settings=(large,), topic_strategy="create_or_update"))

    results = publish(kafka(kafka_address), Envelope(name, b"", event_id="e", partition=2))
    assert results["e"].partition == 2


def test_skip_strategy_checks_nothing_and_an_unknown_topic_is_rejected(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    settings = kafka(kafka_address, delivery_timeout=12, topic_strategy="skip")

    results = publish(settings, *envelopes(10, topic), Envelope("nowhere", b"", event_id="bad"))

    assert results.pop("bad").outcome is Outcome.REJECTED
    assert {result.outcome for result in results.values()} == {Outcome.STORED}


@pytest.fixture(scope="module")
def guarded() -> Iterator[KafkaServer]:
    """A broker that asks for a password; amy may do everything, bob may write to `open` only."""
    with asking_for_passwords() as server:
        make_topic(server.internal, "open")
        make_topic(server.internal, "closed")
        allow(server, "open", WRITE, DESCRIBE)
        yield server


def test_wrong_password_is_reported_at_once_and_never_shown(
    guarded: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = acting_as("amy", guarded, CANARY, connect_timeout=120)
    began = time.monotonic()

    with pytest.raises(
        ConnectError,
        match=r"^no connection to Kafka at .*: correct the credentials in the settings$",
    ) as e:
        publish(settings, *envelopes(1, "open"))

    assert time.monotonic() - began < 60
    assert CANARY not in "".join(traceback.format_exception(e.value)) + caplog.text + repr(settings)


def test_missing_password_is_one_clear_error_within_the_connect_timeout(
    guarded: KafkaServer,
) -> None:
    with pytest.raises(ConnectError, match=r"and whether they require TLS or a password$"):
        publish(kafka(guarded.bootstrap, connect_timeout=2), *envelopes(1, "open"))


def test_a_topic_without_permission_is_rejected_and_the_others_are_stored(
    guarded: KafkaServer,
) -> None:
    fine = envelopes(100, "open")
    denied = [Envelope("closed", b"", event_id=f"d-{number}") for number in range(100)]

    results = publish(acting_as("bob", guarded), *fine, *denied)

    assert {results[each.event_id].outcome for each in fine} == {Outcome.STORED}
    assert {results[each.event_id].outcome for each in denied} == {Outcome.REJECTED}
    assert "this user may not see topic closed: grant DESCRIBE and WRITE on it" in str(
        results["d-0"].reason
    )
    assert len(records(guarded.internal, "open")) == len(fine)
    assert records(guarded.internal, "closed") == []


def test_brokers_own_refusal_is_the_reason_when_topics_are_not_checked(
    guarded: KafkaServer,
) -> None:
    result = publish(
        acting_as("bob", guarded, topic_strategy="skip"), Envelope("closed", b"", event_id="d")
    )["d"]

    assert result.outcome is Outcome.REJECTED
    assert "grant this user WRITE on the topic, then publish again" in str(result.reason)
