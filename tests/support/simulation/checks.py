"""What must be true during a simulated run and at its end; each check returns what is not."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from bytewax_jetstream.dispatch import Dispatch, LaneQueue, Settled
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.publishing import Policy
from tests.support.simulation.broker import Broker

__all__ = [
    "Accepted",
    "Record",
    "check_order",
    "check_progress",
    "check_results",
    "check_routes",
    "check_window",
    "left_behind",
]


class Accepted(NamedTuple):
    """An envelope a lane was given."""

    envelope: Envelope
    lane: LaneQueue
    at: float
    group: object
    """The same for those that are stored all or none."""


@dataclass
class Record:
    """What a run was given, and what came of it."""

    policy: Policy
    patient: bool
    """Whether the delivery timeout is long after the last fault: then nothing may be unknown."""
    accepted: dict[str, Accepted] = field(default_factory=dict)
    """By event id, in order."""
    results: dict[str, list[tuple[float, Settled]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """By event id, each with its time."""
    unknown: dict[tuple[LaneQueue, str | None], list[str]] = field(default_factory=dict)
    """Event ids that ended unknown, by lane and aggregate."""
    closed: set[LaneQueue] = field(default_factory=set)
    progress: float = 0.0
    """When the last answer settled something, or something was accepted while nothing was
    unsettled."""
    failed: bool = False
    """Whether the publisher was abandoned."""


# During the run


def check_window(dispatch: Dispatch, policy: Policy) -> Iterator[str]:
    """No more is in flight than the window allows, and one group or message."""
    largest_group = 30 if policy.atomic else 1
    messages, size = dispatch.in_flight, dispatch._window.bytes
    most, most_bytes = policy.window + largest_group, policy.window_bytes + 300 * largest_group
    if messages >= most or size >= most_bytes:
        yield f"{messages} messages and {size} bytes are in flight: more than the window"


def check_routes(dispatch: Dispatch) -> Iterator[str]:
    """An aggregate of a lane is in flight on one route only."""
    homes: dict[tuple[object, str], str] = {}
    for batch in dispatch._batches.sent.values():
        for envelope in (each for segment in batch.segments for each in segment.envelopes):
            aggregate, route = envelope.aggregate_id, batch.route.name
            if aggregate and homes.setdefault((batch.lane, aggregate), route) != route:
                yield f"aggregate {aggregate} is in flight on two routes"


def check_progress(record: Record, now: float) -> Iterator[str]:
    """Nothing is unsettled longer than the delivery timeout without an answer that settles
    something.
    """
    unsettled = len(record.accepted) - len(record.results)
    if unsettled and now > record.progress + record.policy.delivery_timeout + 0.01:
        waited = now - record.progress
        yield f"{unsettled} envelopes are unsettled, and nothing was answered for {waited:g} s"


# At the end


def check_results(record: Record, broker: Broker) -> Iterator[str]:
    """Each envelope has one result, and it is true; a group has one outcome."""
    ends: defaultdict[object, set[tuple[bool, Outcome]]] = defaultdict(set)
    for event_id, accepted in record.accepted.items():
        results = record.results[event_id]
        if len(results) != 1:
            yield f"{event_id} has {len(results)} results"
            continue
        ((_, settled),) = results
        ends[accepted.group].add((event_id in broker.indices, settled.outcome))
        yield from _check_outcome(settled, broker)
        yield from _check_excuse(accepted, settled, record, broker)
    for group, outcomes in ends.items():
        if len(outcomes) > 1:
            yield f"the group {group} did not end as one: {outcomes}"


def _check_outcome(settled: Settled, broker: Broker) -> Iterator[str]:
    """What is called stored is stored, where its receipt says; what is called rejected is not."""
    entry, outcome, receipt, refusal = settled
    event_id = entry.envelope.event_id
    stored = event_id in broker.indices
    if outcome is Outcome.STORED:
        if not stored or receipt is None or refusal is not None:
            yield f"{event_id} is called stored, and is not"
        sequence = receipt.sequence if receipt is not None else None
        if broker.dedupe and sequence is not None and broker.log[sequence] != event_id:
            yield f"{event_id} is said to be stored at {sequence}, where another is"
    if outcome is Outcome.REJECTED and stored:
        yield f"{event_id} is called rejected, and is stored"


def _check_excuse(
    accepted: Accepted, settled: Settled, record: Record, broker: Broker
) -> Iterator[str]:
    """Nothing is unknown, and nothing rejected before it was sent, without a reason."""
    envelope, outcome, attempts = accepted.envelope, settled.outcome, settled.entry.attempts
    if outcome is Outcome.UNKNOWN:
        unknown = record.unknown.setdefault((accepted.lane, envelope.aggregate_id), [])
        if unknown and envelope.aggregate_id is not None:
            return  # not sent any more, because one before it in its aggregate is unknown
        unknown.append(envelope.event_id)
    excused = (
        not record.patient
        or record.failed
        or accepted.lane in record.closed
        or broker.refused[envelope.event_id]
    )
    if outcome is Outcome.UNKNOWN and not excused:
        yield f"{envelope.event_id} is unknown although the broker healed in time"
    if (envelope.topic == "bad") != (attempts == 0 and outcome is Outcome.REJECTED):
        yield f"{envelope.event_id} on {envelope.topic} is {outcome} after {attempts} attempts"


def check_order(record: Record, broker: Broker) -> Iterator[str]:
    """Nothing is stored twice, and each aggregate of a lane in the order of submission."""
    for event_id, copies in Counter(broker.log).items():
        if copies > 1:
            yield f"{event_id} is stored {copies} times"
    last: dict[tuple[LaneQueue, str], str] = {}
    for event_id, (envelope, lane, _, _) in record.accepted.items():
        results, aggregate = record.results[event_id], envelope.aggregate_id
        if aggregate is None or not results or results[0][1].outcome is Outcome.REJECTED:
            continue
        before = last.get((lane, aggregate))
        index = broker.indices.get(event_id)
        if before is not None and index is not None and broker.indices.get(before, inf) > index:
            yield f"{event_id} is stored before {before}, which its lane was given first"
        last[lane, aggregate] = event_id


def left_behind(dispatch: Dispatch, lanes: Sequence[LaneQueue]) -> Iterator[str]:
    """Nothing of what was submitted is kept anywhere."""
    batches, singles = dispatch._batches, dispatch._singles
    of_lanes = batches._lanes.values()
    kept: dict[str, object] = {
        "in flight": dispatch.in_flight,
        "bytes in flight": dispatch._window.bytes,
        "to go out": dispatch._window.outgoing,
        "singles": singles._sent,
        "batches": batches.sent,
        "in process": dispatch._doubts.in_process,
        "waiting": [segment for lane in lanes for segment in lane.waiting],
        "counts": [lane for lane in lanes if lane.singles or lane.backing_off],
        "batches of a lane": [lane.in_flight for lane in of_lanes if lane.in_flight],
        "open": [lane.open for lane in of_lanes if lane.open],
        "silent singles": singles._silent,
        "silent batches": batches._silent,
        "backing off": singles._backing_off,
        "turns": dispatch._turns,
        "ready": [entry for lane in lanes for entry in lane.ready],
        "held": [aggregate for lane in lanes for aggregate in lane.held],
        "settled": dispatch._settlements._kept,
    }
    for name, value in kept.items():
        if value:
            yield f"left behind at the end: {name} {value!r:.80}"
