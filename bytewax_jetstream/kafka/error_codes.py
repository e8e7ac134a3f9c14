"""Kafka's error codes: which reject a message, which stop the run, which leave a message unknown.

One table a verdict, each code with what the user does; a code in no table is GIVE_UP. The JetStream
table is `jetstream/publisher/error_codes.py`.
Source: Kafka protocol error table (codes from 0, a broker's answer), librdkafka `rdkafka.h` (codes
below 0, the library's own, named with a leading underscore).
"""

from confluent_kafka import KafkaError

from ..envelope import Envelope
from ..publishing import Refusal, Verdict
from .topics import REMEDY

__all__ = [
    "FINAL_AT_START",
    "GONE_CODES",
    "REJECT_CODES",
    "SIZE_CODES",
    "STOP_CODES",
    "UNKNOWN_PARTITION",
    "WITH_OTHERS",
    "classify",
    "is_answer",
]

UNKNOWN_PARTITION = KafkaError._UNKNOWN_PARTITION  # noqa: SLF001  # the library's name for it

REJECT_CODES = {
    # The message is too large, alone or with its batch.
    KafkaError.MSG_SIZE_TOO_LARGE: (
        "split the message, or raise max_message_bytes and the topic's max.message.bytes; if the "
        "message is smaller than that, its request was too large: lower batch_bytes to the topic's "
        "max.message.bytes"
    ),
    KafkaError.INVALID_MSG_SIZE: "split the message",
    KafkaError.RECORD_LIST_TOO_LARGE: "lower batch_bytes",  # larger than a segment of the topic
    # The broker looked at the message and does not want it. A compacted topic needs a key.
    KafkaError.INVALID_MSG: "correct the message; a compacted topic needs an aggregate id in each",
    KafkaError.INVALID_RECORD: (
        "correct the message; a compacted topic needs an aggregate id in each"
    ),
    KafkaError.INVALID_TIMESTAMP: "check this machine's clock",
    KafkaError.POLICY_VIOLATION: "correct the message, or the broker's policy",
    # The topic's name is not valid, or is not for this user.
    KafkaError.TOPIC_EXCEPTION: "choose another topic",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant this user WRITE on the topic, then publish again",
}
"""Never, this message or this topic: other messages are not concerned."""
WITH_OTHERS = KafkaError._INVALID_DIFFERENT_RECORD  # noqa: SLF001  # the library's name for it
"""What librdkafka says of a message that was refused with its request, for another one in it."""


def is_answer(code: int) -> bool:
    """Whether a broker has refused the message, not the library."""
    return code >= KafkaError.UNKNOWN or code == WITH_OTHERS


SIZE_CODES = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
"""A request was too large for its topic, and the next may be, too."""
STOP_CODES = {
    # The topic was checked before its first message, so it was deleted since.
    KafkaError._UNKNOWN_TOPIC: REMEDY,  # noqa: SLF001
    KafkaError.UNKNOWN_TOPIC_OR_PART: REMEDY,
    KafkaError.UNKNOWN_TOPIC_ID: REMEDY,
    UNKNOWN_PARTITION: REMEDY,
    # This user may not publish at all.
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "grant this user IDEMPOTENT_WRITE on the cluster",
    KafkaError.SASL_AUTHENTICATION_FAILED: "correct the credentials in the settings",
    KafkaError._AUTHENTICATION: "correct the credentials in the settings",  # noqa: SLF001
    KafkaError._SSL: "correct the TLS settings",  # noqa: SLF001
    # The brokers cannot do what the producer asks for.
    KafkaError.UNSUPPORTED_VERSION: "use brokers of version 2.1 or later",
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT: "use brokers of version 2.1 or later",
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE: "choose another compression",
    KafkaError.INVALID_REQUIRED_ACKS: "use brokers of version 2.1 or later",
}
"""Never, and other messages will fare the same."""
GONE_CODES = frozenset(
    {
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        UNKNOWN_PARTITION,
        # While the producer lives, this is what librdkafka says of messages that waited for a
        # partition which has been removed (`rd_kafka_toppar_destroy_final`).
        KafkaError._DESTROY,  # noqa: SLF001
    }
)
"""The topic, or the partition, is not there any more, as far as librdkafka knows: it is looked up
before anything is refused.
"""
FINAL_AT_START = frozenset(
    {
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._AUTHENTICATION,  # noqa: SLF001
        KafkaError._SSL,  # noqa: SLF001
    }
)
"""Errors of a first connection that do not pass by waiting: the start fails at once."""


def classify(code: int, text: str, envelope: Envelope | None, *, checked: bool = True) -> Refusal:
    """What an error in a delivery report means for its message: rejected, the end of the run, or
    unknown.

    librdkafka retries by itself, so nothing is tried again here; and a report does not carry the
    library's own flags (retriable, fatal), so these tables decide. A code in no table means that
    librdkafka gave up after its retries: the message may be stored.

    :arg code: The `KafkaError`'s code.
    :arg text: Its description.
    :arg envelope: The envelope whose report it is, or None when it is not known any more.
    :arg checked: Whether its topic was seen to exist before its first message. If not, a missing
        topic rejects this message only.
    """
    reason = f"Kafka refused it: {text} ({code})"
    if code == UNKNOWN_PARTITION and envelope is not None and envelope.partition is not None:
        missing = f"topic {envelope.topic} has no partition {envelope.partition}"
        return Refusal(Verdict.REJECT, f"{reason}: {missing}", code)
    if code in REJECT_CODES:
        return Refusal(Verdict.REJECT, f"{reason}: {REJECT_CODES[code]}", code)
    if code == WITH_OTHERS:
        return Refusal(Verdict.RETRY, f"{reason}: another message in its request", code)
    if code in STOP_CODES:
        verdict = Verdict.STOP if checked else Verdict.REJECT
        return Refusal(verdict, f"{reason}: {STOP_CODES[code]}", code)
    reason = (
        f"librdkafka gave up: {text} ({code}): "
        "check the brokers, then publish it again with the same event id"
    )
    return Refusal(Verdict.GIVE_UP, reason, code)
