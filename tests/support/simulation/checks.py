"""What must be true during a simulated run and at its end; each check returns what is not."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import inf

from bytewax_jetstream.dispatch import Dispatch, LaneQueue, Settled
from bytewax_jetstream.envelope import Envelope, Outcome
from tests.support.simulation.broker import Broker
from tests.support.simulation.kinds import LARGEST_SUBMISSION, Kind
from tests.support.simulation.record import Accepted, Attempts, Record, Result

__all__ = [
    "check_order",
    "check_patience",
    "check_progress",
    "check_results",
    "check_routes",
    "check_window",
    "left_behind",
]


# During the run


def check_window(dispatch: Dispatch, kind: Kind) -> Iterator[str]:
    """No more is in flight than the window allows, and one group or message."""
    policy = kind.policy
    largest_group = LARGEST_SUBMISSION if policy.atomic else 1
    messages, size = dispatch.in_flight, dispatch._window.bytes
    most = policy.window + largest_group
    most_bytes = policy.window_bytes + max(kind.sizes) * largest_group
    if messages >= most or size > most_bytes:
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
    if record.unsettled and record.stalled(now - 0.01):
        count, waited = record.unsettled, now - record.progress
        yield f"{count} envelopes are unsettled, and nothing was answered for {waited:g} s"


def check_patience(record: Record, envelopes: Sequence[Envelope], now: float) -> Iterator[str]:
    """None is sent again before its last attempt can have failed."""
    for event_id in (envelope.event_id for envelope in envelopes):
        attempts = record.attempts.get(event_id)
        if attempts is not None and now < attempts.fails - 1e-6:
            yield f"{event_id} is sent again at {now:g} s, and had time until {attempts.fails:g} s"


# At the end


def check_results(record: Record, broker: Broker) -> Iterator[str]:
    """Each envelope has one result, and it is true; a group has one outcome."""
    ends: defaultdict[object, set[tuple[bool, Outcome]]] = defaultdict(set)
    for event_id, accepted in record.accepted.items():
        results = record.results[event_id]
        if len(results) != 1:
            yield f"{event_id} has {len(results)} results"
            continue
        (result,) = results
        ends[accepted.group].add((event_id in broker.indices, result.settled.outcome))
        yield from _check_outcome(result.settled, broker)
        yield from _check_bad(accepted, result.settled)
        yield from _check_time(accepted, result, record)
        if result.settled.outcome is Outcome.UNKNOWN:
            yield from _check_unknown(accepted, result, record, broker)
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


def _check_bad(accepted: Accepted, settled: Settled) -> Iterator[str]:
    """What can never be stored as it is, and nothing else, is rejected before it is sent."""
    envelope, outcome, attempts = accepted.envelope, settled.outcome, settled.entry.attempts
    if (envelope.topic == "bad") != (attempts == 0 and outcome is Outcome.REJECTED):
        yield f"{envelope.event_id} on {envelope.topic} is {outcome} after {attempts} attempts"


def _check_unknown(
    accepted: Accepted, result: Result, record: Record, broker: Broker
) -> Iterator[str]:
    """Nothing is unknown that an answer says is stored, and nothing without a reason:

    - its publisher was abandoned, or its lane closed;
    - an attempt was refused for good, which proves nothing after one that was not answered;
    - it is behind an unknown envelope of its aggregate;
    - the broker may have forgotten its id;
    - nothing at all was settled by an answer for the delivery timeout;
    - since its first attempt failed, the delivery timeout has passed, and no answer has come.

    The last two are no reasons where the broker answers everything in time.
    """
    event_id, aggregate = accepted.envelope.event_id, accepted.envelope.aggregate_id
    before = record.unknown.setdefault((accepted.lane, aggregate), [])
    follows = bool(before) and aggregate is not None
    before.append(event_id)
    attempts = record.attempts.get(event_id, Attempts(inf, inf, inf))
    if attempts.answered < result.at:
        yield f"{event_id} is unknown, and was answered at {attempts.answered:g} s"
    if (
        record.failed
        or accepted.lane in record.closed
        or follows
        or broker.refused[event_id]
        or result.at >= attempts.begun + record.resend_seconds
    ):
        return
    policy = record.kind.policy
    if record.kind.patient:
        yield f"{event_id} is unknown although the broker answered in time"
    failed = min(attempts.failed, attempts.fails)
    if not result.stalled and result.at < failed + policy.delivery_timeout - 1e-6:
        yield f"{event_id} is unknown at {result.at:g} s, its time was not over"


def _check_time(accepted: Accepted, result: Result, record: Record) -> Iterator[str]:
    """Where there is always room, and each answer comes within the transit, if it comes: the first
    attempt fails at the latest with the ack timeout after that; then the clock runs all the time,
    and what is in flight at its end gets the same time again.
    """
    event_id, policy, transit = accepted.envelope.event_id, record.kind.policy, record.kind.transit
    attempts = record.attempts.get(event_id)
    if transit is None or attempts is None or accepted.envelope.aggregate_id is not None:
        return
    took = result.at - attempts.written
    if took > policy.delivery_timeout + 2 * (transit + policy.attempt_seconds) + 0.01:
        yield f"{event_id} took {took:g} s, longer than the delivery timeout"


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
