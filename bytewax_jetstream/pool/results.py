"""What has ended at a broker, turned into publish results."""

from typing import NamedTuple

from ..dispatch.flight import Acked, Ended, Stored
from ..envelope import Outcome, PublishResult, picklable
from ..publishing.answers import Receipt, Verdict

__all__ = ["Delivery", "Reckoning", "reckon"]

NOWHERE = Receipt()
_new = tuple.__new__


class Delivery(NamedTuple):
    """What an ACK worker settled in one go."""

    oks: list[PublishResult]
    """Stored ones."""
    errs: list[PublishResult]
    """Rejected and unknown ones."""
    duplicates: int
    last_event_id: str


class Reckoning(NamedTuple):
    """A delivery, and what the pool has to know of it."""

    delivery: Delivery
    stop_reason: str | None
    """Why a dataflow must not commit, if it must not."""
    unknown: int
    size: int
    """Payload bytes that are not unsettled any more."""


def reckon(ended: list[Ended], broker: str, at: float, worker: int) -> Reckoning:
    """One result for each envelope, in the order in which they ended."""
    stop, size, duplicates, unknown = None, 0, 0, 0
    oks: list[PublishResult] = []
    errs: list[PublishResult] = []
    for one in ended:
        if isinstance(one, Stored):
            oks += _of_all(one, broker, at, worker)
            size += one.parcel.size
            duplicates += bool(one.receipt.duplicate) * len(one.parcel)
            continue
        if isinstance(one, Acked):
            oks += _of_each(one, broker, at, worker)
            size += sum([entry.size for entry in one.entries])
            duplicates += sum([bool(receipt[3]) for receipt in one.receipts])
            continue
        entry, outcome, receipt, refusal = one
        size += entry.size
        (result,) = _of_each(Acked([entry], [receipt or NOWHERE]), broker, at, worker)
        if refusal is None:
            duplicates += bool(result.duplicate)
            oks.append(result)
            continue
        unknown += outcome is Outcome.UNKNOWN
        kept = picklable(entry.envelope)
        if outcome is Outcome.UNKNOWN or refusal.verdict is Verdict.STOP:
            stop = (
                stop or f"envelope {kept.event_id} on {kept.topic} is {outcome}: {refusal.reason}"
            )
        errs.append(
            result._replace(
                outcome=outcome,
                event_id=kept.event_id,
                topic=kept.topic,
                aggregate_id=kept.aggregate_id,
                event_type=kept.event_type,
                reason=refusal.reason,
                code=refusal.code,
                envelope=kept,
            )
        )
    last = ended[-1]
    if isinstance(last, Stored):
        envelope = last.parcel.envelopes[-1]
    else:
        envelope = (last.entries[-1] if isinstance(last, Acked) else last.entry).envelope
    return Reckoning(Delivery(oks, errs, duplicates, envelope.event_id), stop, unknown, size)


def _of_each(acked: Acked, broker: str, at: float, worker: int) -> list[PublishResult]:
    """Past the keyword constructor, as this runs once a message (0.2 us instead of 0.9)."""
    kind, new, outcome = PublishResult, _new, Outcome.STORED
    return [
        new(
            kind,
            (
                outcome, envelope[2], envelope[0], envelope[3], envelope[4], broker, stream, partition, sequence,
                duplicate, entry.attempts, at - entry.batch[0], None, None, None, worker, entry.batch[2],
            ),
        )
        for entry, (stream, partition, sequence, duplicate) in zip(acked.entries, acked.receipts, strict=True)
        for envelope in (entry.envelope,)
    ]  # fmt: skip


def _of_all(stored: Stored, broker: str, at: float, worker: int) -> list[PublishResult]:
    """Likewise, with all that does not differ between the messages looked up once."""
    (stream, partition, sequence, duplicate), parcel = stored.receipt, stored.parcel
    kind, new, outcome, attempts = PublishResult, _new, Outcome.STORED, parcel.attempts
    ack_seconds, epoch = at - parcel.batch.submitted, parcel.batch.epoch
    return [
        new(
            kind,
            (
                outcome, event_id, topic, aggregate_id, event_type, broker, stream, partition, sequence, duplicate,
                attempts, ack_seconds, None, None, None, worker, epoch,
            ),
        )
        for topic, _, event_id, aggregate_id, event_type, _, _, _ in parcel.envelopes
    ]  # fmt: skip
