"""Checks envelopes for the broker in memory by the same rules as the real publishers."""

from ...envelope import Envelope, PublishOptions
from ...errors import EnvelopeError
from ...publishing import header_items, utc

__all__ = ["check", "check_for_kafka"]


def check(envelope: Envelope) -> Envelope:
    """The envelope as it is, if its fields have the types that `Envelope` names.

    A real broker refuses more, such as the characters of some topics; see its own errors.

    :raises EnvelopeError: with what is wrong and what to do.
    """
    for name, value in (("topic", envelope.topic), ("event id", envelope.event_id)):
        if not isinstance(value, str):
            raise EnvelopeError(f"the {name} is a {type(value).__name__}: give a str")
        if not value:
            raise EnvelopeError(f"the {name} is missing: give a str that is not empty")
    payload: object = envelope.payload
    if payload is not None and type(payload) is not bytes:
        raise EnvelopeError(f"the payload is a {type(payload).__name__}: give bytes or None")
    for name, optional in (
        ("aggregate id", envelope.aggregate_id),
        ("event type", envelope.event_type),
    ):
        if not isinstance(optional, str | None):
            raise EnvelopeError(f"the {name} is a {type(optional).__name__}: give a str or None")
    if envelope.headers is not None:
        _check_headers(envelope.headers)
    if envelope.timestamp is not None:
        utc(envelope.timestamp)
    options: object = envelope.options
    if options is not None and not isinstance(options, PublishOptions):
        raise EnvelopeError(f"the options are a {type(options).__name__}: give PublishOptions")
    return envelope


def check_for_kafka(envelope: Envelope) -> Envelope:
    """The same, and what Kafka has no place for.

    :raises EnvelopeError: with what is wrong and what to do.
    """
    if envelope.options is not None:
        raise EnvelopeError("Kafka has none of JetStream's options: leave them out")
    partition: object = envelope.partition
    if partition is not None and (type(partition) is not int or partition < 0):
        raise EnvelopeError(
            f"the partition is {partition!r:.40}: give 0 or more, or None for the aggregate's own"
        )
    return check(envelope)


def _check_headers(headers: object) -> None:
    for name, value in header_items(headers):
        if not isinstance(name, str) or not name or not isinstance(value, str | bytes | None):
            raise EnvelopeError(
                f"header {name!r:.80} is {value!r:.80}: give a name that is not empty, and a str, "
                "bytes or None"
            )
