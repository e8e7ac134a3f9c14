import pytest
from confluent_kafka import KafkaError

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.kafka.error_codes import (
    FINAL_AT_START,
    REJECT_CODES,
    SIZE_CODES,
    STOP_CODES,
    UNKNOWN_PARTITION,
    WITH_OTHERS,
    classify,
    is_answer,
)
from bytewax_jetstream.kafka.topics import REMEDY
from bytewax_jetstream.publishing import Refusal, Verdict

ENVELOPE = Envelope("t", b"", "e")

# Name in confluent_kafka, code, what the user does. Codes from 0 are the Kafka protocol's, codes
# below 0 librdkafka's.
REJECTED = [
    ("INVALID_MSG", 2, "correct the message; a compacted topic needs an aggregate id in each"),
    ("INVALID_MSG_SIZE", 4, "split the message"),
    (
        "MSG_SIZE_TOO_LARGE",
        10,
        (
            "split the message, or raise max_message_bytes and the topic's max.message.bytes; if "
            "the message is smaller than that, its request was too large: lower batch_bytes to the "
            "topic's max.message.bytes"
        ),
    ),
    ("TOPIC_EXCEPTION", 17, "choose another topic"),
    ("RECORD_LIST_TOO_LARGE", 18, "lower batch_bytes"),
    (
        "TOPIC_AUTHORIZATION_FAILED",
        29,
        "grant this user WRITE on the topic, then publish again",
    ),
    ("INVALID_TIMESTAMP", 32, "check this machine's clock"),
    ("POLICY_VIOLATION", 44, "correct the message, or the broker's policy"),
    ("INVALID_RECORD", 87, "correct the message; a compacted topic needs an aggregate id in each"),
]
STOPPING = [
    ("UNKNOWN_TOPIC_OR_PART", 3, REMEDY),
    ("INVALID_REQUIRED_ACKS", 21, "use brokers of version 2.1 or later"),
    ("CLUSTER_AUTHORIZATION_FAILED", 31, "grant this user IDEMPOTENT_WRITE on the cluster"),
    ("UNSUPPORTED_VERSION", 35, "use brokers of version 2.1 or later"),
    ("UNSUPPORTED_FOR_MESSAGE_FORMAT", 43, "use brokers of version 2.1 or later"),
    ("SASL_AUTHENTICATION_FAILED", 58, "correct the credentials in the settings"),
    ("UNSUPPORTED_COMPRESSION_TYPE", 76, "choose another compression"),
    ("UNKNOWN_TOPIC_ID", 100, REMEDY),
    ("_AUTHENTICATION", -169, "correct the credentials in the settings"),
    ("_SSL", -181, "correct the TLS settings"),
    ("_UNKNOWN_TOPIC", -188, REMEDY),
    ("_UNKNOWN_PARTITION", -190, REMEDY),
]
GIVEN_UP = [
    ("REQUEST_TIMED_OUT", 7),
    ("NOT_LEADER_FOR_PARTITION", 6),
    ("NETWORK_EXCEPTION", 13),
    ("NOT_ENOUGH_REPLICAS", 19),
    ("NOT_ENOUGH_REPLICAS_AFTER_APPEND", 20),
    ("OUT_OF_ORDER_SEQUENCE_NUMBER", 45),
    ("KAFKA_STORAGE_ERROR", 56),
    ("UNKNOWN", -1),
    ("_FATAL", -150),
    ("_PURGE_INFLIGHT", -151),
    ("_PURGE_QUEUE", -152),
    ("_ALL_BROKERS_DOWN", -187),
    ("_MSG_TIMED_OUT", -192),
    ("_TRANSPORT", -195),
]


@pytest.mark.parametrize(
    ("name", "code"), [(name, code) for name, code, *_ in [*REJECTED, *STOPPING, *GIVEN_UP]]
)
def test_library_has_the_code_under_this_name_and_number(name: str, code: int) -> None:
    assert getattr(KafkaError, name) == code
    assert KafkaError(code).name() == name


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize(("name", "code", "remedy"), REJECTED)
def test_error_of_one_message_or_topic_rejects_it(
    name: str, code: int, remedy: str, checked: bool
) -> None:
    assert classify(code, "words", ENVELOPE, checked=checked) == Refusal(
        Verdict.REJECT, f"Kafka refused it: words ({code}): {remedy}", code
    )


@pytest.mark.parametrize("envelope", [ENVELOPE, None], ids=["known", "gone"])
@pytest.mark.parametrize(
    ("checked", "verdict"),
    [(True, Verdict.STOP), (False, Verdict.REJECT)],
    ids=["checked", "unchecked"],
)
@pytest.mark.parametrize(("name", "code", "remedy"), STOPPING)
def test_error_that_meets_every_message_stops_the_run_if_its_topic_was_checked(
    name: str, code: int, remedy: str, checked: bool, verdict: Verdict, envelope: Envelope | None
) -> None:
    assert classify(code, "words", envelope, checked=checked) == Refusal(
        verdict, f"Kafka refused it: words ({code}): {remedy}", code
    )


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
def test_missing_partition_rejects_the_message_that_named_it(checked: bool) -> None:
    envelope = ENVELOPE._replace(partition=9)

    assert classify(UNKNOWN_PARTITION, "words", envelope, checked=checked) == Refusal(
        Verdict.REJECT, "Kafka refused it: words (-190): topic t has no partition 9", -190
    )


def test_partition_0_is_a_named_partition() -> None:
    refusal = classify(UNKNOWN_PARTITION, "words", ENVELOPE._replace(partition=0))

    assert refusal.verdict is Verdict.REJECT


def test_named_partition_changes_nothing_about_other_errors() -> None:
    refusal = classify(KafkaError.UNKNOWN_TOPIC_OR_PART, "words", ENVELOPE._replace(partition=9))

    assert refusal.verdict is Verdict.STOP


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize(("name", "code"), [*GIVEN_UP, ("no code of Kafka", -12345)])
def test_code_in_no_table_leaves_the_message_unknown(name: str, code: int, checked: bool) -> None:
    assert classify(code, "words", ENVELOPE, checked=checked) == Refusal(
        Verdict.GIVE_UP,
        f"librdkafka gave up: words ({code}): "
        "check the brokers, then publish it again with the same event id",
        code,
    )


def test_message_refused_for_another_in_its_request_is_sent_again() -> None:
    assert classify(WITH_OTHERS, "words", ENVELOPE) == Refusal(
        Verdict.RETRY, "Kafka refused it: words (-138): another message in its request", -138
    )


@pytest.mark.parametrize(
    ("code", "answers"), [(0, True), (10, True), (-1, True), (WITH_OTHERS, True), (-152, False)]
)
def test_brokers_answers_are_told_from_the_librarys_own_codes(code: int, answers: bool) -> None:
    assert is_answer(code) is answers


def test_codes_of_a_request_that_is_too_large_reject_a_message_that_went_alone() -> None:
    assert REJECT_CODES.keys() >= SIZE_CODES


def test_no_code_has_two_verdicts() -> None:
    assert not REJECT_CODES.keys() & STOP_CODES.keys()


def test_every_code_of_the_tables_is_tested_here() -> None:
    assert {code: remedy for _, code, remedy in REJECTED} == REJECT_CODES
    assert {code: remedy for _, code, remedy in STOPPING} == STOP_CODES


@pytest.mark.parametrize("code", sorted(REJECT_CODES.keys() | STOP_CODES.keys()))
def test_every_code_of_the_tables_is_known_to_the_library(code: int) -> None:
    known = {
        value for name, value in vars(KafkaError).items() if name.isupper() and type(value) is int
    }

    assert code in known


def test_start_fails_at_once_only_for_errors_that_say_what_to_correct() -> None:
    assert {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
    } == FINAL_AT_START
    assert STOP_CODES.keys() >= FINAL_AT_START
