"""The states in Bytewax's recovery store: results, envelopes and positions as versioned tuples.

Bytewax pickles the state of a step. A pickle names each class by its path, so it cannot be read
after the class has moved. So a state is a tuple of its kind, its version, and values of Python's
own types:

    ("publish", 1, oks, errs, checkpoints)  results and checkpoints that a publish step had not
                                            passed on; a tuple each
    ("sequence", 1, position)               the stream sequence that a source goes on with
    ("durable", 1, ranges)                  messages that a durable consumer's source must not emit
                                            again

A result or a checkpoint is a tuple of its fields. A field that is a tuple is one of these:

    ("envelope", topic, payload, ...)       an `Envelope`, with all of its fields; in stores of
                                            earlier versions without the last ones
    ("options", ttl, ...)                   its `PublishOptions`
    ("headers", (name, value), ...)         its `Headers`, where a name is repeated
    ("time", text)                          its timestamp, if that is in UTC
    ("pickled", bytes, text)                a value of any other type, which users may put into an
                                            envelope; if it cannot be unpickled, the text

When a form changes, give it the next version, and keep reading the versions before: a store is kept
as long as its dataflow. Before states had a version, a publish step's state was a pickled `Report`,
and a source's the position or the ranges alone.
"""

import logging
import pickle
from datetime import UTC, datetime, timedelta
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from .envelope import Checkpoint, Envelope, Headers, Outcome, PublishOptions, PublishResult
from .errors import JetStreamPipelineError, SourceError

__all__ = [
    "PublishState",
    "Ranges",
    "Report",
    "SourceState",
    "durable_state",
    "publish_state",
    "read_publish_state",
    "read_source_state",
    "sequence_state",
]

log = logging.getLogger(__name__)

VERSION = 1
"""The version of all kinds; none has changed yet."""

Row: TypeAlias = tuple[Any, ...]
"""The fields of a result or a checkpoint."""
PublishState = tuple[str, int, tuple[Row, ...], tuple[Row, ...], tuple[Row, ...]]
Ranges = tuple[tuple[int, int, int], ...]
"""Sequences whose acks are due after this epoch's commit: first, last, and the time in nanoseconds
of the latest message. The time tells a message from one with the same sequence in a new stream.
"""
SourceState = tuple[str, int, int] | tuple[str, int, Ranges] | int | Ranges
"""The last two are from before states had a version."""


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


def sequence_state(position: int) -> SourceState:
    """The state of a source that reads by sequence and goes on at this position."""
    return "sequence", VERSION, position


def durable_state(ranges: Ranges) -> SourceState:
    """The state of a source that reads through a durable consumer."""
    return "durable", VERSION, ranges


def read_source_state(state: object, step_id: str) -> int | Ranges:
    """The position of a source that reads by sequence, or the ranges of one that is durable.

    :raises SourceError: when this is not the state of a JetStream source.
    """
    match state:
        case ("sequence", 1, position) if _is_count(position):
            return position
        case ("durable", 1, tuple(ranges)) if all(map(_is_range, ranges)):
            return ranges
        case int() if _is_count(state):
            return state
        case tuple() if all(map(_is_range, state)):
            return state
    raise SourceError(_refusal(state, step_id, "sequence", "durable"))


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 64


def _is_range(value: object) -> bool:
    return type(value) is tuple and len(value) == 3 and all(map(_is_count, value))


def _refusal(state: object, step_id: str, *kinds: str) -> str:
    match state:
        case (str(kind), int(version), *_) if kind in kinds and version != VERSION:
            return (
                f"step {step_id} found recovery state of version {version}, and this version of "
                f"bytewax_jetstream understands version {VERSION}: run the version that wrote it, "
                "or a newer one"
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
HEADER_VALUES = frozenset({str, bytes, type(None)})
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
    if (
        kind is dict
        and JUST_STR.issuperset(map(type, value))
        and HEADER_VALUES.issuperset(map(type, value.values()))
    ):
        return dict(value)
    if kind is datetime and value.tzinfo is UTC:
        return "time", value.isoformat()
    if kind is Headers:
        return ("headers", *[(name, _plain(each)) for name, each in value.pairs])
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
        case ("time", text):
            return datetime.fromisoformat(text)
        case ("headers", *pairs):
            return Headers((name, _value(each)) for name, each in pairs)
        case ("pickled", data, text):
            return _unpickled(data, text)
    return field


def _unpickled(data: bytes, text: str) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:  # its class may be gone, and unpickling runs code of it
        log.warning("a value in the recovery store cannot be unpickled, %s stays: %r", text, error)
        return text
