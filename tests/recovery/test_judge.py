"""The judge of the recovery tests sees every kind of flaw."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from bytewax_jetstream.envelope import Checkpoint, Envelope, Outcome, PublishResult
from tests.support.recovery.judge import FLAWLESS, Evidence, flaws, proofs
from tests.support.recovery.rows import STREAM, envelope_of, is_good
from tests.support.streams import Stored

ROWS = 101
"""Rows of the first partition; the last is a bad one."""
SECOND_EPOCH = 60
"""The first row of the second epoch; of that the first run had come to row 70 when it was killed.
"""


def _message(row: Envelope, sequence: int) -> Stored:
    headers = {
        "Nats-Msg-Id": row.event_id,
        "Aggregate-Id": str(row.aggregate_id),
        "Event-Type": str(row.event_type),
    }
    if " " in row.event_id:
        headers |= {
            "Nats-Msg-Id": "~" + sha256(row.event_id.encode()).hexdigest(),
            "Event-Id": row.event_id,
        }
    return Stored(sequence, row.topic, headers, row.payload or b"")


def _result(row: Envelope, index: int, *, duplicate: bool = False) -> PublishResult:
    good = is_good(index)
    return PublishResult(
        outcome=Outcome.STORED if good else Outcome.REJECTED,
        event_id=row.event_id,
        topic=row.topic,
        aggregate_id=row.aggregate_id,
        event_type=row.event_type,
        broker="jetstream",
        stream=STREAM if good else None,
        partition=None,
        sequence=index + 1 if good else None,
        duplicate=duplicate if good else None,
        attempts=1 if good else 0,
        ack_seconds=0.1,
        reason=None if good else "the topic is none",
        code=None,
        envelope=None if good else row,
        worker=0,
        epoch=1 if index < SECOND_EPOCH else 2,
    )


def _checkpoint(epoch: int, stored: int, rejected: int) -> Checkpoint:
    last = envelope_of(0, SECOND_EPOCH - 1 if epoch == 1 else ROWS - 1)
    return Checkpoint("killed.publish", 0, "worker-0", epoch, stored, 0, rejected, last.event_id)


def _evidence() -> Evidence:
    """Two epochs of a run, the second again by a second run, which also passed on a result of the
    first.
    """
    rows = [envelope_of(0, index) for index in range(ROWS)]
    results = [(1, _result(row, index)) for index, row in enumerate(rows[:70]) if index != 7]
    results += [(2, _result(rows[7], 7))]
    results += [(2, _result(row, index, duplicate=index < 70)) for index, row in enumerate(rows)][
        SECOND_EPOCH:
    ]
    return Evidence(
        made=(ROWS, 0, 0, 0),
        messages=[_message(row, index + 1) for index, row in enumerate(rows) if is_good(index)],
        results=results,
        checkpoints=[
            (1, _checkpoint(1, SECOND_EPOCH, 0)),
            (1, _checkpoint(2, 10, 0)),
            (2, _checkpoint(2, ROWS - 1 - SECOND_EPOCH, 1)),
        ],
        left=0,
        resumed={1: 1, 2: 2},
    )


def test_judge_accepts_what_a_crash_may_leave_behind() -> None:
    assert flaws(_evidence()) == FLAWLESS
    assert proofs(_evidence()) == (10, 1)


def _without_message(evidence: Evidence) -> Evidence:
    return evidence._replace(messages=evidence.messages[:-1])


def _with_a_message_twice(evidence: Evidence) -> Evidence:
    return evidence._replace(
        messages=[*evidence.messages, evidence.messages[-1]._replace(sequence=ROWS)]
    )


def _with_a_row_twice(evidence: Evidence) -> Evidence:
    again = evidence.messages[-1]
    headers = again.headers | {"Nats-Msg-Id": "another"}
    return evidence._replace(
        messages=[*evidence.messages, Stored(ROWS, again.subject, headers, again.payload)]
    )


def _with_two_messages_swapped(evidence: Evidence) -> Evidence:
    messages = list(evidence.messages)
    messages[0], messages[23] = messages[23], messages[0]  # of one aggregate
    return evidence._replace(messages=messages)


def _with_a_message_of_another_id(evidence: Evidence) -> Evidence:
    first, *others = evidence.messages
    return evidence._replace(
        messages=[first._replace(headers=first.headers | {"Nats-Msg-Id": "other"}), *others]
    )


def _with_a_message_of_nobody(evidence: Evidence) -> Evidence:
    return evidence._replace(messages=[*evidence.messages, _message(envelope_of(3, 1), ROWS)])


def _without_a_result(evidence: Evidence) -> Evidence:
    return evidence._replace(
        results=[(run, result) for run, result in evidence.results if result.event_id != "p0-7"]
    )


def _with_a_result_changed(**fields: Any) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        (run, result), *others = evidence.results
        return evidence._replace(results=[(run, result._replace(**fields)), *others])

    return change


def _with_a_row_in_two_epochs(evidence: Evidence) -> Evidence:
    _, result = evidence.results[-1]
    return evidence._replace(results=[*evidence.results, (2, result._replace(epoch=3))])


def _without_a_checkpoint(evidence: Evidence) -> Evidence:
    return evidence._replace(checkpoints=evidence.checkpoints[1:])


def _with_the_checkpoint_of_what_was_replayed(evidence: Evidence) -> Evidence:
    return evidence._replace(checkpoints=evidence.checkpoints[:-1])


def _with_a_checkpoint_of_nothing(evidence: Evidence) -> Evidence:
    return evidence._replace(checkpoints=[*evidence.checkpoints, (2, _checkpoint(9, 1, 0))])


@pytest.mark.parametrize(
    ("flaw", "damage"),
    [
        ("missing", _without_message),
        ("duplicates", _with_a_message_twice),
        ("duplicates", _with_a_row_twice),
        ("inversions", _with_two_messages_swapped),
        ("strangers", _with_a_message_of_another_id),
        ("strangers", _with_a_message_of_nobody),
        ("unanswered", _without_a_result),
        ("untrue", _with_a_result_changed(topic="rows.p0.other")),
        ("untrue", _with_a_result_changed(sequence=2)),
        ("untrue", _with_a_result_changed(outcome=Outcome.REJECTED)),
        ("uncommitted", _without_a_result),
        ("uncommitted", _with_a_row_in_two_epochs),
        ("left", lambda evidence: evidence._replace(left=1)),
        ("uncovered", _without_a_checkpoint),
        ("uncovered", _with_the_checkpoint_of_what_was_replayed),
        ("uncovered", _with_a_checkpoint_of_nothing),
    ],
)
def test_judge_counts_each_kind_of_flaw(flaw: str, damage: Callable[[Evidence], Evidence]) -> None:
    assert getattr(flaws(damage(_evidence())), flaw) == 1
