"""What is sent, tried again and settled: every publishing decision, and no I/O and no clock.

One `Dispatch` serves one publisher. Things happen to it (`submit`, `connected`, `acked`, `refused`,
`disconnected`, `tick`), each with the time it happened; it answers with flights to send
(`next_flight`) and with settled envelopes (`take_settled`). The pool turns these into threads and
sockets, the tests into thousands of simulated seconds.

The rules, all of them:

- envelopes of a lane are sent in order, in flights, lanes taking turns;
- where the broker takes a flight whole (it stores a prefix of it, in order), a lane has one such flight
  out on each route, and nothing else; what collects meanwhile is the next;
- a single envelope, and whatever a route does not take, goes one by one, in its place in the order;
- where the publisher needs it, one envelope of an aggregate is out one by one at a time: a retry inside a
  full window would re-order (measured: 8,139 inversions; with this rule 0);
- an attempt without an answer within the ack timeout, or cut off by a lost connection, is tried again
  with the same event id, one by one, after a jittered backoff;
- what the broker refuses for good is rejected, unless an earlier attempt was never answered: then it is
  unknown, as is what is neither stored nor rejected by its delivery timeout; it may be stored;
- a replicated route counts an id that is in process as stored, and may lose it yet. So it takes whole
  flights only while nothing that they carry can be in process there: not what was sent before, and
  nothing at all while it is in doubt. It is, after a start (an earlier run may have left something) and
  after an attempt that was not answered, until it has stored an envelope that was sent since: its log
  is in order, so what was in process before that is stored or gone. After a start, bytes of a dead
  connection may still come in, so there that envelope has to be sent an ack timeout later.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import count
from random import Random
from typing import Any, NamedTuple

from .envelope import Envelope, Outcome
from .errors import EnvelopeError
from .flight import (
    INFINITY,
    Batch,
    Entry,
    Flight,
    LaneQueue,
    Policy,
    Receipt,
    Refusal,
    Route,
    Settled,
    Stored,
    Verdict,
)

__all__ = ["Dispatch"]


class _Doubt(NamedTuple):
    """A replicated route may have something in process."""

    last: int
    """The number of the last flight that was sent before it began."""
    until: float
    """An envelope that was sent earlier does not end it."""


class Dispatch:
    """The decisions for one publisher.

    :arg prepare: Makes of envelopes what the publisher sends, or an `EnvelopeError`, for each.
    :arg route: Which route takes an envelope as part of a whole flight, if one does; may change its answer.
    """

    def __init__(
        self,
        policy: Policy,
        prepare: Callable[[Sequence[Envelope]], Sequence[Any]],
        random: Random,
        route: Callable[[Envelope], Route | None] = lambda envelope: None,
    ) -> None:
        self._policy = policy
        self._prepare = prepare
        self._route = route
        self._random = random
        self._connected = False
        self._now = 0.0
        self._lanes: dict[LaneQueue, None] = {}
        self._turns: deque[LaneQueue] = deque()
        """Lanes with something to send, the next first."""
        self._departing: deque[Flight] = deque()
        """Formed together, to be sent now."""
        self._flights: dict[int, Flight] = {}
        """Out and awaited, oldest first."""
        self._silent: dict[int, Flight] = {}
        """Given up, oldest first, until all is settled: a late ack still says that an envelope is stored."""
        self._backing_off: list[tuple[float, int, LaneQueue, Entry]] = []
        self._with_settled: list[LaneQueue] = []
        self._next_expiry = INFINITY
        self._numbers = count(1)
        self._last = 0
        """Number of the last flight."""
        self._seen: set[str] = set()
        """Names of replicated routes that were asked for."""
        self._doubts: dict[str, _Doubt] = {}
        """Which of them are in doubt, by name."""
        self._in_process: set[str] = set()
        """Event ids that are out or unanswered on replicated routes."""
        self.out = 0
        self.out_bytes = 0
        self.retries = 0
        self.late_acks = 0
        self.whole_flights = 0
        self.in_whole_flights = 0

    def __repr__(self) -> str:
        state = "connected" if self._connected else "disconnected"
        return f"<Dispatch {state}, {self.out} out, {len(self._backing_off)} backing off, {len(self._lanes)} lanes>"

    # What happens to it

    def add_lane(self, lane: LaneQueue) -> None:
        """Serve a lane from now on."""
        self._lanes[lane] = None

    def remove_lane(self, lane: LaneQueue) -> None:
        """Forget a lane; whatever it had unsettled is settled as unknown."""
        self._abandon({lane}, Refusal(Verdict.GIVE_UP, "its lane was closed before it was answered"))
        self._lanes.pop(lane, None)

    def submit(self, lane: LaneQueue, envelopes: Sequence[Envelope], epoch: int, now: float) -> None:
        """Accept envelopes: each is queued, or rejected at once when it can never be stored as it is."""
        self._now = now
        batch = Batch(now, now + self._policy.delivery_timeout, epoch)
        self._next_expiry = min(self._next_expiry, batch.expires)
        accept = lane.waiting.append
        for envelope, wire in zip(envelopes, self._prepare(envelopes), strict=True):
            entry = Entry(envelope, batch, wire)
            if type(wire) is EnvelopeError:
                self._settle(lane, entry, Outcome.REJECTED, None, Refusal(Verdict.REJECT, str(wire)))
            else:
                accept(entry)
        self._admit(lane)

    def connected(self) -> None:
        """The publisher can send."""
        self._connected = True

    def disconnected(self, reason: str) -> None:
        """What is out may be lost: it goes back to the head of its lane, in order."""
        self._connected = False
        refusal = Refusal(Verdict.RETRY, reason)
        flights, self._flights = self._flights, {}
        self._silent |= flights
        self._departing.clear()
        for flight in reversed(flights.values()):
            self._land(flight)
            unanswered = flight.unanswered()
            self.retries += len(unanswered)
            self._doubt(flight, unanswered)
            for entry in unanswered:
                entry.last = refusal
                entry.in_doubt += 1
            if flight.route is None:
                for entry in reversed(unanswered):
                    self._make_ready(flight.lane, entry, first=True)
            else:
                flight.lane.whole -= 1
                for entry in unanswered:
                    self._go_one_by_one(flight.lane, entry)
        for lane in self._lanes:
            self._admit(lane)

    def acked(self, number: int, index: int, receipt: Receipt) -> None:
        """The broker stored one envelope of a flight."""
        flight = self._flights.get(number)
        if flight is None:
            self._acked_late(number, index, receipt)
            return
        self._reassure(flight, receipt)
        entry = self._answer(flight, index)
        if entry is not None:
            self._finish(flight.lane, entry, Outcome.STORED, receipt, None)

    def acked_all(self, acks: Iterable[tuple[int, int, Receipt]]) -> None:
        """The broker stored envelopes: flight, index and receipt of each.

        The same as `acked` for each, written out because this is the path of every message that goes one by one.
        """
        flights, with_settled, waiting_lanes = self._flights, self._with_settled, {}
        for number, index, receipt in acks:
            flight = flights.get(number)
            entry = flight.at(index) if flight is not None else None
            if flight is None or entry is None or entry.done or self._in_process:
                self.acked(number, index, receipt)
                continue
            entry.done = True
            flight.entries[index] = None
            flight.open -= 1
            if not flight.open:
                del flights[number]
            self.out -= 1
            self.out_bytes -= entry.size
            lane, aggregate = flight.lane, entry.envelope.aggregate_id
            lane.one_by_one -= 1
            if aggregate in lane.held:
                held = lane.held[aggregate]
                if held:
                    self._make_ready(lane, held.popleft(), first=False)
                else:
                    del lane.held[aggregate]
            if not lane.settled:
                with_settled.append(lane)
            lane.settled.append(_new(Settled, (entry, Outcome.STORED, receipt, None)))
            if lane.waiting:
                waiting_lanes[lane] = True
        for lane in waiting_lanes:
            self._admit(lane)

    def stored_through(self, number: int, places: int, *, duplicate: bool | None = None) -> None:
        """The broker stored the envelopes at the first places of a whole flight."""
        flight = self._flights.get(number)
        awaited = flight is not None
        if flight is None and places:
            self.late_acks += 1
            flight = self._silent.get(number)
        if flight is None or flight.route is None or flight.lane not in self._lanes:
            return
        receipt = Receipt(flight.route.name, duplicate=duplicate)
        if flight.refusal is not None:
            places = min(places, flight.refusal[0])
        first = len(flight.entries) - flight.open
        stored = [entry for entry in flight.entries[first:places] if entry is not None]
        flight.entries[first:places] = [None] * len(stored)
        flight.open -= len(stored)
        lane = flight.lane
        if not awaited:  # so each goes one by one by now
            for entry in stored:
                if not entry.done:
                    self._finish(lane, entry, Outcome.STORED, receipt, None)
            return
        if stored:
            self.out -= len(stored)
            for entry in stored:
                entry.done = True
                self.out_bytes -= entry.size
            if self._in_process:
                self._in_process.difference_update([entry.envelope.event_id for entry in stored])
            if not lane.settled:
                self._with_settled.append(lane)
            lane.settled.append(Stored(stored, receipt))
        if not flight.open:
            self._end(flight)
            self._admit(lane)

    def ended(self, number: int, places: int, now: float) -> None:
        """A whole flight is over: its first places are stored; it ended at a refusal, or nobody knows why."""
        self.stored_through(number, places)
        flight = self._flights.get(number)
        if flight is None:
            return
        lane = flight.lane
        self._end(flight)
        if flight.refusal is not None and flight.refusal[0] == len(flight.entries) - flight.open:
            refused, *untouched = flight.unanswered()
            lane.waiting.extendleft(reversed(untouched))
            lane.one_by_one += 1
            if not self._held_back(lane, refused):
                self._refuse(lane, refused, flight.refusal[1], now)
        else:
            self._lose(flight, Refusal(Verdict.RETRY, "its flight ended before it"), now)
        self._admit(lane)

    def returned(self, number: int, places: int, *, duplicate: bool | None = None) -> None:
        """A whole flight is over: its first places are stored, the others surely not: they go one by one."""
        self.stored_through(number, places, duplicate=duplicate)
        flight = self._flights.get(number)
        if flight is not None:
            self._end(flight)
            for entry in flight.unanswered():
                self._go_one_by_one(flight.lane, entry)

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> None:
        """The broker did not store one envelope of a flight; a whole one, nothing from there on, and will say so."""
        flight = self._flights.get(number)
        if flight is None:
            self._refused_late(number, index)
        elif flight.route is None:
            entry = self._answer(flight, index)
            if entry is not None:
                self._refuse(flight.lane, entry, refusal, now)
        elif flight.refusal is None or index < flight.refusal[0]:
            flight.refusal = index, refusal

    def tick(self, now: float) -> None:
        """Time has passed: end silent attempts, backoffs and deliveries that are due."""
        self._now = now
        self._end_silent_attempts(now)
        while self._backing_off and self._backing_off[0][0] <= now:
            _, _, lane, entry = heapq.heappop(self._backing_off)
            lane.pausing -= 1
            if not entry.done:
                self._make_ready(lane, entry, first=True)
        if now >= self._next_expiry:
            self._expire(now)
        while self._silent and not next(iter(self._silent.values())).unanswered():
            del self._silent[next(iter(self._silent))]

    def abandon(self, reason: str) -> None:
        """Settle everything as unknown: the publisher is closed or beyond repair."""
        self._connected = False
        self._abandon(self._lanes.keys(), Refusal(Verdict.GIVE_UP, reason))

    # What it answers

    def next_flight(self, now: float) -> Flight | None:
        """The next envelopes to send, or None while there are none, no connection or no room."""
        self._now = now
        policy = self._policy
        while not self._departing:
            if not (self._connected and self._turns):
                return None
            if self.out >= policy.window or self.out_bytes >= policy.window_bytes:
                return None
            lane = self._turns.popleft()
            if lane.ready:
                self._send_ready(lane, now)
            elif lane.waiting and not lane.whole and not lane.one_by_one:
                if self.out and policy.window - self.out < min(policy.whole_flight, len(lane.waiting)):
                    self._turns.appendleft(lane)  # a part of a flight would cost the broker as much
                    return None
                self._send_whole(lane, now)
            lane.in_turn = False
            if lane.ready:
                self._await_turn(lane)
            else:
                self._admit(lane)
        return self._departing.popleft()

    def take_settled(self) -> list[tuple[LaneQueue, list[Settled | Stored]]]:
        """What was settled since the last call, by lane, in the order of settlement."""
        lanes, self._with_settled = self._with_settled, []
        taken = []
        for lane in lanes:
            taken.append((lane, lane.settled))
            lane.settled = []
        return taken

    def next_tick(self) -> float:
        """When `tick` has something to do at the latest, if nothing else happens."""
        due = self._next_expiry
        if self._flights:
            due = min(due, next(iter(self._flights.values())).deadline)
        if self._backing_off:
            due = min(due, self._backing_off[0][0])
        return due

    def envelope(self, number: int, index: int) -> Envelope | None:
        """What is out at that place of a flight."""
        flight = self._flights.get(number)
        entry = flight.at(index) if flight is not None else None
        return entry.envelope if entry is not None else None

    def out_on(self, topic: str) -> list[tuple[int, int]]:
        """Flight and index of all that is out on a topic."""
        return [
            (flight.number, index)
            for flight in self._flights.values()
            for index, entry in enumerate(flight.entries)
            if entry is not None and entry.envelope.topic == topic
        ]

    # How it goes

    def _admit(self, lane: LaneQueue) -> None:
        """Decide for what waits, in order, how it goes, as far as that can be said now."""
        policy, waiting = self._policy, lane.waiting
        if not policy.whole_flight and not policy.one_per_aggregate:
            lane.one_by_one += len(waiting)
            lane.ready += waiting
            waiting.clear()
        while waiting and not lane.whole:
            entry = waiting[0]
            route = self._route(entry.envelope) if policy.whole_flight else None
            if route is not None:
                if self._is_in_doubt(route):
                    if lane.one_by_one >= policy.window:
                        return  # by then it may not be in doubt any more
                elif not lane.one_by_one:
                    break  # it begins the next whole flight
                elif not lane.pausing:
                    return  # those that are out will be settled soon, and a flight carries more
            waiting.popleft()
            self._go_one_by_one(lane, entry)
        if lane.ready or (waiting and not lane.whole):
            self._await_turn(lane)

    def _go_one_by_one(self, lane: LaneQueue, entry: Entry) -> None:
        lane.one_by_one += 1
        if not self._held_back(lane, entry):
            self._make_ready(lane, entry, first=False)

    def _held_back(self, lane: LaneQueue, entry: Entry) -> bool:
        """Whether an entry has to wait behind another of its aggregate; if not, others will behind it."""
        aggregate = entry.envelope.aggregate_id
        if aggregate is None or not self._policy.one_per_aggregate:
            return False
        if aggregate not in lane.held:
            lane.held[aggregate] = None
            return False
        held = lane.held[aggregate]
        if held is None:
            held = lane.held[aggregate] = deque()
        held.append(entry)
        return True

    def _send_ready(self, lane: LaneQueue, now: float) -> None:
        """Let what is ready depart, each to be answered by itself."""
        policy, ready = self._policy, lane.ready
        limit = min(policy.flight, policy.window - self.out)
        entries: list[Entry | None] = []
        size = self.out_bytes
        while ready and len(entries) < limit and size < policy.window_bytes:
            entry = ready.popleft()
            if entry.done:
                continue
            if entry.batch.expires <= now:
                self._give_up(lane, entry)
                continue
            entry.attempts += 1
            size += entry.size
            entries.append(entry)
            if self._seen:
                self._note_in_process(entry)
        if entries:
            self._depart(lane, entries, size, None, now)

    def _send_whole(self, lane: LaneQueue, now: float) -> None:
        """Let the next of what waits depart in whole flights, one for each route; single ones go one by one."""
        policy, waiting = self._policy, lane.waiting
        limit = min(policy.whole_flight, policy.window - self.out)
        size = self.out_bytes
        homes: dict[str, Route] = {}
        flights: dict[Route, list[Entry | None]] = {}
        taken = 0
        while waiting and taken < limit and size < policy.window_bytes:
            entry = waiting[0]
            envelope = entry.envelope
            if entry.batch.expires <= now:
                waiting.popleft()
                self._give_up_waiting(lane, entry)
                continue
            route = self._route(envelope)
            if route is None or self._is_in_doubt(route):
                break
            if envelope.aggregate_id is not None and homes.setdefault(envelope.aggregate_id, route) is not route:
                break  # flights do not wait for each other, and an aggregate has its order everywhere
            if route.replicated:
                if envelope.event_id in self._in_process:
                    break
                self._in_process.add(envelope.event_id)
            waiting.popleft()
            size += entry.size
            taken += 1
            if route in flights:
                flights[route].append(entry)
            else:
                flights[route] = [entry]
        if not taken and waiting:
            self._go_one_by_one(lane, waiting.popleft())
        for route, entries in flights.items():
            single = entries[0]
            if len(entries) == 1 and single is not None:
                self._go_one_by_one(lane, single)
                continue
            for each in entries:
                assert each is not None
                each.attempts += 1
            lane.whole += 1
            self.whole_flights += 1
            self.in_whole_flights += len(entries)
            self._depart(lane, entries, self.out_bytes + sum(e.size for e in entries if e is not None), route, now)

    def _depart(
        self, lane: LaneQueue, entries: list[Entry | None], out_bytes: int, route: Route | None, now: float
    ) -> None:
        self._last = next(self._numbers)
        flight = Flight(self._last, lane, entries, now, now + (self._policy.ack_timeout or INFINITY), route)
        self._flights[flight.number] = flight
        self._departing.append(flight)
        self.out += len(entries)
        self.out_bytes = out_bytes

    # What may be in process

    def _is_in_doubt(self, route: Route) -> bool:
        if not route.replicated:
            return False
        if route.name not in self._seen:
            self._seen.add(route.name)
            if not route.fresh:
                self._doubts[route.name] = _Doubt(self._last, self._now + (self._policy.ack_timeout or 0.0))
        return route.name in self._doubts

    def _note_in_process(self, entry: Entry) -> None:
        route = self._route(entry.envelope)
        if route is not None and route.replicated:
            self._in_process.add(entry.envelope.event_id)

    def _doubt(self, flight: Flight, unanswered: Iterable[Entry]) -> None:
        """Attempts will not be answered: where they went, they may be in process for long."""
        if not self._seen:
            return
        routes = {flight.route} if flight.route else {self._route(entry.envelope) for entry in unanswered}
        for route in routes:
            if route is not None and route.replicated:
                before = self._doubts.get(route.name)
                self._doubts[route.name] = _Doubt(self._last, before.until if before else 0.0)

    def _reassure(self, flight: Flight, receipt: Receipt) -> None:
        """An envelope was stored that the route had not before: what was in process before it is no more."""
        if receipt.stream is None or receipt.duplicate:
            return
        doubt = self._doubts.get(receipt.stream)
        if doubt is not None and flight.number > doubt.last and flight.sent >= doubt.until:
            del self._doubts[receipt.stream]

    # How it ends

    def _answer(self, flight: Flight, index: int) -> Entry | None:
        """Take an entry out of its flight; None when it was answered or settled before."""
        entry = flight.at(index)
        if entry is None or flight.route is not None:
            self.late_acks += 1
            return None
        flight.entries[index] = None
        flight.open -= 1
        if not flight.open:
            del self._flights[flight.number]
        self.out -= 1
        self.out_bytes -= entry.size
        if entry.done:
            self.late_acks += 1
            return None
        return entry

    def _acked_late(self, number: int, index: int, receipt: Receipt) -> None:
        self.late_acks += 1
        flight = self._silent.get(number)
        entry = flight.at(index) if flight is not None and flight.route is None else None
        if flight is not None and entry is not None and not entry.done and flight.lane in self._lanes:
            self._finish(flight.lane, entry, Outcome.STORED, receipt, None)

    def _refused_late(self, number: int, index: int) -> None:
        """A later attempt decides, but this one is in doubt no more."""
        flight = self._silent.get(number)
        entry = flight.at(index) if flight is not None and flight.route is None else None
        if flight is not None and entry is not None:
            flight.entries[index] = None
            entry.in_doubt -= 1

    def _refuse(self, lane: LaneQueue, entry: Entry, refusal: Refusal, now: float) -> None:
        entry.last = refusal
        if refusal.verdict is Verdict.RETRY:
            self._back_off(lane, entry, now)
        elif refusal.verdict is Verdict.GIVE_UP:
            self._finish(lane, entry, Outcome.UNKNOWN, None, refusal)
        elif entry.in_doubt:
            reason = f"{refusal.reason}; but an earlier attempt was never answered, so it may be stored"
            self._finish(lane, entry, Outcome.UNKNOWN, None, refusal._replace(reason=reason))
        else:
            self._finish(lane, entry, Outcome.REJECTED, None, refusal)

    def _land(self, flight: Flight) -> None:
        """A flight is not awaited any more."""
        for entry in flight.entries:
            if entry is not None:
                self.out -= 1
                self.out_bytes -= entry.size

    def _end(self, flight: Flight) -> None:
        """A whole flight is over."""
        del self._flights[flight.number]
        flight.lane.whole -= 1
        self._land(flight)

    def _lose(self, flight: Flight, refusal: Refusal, now: float) -> None:
        """What is unanswered of a flight that is not awaited any more may be stored: it is tried again, one by one."""
        self._silent[flight.number] = flight
        unanswered = flight.unanswered()
        self._doubt(flight, unanswered)
        for entry in unanswered:
            # The broker's own word on an earlier attempt tells more than this silence.
            entry.last = entry.last or refusal
            entry.in_doubt += 1
            if flight.route is not None:
                flight.lane.one_by_one += 1
                if self._held_back(flight.lane, entry):
                    continue
            self._back_off(flight.lane, entry, now)

    def _make_ready(self, lane: LaneQueue, entry: Entry, *, first: bool) -> None:
        if first:
            lane.ready.appendleft(entry)
        else:
            lane.ready.append(entry)
        self._await_turn(lane)

    def _await_turn(self, lane: LaneQueue) -> None:
        if not lane.in_turn:
            lane.in_turn = True
            self._turns.append(lane)

    def _back_off(self, lane: LaneQueue, entry: Entry, now: float) -> None:
        if now >= entry.batch.expires:
            self._give_up(lane, entry)
            return
        pause = min(self._policy.longest_backoff, self._policy.first_backoff * 2.0 ** min(entry.attempts - 1, 30))
        self.retries += 1
        due = now + pause * self._random.uniform(0.5, 1.0)
        heapq.heappush(self._backing_off, (due, next(self._numbers), lane, entry))
        lane.pausing += 1
        if lane.waiting:
            self._admit(lane)

    def _end_silent_attempts(self, now: float) -> None:
        """Flights carry deadlines in the order of their numbers, so the oldest decides."""
        silence = Refusal(Verdict.RETRY, f"no ack within {self._policy.ack_timeout or 0:g} s")
        while self._flights:
            flight = next(iter(self._flights.values()))
            if flight.deadline > now:
                break
            if flight.route is not None:
                self._end(flight)
            else:
                del self._flights[flight.number]
                self._land(flight)
            self._lose(flight, silence, now)
            self._admit(flight.lane)

    def _expire(self, now: float) -> None:
        """End the deliveries that are due and not out; those that are out get their answer first."""
        for _, _, lane, entry in list(self._backing_off):
            if not entry.done and entry.batch.expires <= now:
                self._give_up(lane, entry)
        for lane in self._lanes:
            kept: deque[Entry] = deque()
            while lane.ready:  # to which giving one up adds the next of its aggregate
                entry = lane.ready.popleft()
                if not entry.done and entry.batch.expires <= now:
                    self._give_up(lane, entry)
                elif not entry.done:
                    kept.append(entry)
            lane.ready = kept
            while lane.waiting and lane.waiting[0].batch.expires <= now:
                self._give_up_waiting(lane, lane.waiting.popleft())
        self._only_live()
        left = min((entry.batch.expires for _, entry in self._unsettled(self._lanes.keys())), default=INFINITY)
        # Who is out past its time is looked at again soon, but must not keep the pool busy until then.
        self._next_expiry = max(left, now + 0.1)

    def _only_live(self) -> None:
        """Let go of what is settled among those that back off, and of turns that nobody needs."""
        self._backing_off = [item for item in self._backing_off if not item[3].done]
        heapq.heapify(self._backing_off)
        self._turns.clear()
        for lane in self._lanes:
            lane.pausing = sum(item[2] is lane for item in self._backing_off)
            lane.in_turn = False
            self._admit(lane)

    def _unsettled(self, lanes: Set[LaneQueue]) -> Iterator[tuple[LaneQueue, Entry]]:
        listed = [(item[2], item[3]) for item in self._backing_off]
        listed += [(flight.lane, entry) for flight in self._flights.values() for entry in flight.unanswered()]
        for lane in lanes:
            listed += [(lane, entry) for entry in lane.ready]
            listed += [(lane, entry) for held in lane.held.values() if held for entry in held]
            listed += [(lane, entry) for entry in lane.waiting]
        return ((lane, entry) for lane, entry in listed if lane in lanes and not entry.done)

    def _abandon(self, lanes: Set[LaneQueue], refusal: Refusal) -> None:
        for lane, entry in self._unsettled(lanes):
            self._settle(lane, entry, Outcome.UNKNOWN, None, refusal)
        for lane in lanes:
            lane.waiting.clear()
            lane.ready.clear()
            lane.held.clear()
            lane.one_by_one = lane.whole = 0
        for flight in [flight for flight in self._flights.values() if flight.lane in lanes]:
            self._land(self._flights.pop(flight.number))
        self._departing = deque(flight for flight in self._departing if flight.lane not in lanes)
        self._only_live()

    def _give_up(self, lane: LaneQueue, entry: Entry) -> None:
        self._finish(lane, entry, Outcome.UNKNOWN, None, self._not_settled_in_time(entry))

    def _give_up_waiting(self, lane: LaneQueue, entry: Entry) -> None:
        self._settle(lane, entry, Outcome.UNKNOWN, None, self._not_settled_in_time(entry))

    def _not_settled_in_time(self, entry: Entry) -> Refusal:
        last = entry.last.reason if entry.last else "never sent: no connection, or no answer to what came before it"
        reason = (
            f"not settled within {self._policy.delivery_timeout:g} s and {entry.attempts} attempts ({last}): "
            "see to the broker, then publish it again with the same event id"
        )
        return Refusal(Verdict.GIVE_UP, reason, entry.last.code if entry.last else None)

    def _finish(
        self, lane: LaneQueue, entry: Entry, outcome: Outcome, receipt: Receipt | None, refusal: Refusal | None
    ) -> None:
        """Settle an entry that goes one by one, and let the next of its aggregate follow."""
        aggregate = entry.envelope.aggregate_id
        if aggregate is not None and aggregate in lane.held:
            held = lane.held[aggregate]
            if held:
                self._make_ready(lane, held.popleft(), first=False)
            else:
                del lane.held[aggregate]
        lane.one_by_one -= 1
        self._settle(lane, entry, outcome, receipt, refusal)
        if lane.waiting:
            self._admit(lane)

    def _settle(
        self, lane: LaneQueue, entry: Entry, outcome: Outcome, receipt: Receipt | None, refusal: Refusal | None
    ) -> None:
        entry.done = True
        self._in_process.discard(entry.envelope.event_id)
        if not lane.settled:
            self._with_settled.append(lane)
        lane.settled.append(Settled(entry, outcome, receipt, refusal))


_new = tuple.__new__
"""Past a NamedTuple's keyword constructor, where it runs once a message: 0.1 us instead of 0.4."""
