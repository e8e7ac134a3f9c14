"""What each error of Kafka means for the envelopes it concerns."""

import pytest
from confluent_kafka import KafkaError

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.kafka.publisher import classify
from bytewax_jetstream.publishing.answers import Verdict


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, Verdict.REJECT),
        (KafkaError.INVALID_RECORD, Verdict.REJECT),
        (KafkaError.POLICY_VIOLATION, Verdict.REJECT),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Verdict.REJECT),
        (KafkaError._UNKNOWN_TOPIC, Verdict.STOP),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, Verdict.STOP),
        (KafkaError._UNKNOWN_PARTITION, Verdict.STOP),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, Verdict.STOP),
        (KafkaError.SASL_AUTHENTICATION_FAILED, Verdict.STOP),
        (KafkaError._MSG_TIMED_OUT, Verdict.GIVE_UP),
        (KafkaError._TRANSPORT, Verdict.GIVE_UP),
        (KafkaError.NOT_ENOUGH_REPLICAS, Verdict.GIVE_UP),
        (KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND, Verdict.GIVE_UP),
        (KafkaError.REQUEST_TIMED_OUT, Verdict.GIVE_UP),
        (KafkaError._PURGE_QUEUE, Verdict.GIVE_UP),
        (KafkaError._PURGE_INFLIGHT, Verdict.GIVE_UP),
        (KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, Verdict.GIVE_UP),
        (-12345, Verdict.GIVE_UP),
    ],
)
def test_each_error_means_one_thing_and_says_what_to_do(code: int, verdict: Verdict) -> None:
    refusal = classify(code, "words", Envelope("t", b"", "e"))

    assert (refusal.verdict, refusal.code) == (verdict, code)
    assert f"words ({code}): " in refusal.reason


def test_a_partition_that_is_not_there_concerns_only_who_asked_for_it() -> None:
    refusal = classify(KafkaError._UNKNOWN_PARTITION, "words", Envelope("t", b"", "e", partition=9))

    assert refusal.verdict is Verdict.REJECT
    assert refusal.reason.endswith("topic t has no partition 9")


def test_a_topic_that_was_never_checked_concerns_only_its_own_envelopes() -> None:
    assert (
        classify(KafkaError._UNKNOWN_TOPIC, "words", None, checked=False).verdict is Verdict.REJECT
    )
