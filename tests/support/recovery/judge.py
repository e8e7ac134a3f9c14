"""Judges a killed dataflow by the stream, the kept results and the recovery store alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from bytewax_jetstream.envelope import Checkpoint, Envelope, Outcome, PublishResult
from tests.support.recovery.rows import STREAM, envelope_of, is_good
from tests.support.streams import Stored

__all__ = ["FLAWLESS", "Evidence", "Flaws", "Proofs", "flaws", "proofs"]


class Evidence(NamedTuple):
    """All that is left of the runs."""

    made: Sequence[int]
    """How many rows each partition has made."""
    messages: Sequence[Stored]
    """The stream, read by another client."""
    results: Sequence[tuple[int, PublishResult]]
    """With the run that they were kept in, in the order of keeping."""
    checkpoints: Sequence[tuple[int, Checkpoint]]
    """With the run that they were kept in, in the order of keeping."""
    left: int
    """How many envelopes were in flight when an epoch's state was taken."""
    resumed: Mapping[int, int]
    """The epoch at which each run resumed: all earlier ones are committed."""


class Flaws(NamedTuple):
    """Numbers that all have to be zero."""

    missing: int
    """Rows that were made and are not in the stream."""
    duplicates: int
    """Messages whose row or whose id is already in the stream."""
    inversions: int
    """Messages that stand behind a later one of their aggregate."""
    strangers: int
    """Messages that are not exactly what was published."""
    unanswered: int
    """Rows without any result."""
    untrue: int
    """Results that are not those of their row."""
    uncommitted: int
    """Rows that are not in exactly one committed epoch."""
    left: int
    """Envelopes that an epoch's state was taken without waiting for."""
    uncovered: int
    """Committed epochs of a worker whose checkpoint is missing or counts otherwise."""


class Proofs(NamedTuple):
    """Numbers without which the rest proves nothing."""

    replayed: int
    """Results that say that the server knew the id already."""
    restored: int
    """Rows whose results were kept by a later run than the one that committed them."""


FLAWLESS = Flaws(*[0] * len(Flaws._fields))


def flaws(evidence: Evidence) -> Flaws:
    """Compare what there is with what there has to be."""
    wanted = _wanted(evidence)
    good = {envelope.event_id for part, index, envelope in wanted if is_good(index)}
    rows = {envelope.payload: envelope for part, index, envelope in wanted if is_good(index)}
    ids = [message.headers.get("Nats-Msg-Id") for message in evidence.messages]
    stored = {message.payload for message in evidence.messages}
    answered = {result.event_id for _, result in evidence.results}
    committed = _committed(evidence)
    return Flaws(
        missing=len(rows.keys() - stored),
        duplicates=len(ids) - min(len(set(ids)), len(stored)),
        inversions=_inversions(evidence.messages),
        strangers=sum(
            not _is_row(message, rows.get(message.payload)) for message in evidence.messages
        ),
        unanswered=len({envelope.event_id for _, _, envelope in wanted} - answered),
        untrue=_untrue(evidence, good),
        uncommitted=_uncommitted(committed, {envelope.event_id for _, _, envelope in wanted}),
        left=evidence.left,
        uncovered=_uncovered(evidence, committed, good),
    )


def proofs(evidence: Evidence) -> Proofs:
    """Count what shows that the promises were needed."""
    first_kept: dict[tuple[str, int], int] = {}
    for run, result in evidence.results:
        if run >= _executor(evidence, result.epoch):
            first_kept.setdefault((result.event_id, result.epoch), run)
    return Proofs(
        replayed=sum(result.duplicate is True for _, result in evidence.results),
        restored=sum(run > _executor(evidence, epoch) for (_, epoch), run in first_kept.items()),
    )


def _wanted(evidence: Evidence) -> list[tuple[int, int, Envelope]]:
    return [
        (part, index, envelope_of(part, index))
        for part, count in enumerate(evidence.made)
        for index in range(count)
    ]


def _is_row(message: Stored, row: Envelope | None) -> bool:
    """Whether a message is what a client has to make of that envelope."""
    if row is None:
        return False
    headers = {
        "Nats-Msg-Id": row.event_id,
        "Aggregate-Id": row.aggregate_id,
        "Event-Type": row.event_type,
    }
    if " " in row.event_id:
        headers |= {
            "Nats-Msg-Id": "~" + sha256(row.event_id.encode()).hexdigest(),
            "Event-Id": row.event_id,
        }
    return message.subject == row.topic and message.headers == headers


def _inversions(messages: Iterable[Stored]) -> int:
    latest: dict[str | None, int] = {}
    inversions = 0
    for message in messages:
        aggregate, index = message.headers.get("Aggregate-Id"), int(message.payload.split()[1])
        inversions += index < latest.get(aggregate, -1)
        latest[aggregate] = max(index, latest.get(aggregate, -1))
    return inversions


def _untrue(evidence: Evidence, good: set[str]) -> int:
    by_sequence = {message.sequence: message for message in evidence.messages}
    payloads = {message.payload for message in evidence.messages}
    wanted = {envelope.event_id: envelope for _, _, envelope in _wanted(evidence)}
    untrue = 0
    for _, result in evidence.results:
        row = wanted.get(result.event_id)
        if row is None or result[2:5] != (row.topic, row.aggregate_id, row.event_type):
            untrue += 1
        elif result.event_id in good:
            message = by_sequence.get(result.sequence or 0)
            stored = message is not None and message.payload == row.payload
            if result.sequence is None:  # as in a batch
                stored = row.payload in payloads
            untrue += result.outcome is not Outcome.STORED or result.stream != STREAM or not stored
        else:
            untrue += (
                result.outcome is not Outcome.REJECTED
                or result.envelope != row
                or not result.reason
            )
    return untrue


def _executor(evidence: Evidence, epoch: int) -> int:
    """The last run that began an epoch: what earlier ones did in it was not committed."""
    return max(run for run, resumed in evidence.resumed.items() if resumed <= epoch)


def _committed(evidence: Evidence) -> dict[tuple[int, int], set[str]]:
    """The event ids of each worker and committed epoch."""
    committed: dict[tuple[int, int], set[str]] = defaultdict(set)
    for run, result in evidence.results:
        if run >= _executor(evidence, result.epoch):
            committed[result.worker, result.epoch].add(result.event_id)
    return committed


def _uncommitted(committed: Mapping[tuple[int, int], set[str]], wanted: set[str]) -> int:
    times = Counter(event_id for ids in committed.values() for event_id in ids)
    return sum(times[event_id] != 1 for event_id in wanted)


def _uncovered(
    evidence: Evidence, committed: Mapping[tuple[int, int], set[str]], good: set[str]
) -> int:
    last = {
        (checkpoint.worker, checkpoint.epoch): checkpoint
        for run, checkpoint in evidence.checkpoints
        if run >= _executor(evidence, checkpoint.epoch)
    }
    uncovered = len(last.keys() - committed.keys())
    for key, ids in committed.items():
        checkpoint = last.get(key)
        counts = (len(ids & good), len(ids - good))
        uncovered += (
            checkpoint is None
            or (checkpoint.stored, checkpoint.rejected) != counts
            or checkpoint.last_event_id not in ids
        )
    return uncovered
