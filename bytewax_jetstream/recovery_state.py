"""The states in Bytewax's recovery store: results, envelopes and positions as versioned tuples.

Bytewax pickles the state of a step. A pickle names each class by its path, so it cannot be read
after the class has moved. So a state is a tuple of its kind, its version, and values of Python's
own types:

    ("publish", 1, oks, errs, checkpoints)  results and checkpoints that a publish step had not
                                            passed on; a tuple each
    ("sequence", 2, position, created, time)
                                            the stream sequence that a source goes on with; when the
                                            stream was made, and when it stored the message before
                                            the position, so that another stream of its name is
                                            noticed
    ("durable", 2, ranges, consumer, created)
                                            messages that a durable consumer's source must not emit
                                            again; the consumer's name, and when it was made
    ("kafka", 1, position, topic_id, epoch) the offset that a Kafka partition goes on with, None
                                            while it is not there; the topic's id, and the leader
                                            epoch of the message before it, None if not known

A result or a checkpoint is a tuple of its fields. A field that is a tuple is one of these:

    ("envelope", topic, payload, ...)       an `Envelope`, with all of its fields
    ("options", ttl, ...)                   its `PublishOptions`
    ("pickled", bytes, text)                a value of any other type, which users may put into an
                                            envelope; if it cannot be unpickled, the text

When a form changes, give it the next version, and keep reading the versions before: a store is kept
as long as its dataflow. In version 1 a source's state had only the position or the ranges. Before
states had a version, a publish step's state was a pickled `Report`, and a source's the bare
position or ranges; the Kafka source was Bytewax's, whose state is the offset
alone.
"""

import logging
import pickle
from datetime import timedelta
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from .envelope import Checkpoint, Envelope, Outcome, PublishOptions, PublishResult
from .errors import JetStreamPipelineError, SourceError

__all__ = [
    "DurableState",
    "KafkaPlace",
    "KafkaState",
    "PublishState",
    "Ranges",
    "Report",
    "SequenceState",
    "SourceState",
    "durable_state",
    "kafka_state",
    "publish_state",
    "read_kafka_state",
    "read_publish_state",
    "read_source_state",
    "sequence_state",
]

log = logging.getLogger(__name__)

VERSION = 1
"""The version of publish states."""
VERSIONS = {"publish": VERSION, "sequence": 2, "durable": 2, "kafka": 1}
"""The version in which each kind is written."""

Row: TypeAlias = tuple[Any, ...]
"""The fields of a result or a checkpoint."""
PublishState = tuple[str, int, tuple[Row, ...], tuple[Row, ...], tuple[Row, ...]]
Ranges = tuple[tuple[int, int, int], ...]
"""Sequences whose acks are due after this epoch's commit: first, last, and the time in nanoseconds
of the latest message. The time tells a message from one with the same sequence in a new stream.
"""
SourceState = (
    tuple[str, int, int, str, int]
    | tuple[str, int, Ranges, str, str]
    | tuple[str, int, int]
    | tuple[str, int, Ranges]
    | int
    | Ranges
)
"""The first two are written; the next two are version 1, the last two have no version."""


class SequenceState(NamedTuple):
    """Where a source that reads by sequence goes on, and in which stream."""

    position: int
    created: str | None
    """When the stream was made, in the server's words; None if the state is older than version 2.
    """
    time: int
    """When the stream stored the message before the position, in nanoseconds; 0 if unknown."""


class DurableState(NamedTuple):
    """What a source with a durable consumer must not emit again, and which consumer that is."""

    ranges: Ranges
    consumer: str | None
    """None if the state is older than version 2; so for the next field."""
    created: str | None
    """When the consumer was made, in the server's words."""


KafkaState = tuple[str, int, int | None, str | None, int | None] | int
"""The last is from before states had a version: the offset, -2 for the first, -1 for the end."""


class KafkaPlace(NamedTuple):
    """Where a partition of a Kafka topic goes on."""

    position: int | None
    """The offset of the next message; None while the partition is not there."""
    topic_id: str | None
    epoch: int | None
    """Leader epoch of the message before the position."""


class Report(NamedTuple):
    """What a lane has settled; it goes downstream, or into the recovery store at the epoch's end.

    Stores from before states had a version hold pickled reports, so its fields must not change.
    """

    oks: list[PublishResult]
    errs: list[PublishResult]
    checkpoints: list[Checkpoint]


def publish_state(report: Report) -> PublishState:
    """The state of a publish step that has not passed on this report."""
    oks, errs, checkpoints = report
    return (
        "publish",
        VERSION,
        _stored_rows(oks),
        tuple(map(_result_row, errs)),
        tuple([_row(tuple(checkpoint)) for checkpoint in checkpoints]),
    )


def read_publish_state(state: object, step_id: str) -> Report:
    """The report that the publish step had not passed on.

    :raises JetStreamPipelineError: when this is not the state of a publish step.
    """
    match state:
        case Report():
            return Report(list(state.oks), list(state.errs), list(state.checkpoints))
        case ("publish", 1, tuple(oks), tuple(errs), tuple(checkpoints)):
            try:
                return Report(
                    [_result(row) for row in oks],
                    [_result(row) for row in errs],
                    [Checkpoint(*map(_value, row)) for row in checkpoints],
                )
            except (TypeError, ValueError, IndexError) as error:
                raise JetStreamPipelineError(
                    f"step {step_id} found recovery state that is damaged ({error}): restore the "
                    "recovery store from a backup"
                ) from None
    raise JetStreamPipelineError(_refusal(state, step_id, "publish"))


def sequence_state(state: SequenceState) -> SourceState:
    """The stored form of a state by sequence, whose stream is known."""
    position, created, time = state
    assert created is not None, "a source that reads knows its stream"
    return "sequence", VERSIONS["sequence"], position, created, time


def durable_state(state: DurableState) -> SourceState:
    """The stored form of a durable consumer's state, whose consumer is known."""
    ranges, consumer, created = state
    assert consumer is not None, "a source that reads knows its consumer"
    assert created is not None, "a source that reads knows its consumer"
    return "durable", VERSIONS["durable"], ranges, consumer, created


def read_source_state(state: object, step_id: str) -> SequenceState | DurableState:
    """Where a source goes on.

    :raises SourceError: when this is not the state of a JetStream source.
    """
    match state:
        case ("sequence", 2, position, str(created), time) if _is_count(position) and _is_count(
            time
        ):
            return SequenceState(position, created, time)
        case ("sequence", 1, position) if _is_count(position):
            return SequenceState(position, None, 0)
        case ("durable", 2, tuple(ranges), str(consumer), str(created)) if all(
            map(_is_range, ranges)
        ):
            return DurableState(ranges, consumer, created)
        case ("durable", 1, tuple(ranges)) if all(map(_is_range, ranges)):
            return DurableState(ranges, None, None)
        case int() if _is_count(state):
            return SequenceState(state, None, 0)
        case tuple() if all(map(_is_range, state)):
            return DurableState(state, None, None)
    raise SourceError(_refusal(state, step_id, "sequence", "durable"))


def kafka_state(place: KafkaPlace) -> KafkaState:
    """The state of a source that goes on at this place of a Kafka partition."""
    position, topic_id, epoch = place
    return "kafka", VERSIONS["kafka"], position, topic_id, epoch


def read_kafka_state(state: object, step_id: str) -> KafkaPlace:
    """The place at which a partition of a Kafka topic goes on.

    :raises SourceError: when this is not the state of a Kafka source.
    """
    match state:
        case ("kafka", 1, position, topic_id, epoch) if (
            (position is None or _is_count(position))
            and (topic_id is None or type(topic_id) is str)
            and (epoch is None or _is_count(epoch))
        ):
            return KafkaPlace(position, topic_id, epoch)
        case int() if _is_count(state) or state in (-2, -1):
            return KafkaPlace(state, None, None)
    raise SourceError(_refusal(state, step_id, "kafka"))


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 64


def _is_range(value: object) -> bool:
    return type(value) is tuple and len(value) == 3 and all(map(_is_count, value))


def _refusal(state: object, step_id: str, *kinds: str) -> str:
    match state:
        case (str(kind), int(version), *_) if kind in kinds and not 0 < version <= VERSIONS[kind]:
            return (
                f"step {step_id} found recovery state of version {version}, and this version of "
                f"bytewax_jetstream understands version {VERSIONS[kind]}: run the version that "
                "wrote it, or a newer one"
            )
        case (str(kind), int(), *_) if kind not in kinds:
            found = f"of kind {kind}"
        case _:
            found = f"of type {type(state).__name__}"
    return (
        f"step {step_id} found recovery state {found}, and understands {' or '.join(kinds)}: it is "
        "another step's, so give this one another step id"
    )


PLAIN = frozenset({str, int, float, bool, bytes, type(None), timedelta})
JUST_STR = frozenset({str})
STORED = (str(Outcome.STORED),)
FROM_USERS = itemgetter(
    *map(PublishResult._fields.index, ("event_id", "topic", "aggregate_id", "event_type"))
)


def _stored_rows(results: list[PublishResult]) -> tuple[Row, ...]:
    """Rows of stored envelopes. Only four of their fields come from users; these are checked for
    all results at once, because there may be thousands at each end of an epoch.
    """
    if PLAIN.issuperset(map(type, chain.from_iterable(map(FROM_USERS, results)))):
        return tuple([STORED + result[1:] for result in results])
    return tuple(map(_result_row, results))


def _result_row(result: PublishResult) -> Row:
    return _row((str(result[0]), *result[1:]))


def _row(fields: Row) -> Row:
    """The fields as plain values; nearly all are, so this is checked first (0.8 us a result)."""
    if PLAIN.issuperset(map(type, fields)):
        return fields
    return tuple(map(_plain, fields))


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is Envelope:
        return ("envelope", *map(_plain, value))
    if kind is PublishOptions:
        return ("options", *map(_plain, value))
    if kind is dict and JUST_STR.issuperset(map(type, chain(value, value.values()))):
        return dict(value)
    text = str.__str__(value) if isinstance(value, str) else object.__repr__(value)
    try:
        return "pickled", pickle.dumps(value), text
    except Exception:  # pickling runs code of the value's type
        return text


def _result(row: Row) -> PublishResult:
    return PublishResult(Outcome(row[0]), *map(_value, row[1:]))


def _value(field: Any) -> Any:
    match field:
        case ("envelope", *fields):
            return Envelope(*map(_value, fields))
        case ("options", *fields):
            return PublishOptions(*map(_value, fields))
        case ("pickled", data, text):
            return _unpickled(data, text)
    return field


def _unpickled(data: bytes, text: str) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:  # its class may be gone, and unpickling runs code of it
        log.warning("a value in the recovery store cannot be unpickled, %s stays: %r", text, error)
        return text
