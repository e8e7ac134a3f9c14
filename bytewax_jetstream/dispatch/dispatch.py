"""What is sent, tried again and settled: every publishing decision, and no I/O and no clock.

One `Dispatch` serves one publisher. Things happen to it (`submit`, `connected`, `acked`, `refused`,
`disconnected`, `tick`), each with the time it happened; it answers with flights to send
(`next_flight`) and with settled envelopes (`take_settled`). The pool turns these into threads and
sockets, the tests into thousands of simulated seconds.

The rules, all of them:

- envelopes of a lane are sent in order, in flights, lanes taking turns;
- where the broker takes a flight whole (it stores a prefix of it, in order), a lane has one such
  flight out on each route, and nothing else of the same aggregates; what collects meanwhile goes on
  with it, or is the next;
- what was sent behind a refused envelope of a whole flight goes again, so the next goes no further
  ahead than this one came, and further with each that is stored;
- a single envelope, and whatever a route does not take, goes one by one, in its place in the order;
- if so asked, an aggregate's envelopes of one hand-off are a group: one entry, stored all or none;
- where the publisher needs it, one envelope of an aggregate is out one by one at a time: a retry
  inside a full window would re-order (measured: 8,139 inversions; with this rule 0);
- an attempt without an answer within the ack timeout is tried again with the same event id, one by
  one, after a jittered backoff; one that was cut off by a lost connection as soon as there is
  another;
- what the broker refuses for good is rejected, unless an earlier attempt was never answered: then
  it is unknown, as is what is neither stored nor rejected by its delivery timeout; it may be
  stored;
- a replicated route takes whole flights only of what cannot be in process there: see `doubt`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from random import Random
from typing import Any

from ..envelope import Envelope, Outcome
from ..errors import EnvelopeError
from ..publishing.answers import Receipt, Refusal, Verdict
from .batches import Whole
from .doubts import Doubts
from .flight import INFINITY, Ended, Flight, LaneQueue, Leg, Policy, Route
from .segment import Batch, Parcel, by_aggregate, by_company
from .singles import OneByOne
from .window import Traffic

__all__ = ["Dispatch"]


class Dispatch:
    """The decisions for one publisher.

    :arg prepare: Makes of envelopes what the publisher sends, or an `EnvelopeError`, for each.
    :arg route: Which route takes envelopes of a topic in whole flights, if one does; may change its
    answer.
    """

    def __init__(
        self,
        policy: Policy,
        prepare: Callable[[Sequence[Envelope]], list[Any]],
        random: Random,
        route: Callable[[str], Route | None] = lambda topic: None,
    ) -> None:
        self._policy = policy
        self._prepare = prepare
        self.traffic = Traffic(policy, Doubts(route, policy.ack_timeout or 0.0))
        """What is out, and the counters."""
        self._one_by_one = OneByOne(self.traffic, random)
        self._whole = Whole(self.traffic, self._one_by_one, route)
        self._connected = False
        self._turns: deque[LaneQueue] = deque()
        """Lanes with something to send, the next first."""
        self._next_expiry = INFINITY

    def __repr__(self) -> str:
        state = "connected" if self._connected else "disconnected"
        out, pausing, lanes = (
            self.traffic.out,
            self._one_by_one.backing_off,
            len(self.traffic.lanes),
        )
        return f"<Dispatch {state}, {out} out, {pausing} backing off, {lanes} lanes>"

    # What happens to it

    def add_lane(self, lane: LaneQueue) -> None:
        """Serve a lane from now on."""
        self.traffic.lanes[lane] = None

    def remove_lane(self, lane: LaneQueue) -> None:
        """Forget a lane; whatever it had unsettled is settled as unknown."""
        self._abandon(
            {lane}, Refusal(Verdict.GIVE_UP, "its lane was closed before it was answered")
        )
        self.traffic.lanes.pop(lane, None)
        self.traffic.changed.pop(lane, None)

    def submit(
        self, lane: LaneQueue, envelopes: Sequence[Envelope], epoch: int, now: float
    ) -> None:
        """Accept envelopes: each waits, or is rejected at once when it can never be stored as it
        is.
        """
        batch = Batch(now, now + self._policy.delivery_timeout, epoch)
        self._next_expiry = min(self._next_expiry, batch.expires)
        parcel = Parcel(batch, list(envelopes), self._prepare(envelopes))
        if EnvelopeError in set(map(type, parcel.wires)):
            self._reject_bad(lane, parcel)
        for part in by_aggregate(parcel) if self._policy.atomic else [parcel]:
            lane.waiting += by_company(part)
        self.traffic.changed[lane] = None

    def connected(self) -> None:
        """The publisher can send."""
        self._connected = True

    def disconnected(self, reason: str) -> None:
        """What is out may be lost, and is tried again."""
        self._connected = False
        self.traffic.departing.clear()
        refusal = Refusal(Verdict.RETRY, reason)
        self._one_by_one.disconnected(refusal)
        self._whole.disconnected(refusal)

    def acked(self, number: int, index: int, receipt: Receipt) -> None:
        """The broker stored one envelope of a flight."""
        self._one_by_one.acked(number, index, receipt)

    def acked_all(self, acks: Iterable[tuple[int, int, Receipt]]) -> None:
        """The broker stored envelopes: flight, index and receipt of each."""
        self._one_by_one.acked_all(acks)

    def stored_through(self, number: int, places: int) -> None:
        """The broker stored the envelopes at the first places of a whole flight."""
        self._whole.stored_through(number, places)

    def ended(self, number: int, places: int, now: float) -> None:
        """A whole flight is over: its first places are stored; it ended at a refusal, or nobody
        knows why.
        """
        self._whole.ended(number, places, now)

    def returned(self, number: int, places: int, *, duplicate: bool | None = None) -> None:
        """A whole flight is over: its first places are stored, the others surely not: they go one
        by one.
        """
        self._whole.returned(number, places, duplicate=duplicate)

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> None:
        """The broker did not store one envelope of a flight; a whole one, nothing from there on,
        and will say so.
        """
        if not self._whole.refused(number, index, refusal, now):
            self._one_by_one.refused(number, index, refusal, now)

    def tick(self, now: float) -> None:
        """Time has passed: end deliveries, silent attempts and backoffs that are due."""
        if now >= self._next_expiry:
            self._expire(now)
        # After it, because these let go of what is settled.
        self._whole.tick(now)
        self._one_by_one.tick(now)

    def abandon(self, reason: str) -> None:
        """Settle everything as unknown: the publisher is closed or beyond repair."""
        self._connected = False
        self._abandon(self.traffic.lanes.keys(), Refusal(Verdict.GIVE_UP, reason))

    # What it answers

    def next_flight(self, now: float) -> Flight | Leg | None:
        """The next envelopes to send, or None while there are none, no connection or no room."""
        traffic = self.traffic
        traffic.now = now
        while self._connected and not traffic.departing:
            for lane in list(traffic.changed):
                self._admit(lane)
            traffic.changed.clear()
            if not self._give_turn(now):
                self._whole.end_low()
                break
        return traffic.departing.popleft() if traffic.departing else None

    def take_settled(self) -> list[tuple[LaneQueue, list[Ended]]]:
        """What was settled since the last call, by lane, in the order of settlement."""
        return self.traffic.take_settled()

    def next_tick(self) -> float:
        """When `tick` has something to do at the latest, if nothing else happens."""
        return min(self._next_expiry, self._one_by_one.next_tick(), self._whole.next_tick())

    def envelopes(self, number: int, index: int) -> list[Envelope]:
        """What is out at that place of a flight, each place answered by itself: several if they are
        a group.
        """
        return self._one_by_one.envelopes(number, index)

    def out_on(self, topic: str) -> list[tuple[int, int]]:
        """Flight and index of all that is out on a topic."""
        return self._one_by_one.out_on(topic) + self._whole.out_on(topic)

    def _admit(self, lane: LaneQueue) -> None:
        """Decide for what waits, in order, how it goes, as far as that can be said now."""
        waiting = lane.waiting
        while waiting and not lane.whole and lane.one_by_one < self._policy.window:
            # Those that are out will be settled soon, and a flight carries more; who backs off may
            # take long.
            if self._whole.may_take(waiting[0]) and not (lane.one_by_one and lane.pausing):
                break
            for entry in waiting.popleft().entries():
                self._one_by_one.go(lane, entry)
        if not lane.in_turn and self._may_send(lane):
            lane.in_turn = True
            self._turns.append(lane)

    def _may_send(self, lane: LaneQueue) -> bool:
        return bool(lane.ready) or self._whole.may_send(lane)

    def _give_turn(self, now: float) -> bool:
        """Let the next lane send; False when there is none, or no room."""
        policy, traffic = self._policy, self.traffic
        room = policy.window - traffic.out
        if not self._turns or room <= 0 or traffic.out_bytes >= policy.window_bytes:
            return False
        lane = self._turns[0]
        if not lane.ready and traffic.out and room < policy.flow:
            return False  # when there is room for what is worth a leg
        self._turns.popleft()
        lane.in_turn = False
        if lane.ready:
            self._one_by_one.send(lane, now)
        elif self._whole.may_send(lane):
            self._whole.send(lane, now)
        traffic.changed[lane] = None
        return True

    def _expire(self, now: float) -> None:
        """End the deliveries that are due and not out; those that are out get their answer first."""
        lanes = self.traffic.lanes
        self._one_by_one.expire(now)
        for lane in lanes:
            while lane.waiting and lane.waiting[0].batch.expires <= now:
                self.traffic.give_up(lane, lane.waiting.popleft())
        self._keep_turns_that_are_needed()
        left = [entry.batch.expires for _, entry in self._one_by_one.unsettled(lanes.keys())]
        left += [parcel.batch.expires for parcel in self._whole.unsettled()]
        left += [parcel.batch.expires for lane in lanes for parcel in lane.waiting]
        # Who is out past its time is looked at again soon, but must not keep the pool busy until
        # then.
        self._next_expiry = max(min(left, default=INFINITY), now + 0.1)

    def _abandon(self, lanes: Set[LaneQueue], refusal: Refusal) -> None:
        self._one_by_one.abandon(lanes, refusal)
        self._whole.abandon(lanes, refusal)
        for lane in lanes:
            self.traffic.abandon(lane, lane.waiting, refusal)
            lane.waiting.clear()
            lane.in_turn = False
        departing = self.traffic.departing
        self.traffic.departing = deque(flight for flight in departing if flight.lane not in lanes)
        self._turns = deque(lane for lane in self._turns if lane not in lanes)

    def _keep_turns_that_are_needed(self) -> None:
        for lane in self._turns:
            lane.in_turn = self._may_send(lane)
        self._turns = deque(lane for lane in self._turns if lane.in_turn)

    def _reject_bad(self, lane: LaneQueue, parcel: Parcel) -> None:
        """Settle what can never be stored as it is, and leave the rest in the parcel."""
        for entry in parcel.entries():
            if type(entry.wire) is EnvelopeError:
                refusal = Refusal(Verdict.REJECT, str(entry.wire))
                self.traffic.settle(lane, entry, Outcome.REJECTED, None, refusal)
        pairs = [
            (e, w)
            for e, w in zip(parcel.envelopes, parcel.wires, strict=True)
            if type(w) is not EnvelopeError
        ]
        parcel.envelopes, parcel.wires = [e for e, _ in pairs], [w for _, w in pairs]
