"""What is sent, tried again and settled: every publishing decision, and no I/O and no clock.

One `Dispatch` serves one publisher. Things happen to it (`submit`, `connected`, `acked`, `refused`,
`disconnected`, `tick`), each with the time it happened; it answers with flights to send
(`next_flight`) and with settled envelopes (`take_settled`). The pool turns these into threads and
sockets, the tests into thousands of simulated seconds.

The rules, all of them:

- envelopes of a lane are sent in order, in flights, lanes taking turns;
- where the broker takes a flight whole (it stores a prefix of it, in order), a lane has one such flight
  out on each route, and nothing else; what collects meanwhile goes on with it, or is the next;
- what was sent behind a refused envelope of a whole flight goes again, so the next goes no further ahead
  than this one came, and further with each that is stored;
- a single envelope, and whatever a route does not take, goes one by one, in its place in the order;
- if so asked, an aggregate's envelopes of one hand-off are a group: one entry, stored all or none;
- where the publisher needs it, one envelope of an aggregate is out one by one at a time: a retry inside a
  full window would re-order (measured: 8,139 inversions; with this rule 0);
- an attempt without an answer within the ack timeout, or cut off by a lost connection, is tried again
  with the same event id, one by one, after a jittered backoff;
- what the broker refuses for good is rejected, unless an earlier attempt was never answered: then it is
  unknown, as is what is neither stored nor rejected by its delivery timeout; it may be stored;
- a replicated route takes whole flights only of what cannot be in process there: see `doubt`.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import count
from random import Random
from typing import Any

from .answer import Receipt, Refusal, Verdict
from .doubt import Doubts
from .envelope import Envelope, Outcome
from .errors import EnvelopeError
from .flight import (
    INFINITY,
    Acked,
    Ended,
    Flight,
    LaneQueue,
    Leg,
    Policy,
    Route,
    Settled,
    Stored,
    WholeFlight,
)
from .parcel import Batch, Entry, Group, Parcel, by_aggregate, by_company, fitting

__all__ = ["Dispatch"]


class Dispatch:
    """The decisions for one publisher.

    :arg prepare: Makes of envelopes what the publisher sends, or an `EnvelopeError`, for each.
    :arg route: Which route takes envelopes of a topic in whole flights, if one does; may change its answer.
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
        self._route = route
        self._random = random
        self._connected = False
        self._now = 0.0
        self._lanes: dict[LaneQueue, None] = {}
        self._turns: deque[LaneQueue] = deque()
        """Lanes with something to send, the next first."""
        self._departing: deque[Flight | Leg] = deque()
        """Formed, to be sent now."""
        self._flights: dict[int, Flight] = {}
        """Out and awaited, oldest first; so are the whole ones."""
        self._whole: dict[int, WholeFlight] = {}
        self._silent: dict[int, Flight] = {}
        """Given up, oldest first, until all is settled: a late ack still says that an envelope is stored."""
        self._silent_whole: dict[int, WholeFlight] = {}
        """Likewise."""
        self._backing_off: list[tuple[float, int, LaneQueue, Entry]] = []
        self._with_settled: list[LaneQueue] = []
        self._next_expiry = INFINITY
        self._numbers = count(1)
        self._last = 0
        """Number of the last flight."""
        self._doubts = Doubts(route, policy.ack_timeout or 0.0)
        self.out = 0
        self.out_bytes = 0
        self.retries = 0
        self.late_acks = 0
        self.whole_flights = 0
        self.in_whole_flights = 0

    def __repr__(self) -> str:
        state = "connected" if self._connected else "disconnected"
        return f"<Dispatch {state}, {self.out} out, {len(self._backing_off)} backing off, {len(self._lanes)} lanes>"

    @property
    def in_doubt(self) -> int:
        """How many replicated routes take no whole flights for now."""
        return len(self._doubts)

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
        parcel = Parcel(batch, list(envelopes), self._prepare(envelopes))
        if EnvelopeError in set(map(type, parcel.wires)):
            self._reject_bad(lane, parcel)
        for part in by_aggregate(parcel) if self._policy.atomic else [parcel]:
            lane.waiting += by_company(part)
        self._admit(lane)

    def connected(self) -> None:
        """The publisher can send."""
        self._connected = True

    def disconnected(self, reason: str) -> None:
        """What is out may be lost: it goes back to the head of its lane, in order."""
        self._connected = False
        refusal = Refusal(Verdict.RETRY, reason)
        flights, self._flights = self._flights, {}
        whole, self._whole = self._whole, {}
        self._silent |= flights
        self._departing.clear()
        for flight in reversed(flights.values()):
            self._land(flight)
            for entry in reversed(self._unanswered(flight, refusal)):
                self.retries += 1
                self._make_ready(flight.lane, entry, first=True)
        for one in whole.values():
            self._land_whole(one)
            one.lane.whole -= 1
            one.lane.open = None
            for entry in self._unanswered(one, refusal):
                self.retries += 1
                self._go_one_by_one(one.lane, entry)
            self._silent_whole[one.number] = one
        for lane in self._lanes:
            self._admit(lane)

    def acked(self, number: int, index: int, receipt: Receipt) -> None:
        """The broker stored one envelope of a flight."""
        flight = self._flights.get(number)
        if flight is None:
            self._acked_late(number, index, receipt)
            return
        self._doubts.stored(flight, receipt)
        entry = self._answer(flight, index)
        if entry is not None:
            self._finish(flight.lane, entry, Outcome.STORED, receipt, None)

    def acked_all(self, acks: Iterable[tuple[int, int, Receipt]]) -> None:
        """The broker stored envelopes: flight, index and receipt of each.

        The same as `acked` for each, written out because this is the path of every message that goes one by one; an
        ack that names one message is none of a group.
        """
        flights, groups = self._flights, dict[LaneQueue, Acked]()
        for number, index, receipt in acks:
            flight = flights.get(number)
            entry = flight.at(index) if flight is not None else None
            if entry is not None and entry.count > 1:
                continue
            if flight is None or entry is None or entry.done or self._doubts.in_process:
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
            group = groups.get(lane)
            if group is None:
                group = groups[lane] = Acked([], [])
            group.entries.append(entry)
            group.receipts.append(receipt)
        for lane, group in groups.items():
            self._hand_out(lane, group)
            if lane.waiting:
                self._admit(lane)

    def stored_through(self, number: int, places: int, *, duplicate: bool | None = None) -> None:
        """The broker stored the envelopes at the first places of a whole flight."""
        flight = self._whole.get(number)
        if flight is None:
            self._stored_late(number, places)
            return
        lane = flight.lane
        if flight.refusal is not None and places > flight.refusal[0]:
            flight.refusal = None  # it was of another: a broker may name but the topic of what it denies
        self._store(flight, min(places, flight.places) - flight.stored, Receipt(flight.route.name, duplicate=duplicate))
        if lane.open is flight:
            if lane.waiting:
                self._admit(lane)
        elif not flight.out:
            self._end(flight)

    def ended(self, number: int, places: int, now: float) -> None:
        """A whole flight is over: its first places are stored; it ended at a refusal, or nobody knows why."""
        self.stored_through(number, places)
        flight = self._whole.get(number)
        if flight is None:
            return
        lane = flight.lane
        if flight.refusal is not None and flight.refusal[0] == flight.stored:
            self._land_whole(flight)
            (entry,) = flight.parcels[0].split(1).entries()
            lane.waiting.extendleft(parcel for parcel in reversed(flight.parcels) if parcel)
            lane.reach = max(LEAST_REACH, flight.stored)
            for parcel in lane.waiting:
                self._doubts.not_in_process(parcel.envelopes)
            lane.one_by_one += 1
            if not self._held_back(lane, entry):
                self._refuse(lane, entry, flight.refusal[1], now)
        else:
            self._lose(flight, Refusal(Verdict.RETRY, "its flight ended before it"), now)
        self._end(flight)

    def returned(self, number: int, places: int, *, duplicate: bool | None = None) -> None:
        """A whole flight is over: its first places are stored, the others surely not: they go one by one."""
        self.stored_through(number, places, duplicate=duplicate)
        flight = self._whole.get(number)
        if flight is not None:
            self._land_whole(flight)
            for parcel in flight.parcels:
                for entry in parcel.entries():
                    self._go_one_by_one(flight.lane, entry)
            self._end(flight)

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> None:
        """The broker did not store one envelope of a flight; a whole one, nothing from there on, and will say so."""
        whole = self._whole.get(number)
        if whole is not None:
            if index >= 0 and (whole.refusal is None or index < whole.refusal[0]):
                whole.refusal = index, refusal
                if index == 0:
                    self.ended(number, 0, now)  # it never began
                elif whole.lane.open is whole:
                    self._send_end(whole)  # or the broker may not know that something is missing
            return
        flight = self._flights.get(number)
        if flight is None:
            self._refused_late(number, index)
            return
        entry = self._answer(flight, index)
        if entry is not None:
            self._refuse(flight.lane, entry, refusal, now)

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
        for number in [
            number for number, one in self._silent_whole.items() if all(entry.done for entry in one.entries)
        ]:
            del self._silent_whole[number]

    def abandon(self, reason: str) -> None:
        """Settle everything as unknown: the publisher is closed or beyond repair."""
        self._connected = False
        self._abandon(self._lanes.keys(), Refusal(Verdict.GIVE_UP, reason))

    # What it answers

    def next_flight(self, now: float) -> Flight | Leg | None:
        """The next envelopes to send, or None while there are none, no connection or no room."""
        self._now = now
        while self._connected and not self._departing:
            if not self._give_turn(now):
                self._end_low_flights()
                break
        return self._departing.popleft() if self._departing else None

    def take_settled(self) -> list[tuple[LaneQueue, list[Ended]]]:
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
        for flight in self._whole.values():
            due = min(due, flight.deadline)
        if self._backing_off:
            due = min(due, self._backing_off[0][0])
        return due

    def envelopes(self, number: int, index: int) -> list[Envelope]:
        """What is out at that place of a flight, each place answered by itself: several if they are a group."""
        flight = self._flights.get(number)
        entry = flight.at(index) if flight is not None else None
        return entry.envelopes if entry is not None else []

    def out_on(self, topic: str) -> list[tuple[int, int]]:
        """Flight and index of all that is out on a topic."""
        found = [
            (flight.number, index)
            for flight in self._flights.values()
            for index, entry in enumerate(flight.entries)
            if entry is not None and any(envelope.topic == topic for envelope in entry.envelopes)
        ]
        for whole in self._whole.values():
            places = enumerate(whole.topics(), start=whole.stored)
            found += [(whole.number, index) for index, each in places if each == topic]
        return found

    # How it goes

    def _admit(self, lane: LaneQueue) -> None:
        """Decide for what waits, in order, how it goes, as far as that can be said now."""
        policy, waiting = self._policy, lane.waiting
        while waiting and not lane.whole and lane.one_by_one < policy.window:
            # Those that are out will be settled soon, and a flight carries more; who backs off may take long.
            if self._may_go_whole(waiting[0]) and not (lane.one_by_one and lane.pausing):
                break
            for entry in waiting.popleft().entries():
                self._go_one_by_one(lane, entry)
        if lane.ready or self._may_send_whole(lane):
            self._await_turn(lane)

    def _may_send_whole(self, lane: LaneQueue) -> bool:
        """Whether what waits in a lane may go in another whole flight, or in the one that is open."""
        if not lane.waiting or lane.one_by_one:
            return False
        return not lane.whole or (lane.open is not None and lane.open.out < lane.reach)

    def _give_turn(self, now: float) -> bool:
        """Let the next lane send; False when there is none, or no room."""
        policy, room = self._policy, self._policy.window - self.out
        if not self._turns or room <= 0 or self.out_bytes >= policy.window_bytes:
            return False
        lane = self._turns[0]
        if not lane.ready and self.out and room < policy.flow:
            return False  # when there is room for what is worth a leg
        self._turns.popleft()
        if lane.ready:
            self._send_ready(lane, now)
        elif self._may_send_whole(lane):
            self._send_whole(lane, now)
        lane.in_turn = False
        if lane.ready:
            self._await_turn(lane)
        else:
            self._admit(lane)
        return True

    def _end_low_flights(self) -> None:
        """End the flights that cannot go on now and of which the broker has nothing to say before their end."""
        for flight in list(self._whole.values()):
            if flight.lane.open is flight and flight.out <= self._policy.flow:
                self._send_end(flight)

    def _send_end(self, flight: WholeFlight) -> None:
        flight.lane.open = None
        self._departing.append(Leg(flight, [], flight.places, last=True))
        if not flight.out:
            self._end(flight)

    def _may_go_whole(self, parcel: Parcel) -> bool:
        """Whether anything of a parcel may."""
        if parcel.alone:
            return False
        routes = map(self._route, {envelope[0] for envelope in parcel.envelopes})
        return any(route is not None and not self._is_in_doubt(route) for route in routes)

    def _is_in_doubt(self, route: Route) -> bool:
        return self._doubts.about(route, self._last, self._now)

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
        messages, size = 0, self.out_bytes
        while ready and messages < limit and size < policy.window_bytes:
            entry = ready.popleft()
            if entry.done:
                continue
            if entry.batch.expires <= now:
                self._give_up(lane, entry)
                continue
            entry.attempts += 1
            messages += entry.count
            size += entry.size
            entries.append(entry)
            self._doubts.sent(entry)
        if entries:
            self.out += messages
            self.out_bytes = size
            self._depart(lane, entries, now)

    def _send_whole(self, lane: LaneQueue, now: float) -> None:
        """Let the next of what waits depart: with the lane's open flight, in another, or in one for each route."""
        parcels, route = self._take(lane, now)
        if route is not None:
            self._depart_whole(lane, parcels, route, now)
        elif lane.open is not None:
            self._send_end(lane.open)  # nothing goes with it: what waits is for another, or its time was over
        elif lane.waiting:
            for each, parcel in self._sort(lane).items():
                self._depart_whole(lane, [parcel], each, now, last=True)

    def _take(self, lane: LaneQueue, now: float) -> tuple[list[Parcel], Route | None]:
        """Take from what waits as much as goes on one route and has room; nothing if the first does not."""
        policy, waiting, parcels = self._policy, lane.waiting, list[Parcel]()
        route, out = (lane.open.route, lane.open.out) if lane.open is not None else (None, 0)
        room = int(min(policy.flight, policy.window - self.out, lane.reach - out))
        room_bytes = policy.window_bytes - self.out_bytes
        while waiting and room > 0 and room_bytes > 0:
            if waiting[0].batch.expires <= now:
                self._give_up_waiting(lane, waiting.popleft())
                continue
            if waiting[0].alone:
                break
            number = fitting(waiting[0], room, room_bytes)
            if number < len(waiting[0]):
                waiting.appendleft(waiting[0].split(number))
            its_route = self._route_of_all(waiting[0])
            if its_route is None or its_route != (route or its_route):
                break
            route, parcel = its_route, waiting.popleft()
            if route.replicated:
                self._doubts.in_process.update([envelope[2] for envelope in parcel.envelopes])
            parcels.append(parcel)
            room -= len(parcel)
            room_bytes -= parcel.size
        return parcels, route if parcels else None

    def _route_of_all(self, parcel: Parcel) -> Route | None:
        """The one route that takes all of a parcel as it is, if there is one."""
        routes = set(map(self._route, {envelope[0] for envelope in parcel.envelopes}))
        route = routes.pop()
        if routes or route is None or self._is_in_doubt(route):
            return None
        if route.replicated:
            ids = [envelope[2] for envelope in parcel.envelopes]
            if len(set(ids)) < len(ids) or not self._doubts.in_process.isdisjoint(ids):
                return None
        return route

    def _sort(self, lane: LaneQueue) -> dict[Route, Parcel]:
        """Tell the envelopes that wait first apart by route, as far as they need not wait for each other.

        An aggregate has its order over all routes, so it ends where one would be on two of them, and where an id
        may be in process already. What no route takes goes one by one meanwhile.
        """
        parcel = lane.waiting.popleft()
        if parcel.group:
            self._go_one_by_one(lane, *parcel.entries())
            return {}
        sorted_: dict[Route | None, Parcel] = {}
        homes: dict[str, Route | None] = {}
        taken = 0
        for envelope, wire in zip(parcel.envelopes, parcel.wires, strict=True):
            route = None if parcel.alone else self._route(envelope.topic)
            if route is not None and self._is_in_doubt(route):
                route = None
            if route is not None and route.replicated and envelope.event_id in self._doubts.in_process:
                if taken:
                    break
                route = None
            if envelope.aggregate_id is not None and homes.setdefault(envelope.aggregate_id, route) != route:
                break
            if route is not None and route.replicated:
                self._doubts.in_process.add(envelope.event_id)
            if route not in sorted_:
                sorted_[route] = Parcel(parcel.batch, [], [], attempts=parcel.attempts)
            sorted_[route].envelopes.append(envelope)
            sorted_[route].wires.append(wire)
            taken += 1
        parcel.split(taken)
        if parcel:
            lane.waiting.appendleft(parcel)
        alone = sorted_.pop(None, None)
        for entry in alone.entries() if alone is not None else ():
            self._go_one_by_one(lane, entry)
        return {route: part for route, part in sorted_.items() if route is not None}

    def _depart(self, lane: LaneQueue, entries: list[Entry | None], now: float) -> None:
        self._last = next(self._numbers)
        flight = Flight(self._last, lane, entries, now, self._deadline(entries, now))
        self._flights[flight.number] = flight
        self._departing.append(flight)

    def _depart_whole(
        self, lane: LaneQueue, parcels: list[Parcel], route: Route, now: float, *, last: bool = False
    ) -> None:
        """Let parcels depart with the lane's open flight, or in another."""
        flight = lane.open
        if flight is None:
            if len(parcels) == 1 and len(parcels[0]) == 1:  # which costs less with an ack of its own
                self._go_one_by_one(lane, *parcels[0].entries())
                return
            self._last = next(self._numbers)
            flight = WholeFlight(self._last, lane, route, parcels[0].envelopes[0].topic)
            self._whole[flight.number] = flight
            lane.whole += 1
            self.whole_flights += 1
        first = flight.places
        for parcel in parcels:
            parcel.attempts += 1
            self.out_bytes += parcel.size
        flight.add(parcels, now + (self._policy.ack_timeout or INFINITY))
        self.out += flight.places - first
        self.in_whole_flights += flight.places - first
        goes_on = lane.waiting and flight.out < lane.reach
        last = last or (not goes_on and flight.out <= self._policy.flow)
        lane.open = None if last else flight
        self._departing.append(Leg(flight, parcels, first, last))

    # How it ends

    def _unanswered(self, flight: Flight | WholeFlight, refusal: Refusal) -> list[Entry]:
        """What of a flight gets no answer, in order: each may be stored, and their routes are in doubt."""
        if isinstance(flight, Flight):
            entries = silent = flight.unanswered()
        else:
            entries = silent = flight.entries = [entry for parcel in flight.parcels for entry in parcel.entries()]
            if flight.refusal is not None:  # from there on it took none
                place, its = flight.refusal
                silent = entries[: place - flight.stored]
                entries[place - flight.stored].last = its
        for entry in silent:
            # The broker's own word on an earlier attempt tells more than this silence.
            entry.last = entry.last or refusal
            entry.in_doubt += 1
        self._doubts.unanswered({entry.envelope.topic for entry in silent}, self._last)
        return entries

    def _answer(self, flight: Flight, index: int) -> Entry | None:
        """Take an entry out of its flight; None when it was answered or settled before."""
        entry = flight.at(index)
        if entry is None:
            self.late_acks += 1
            return None
        flight.entries[index] = None
        flight.open -= 1
        if not flight.open:
            del self._flights[flight.number]
        self.out -= entry.count
        self.out_bytes -= entry.size
        if entry.done:
            self.late_acks += 1
            return None
        return entry

    def _acked_late(self, number: int, index: int, receipt: Receipt) -> None:
        self.late_acks += 1
        flight = self._silent.get(number)
        entry = flight.at(index) if flight is not None else None
        if flight is not None and entry is not None and not entry.done and flight.lane in self._lanes:
            self._finish(flight.lane, entry, Outcome.STORED, receipt, None)

    def _stored_late(self, number: int, places: int) -> None:
        flight = self._silent_whole.get(number)
        if flight is None or flight.lane not in self._lanes:
            return
        receipt = Receipt(flight.route.name)
        for entry in flight.entries[: max(0, places - flight.stored)]:
            self.late_acks += 1
            if not entry.done:
                self._finish(flight.lane, entry, Outcome.STORED, receipt, None)

    def _refused_late(self, number: int, index: int) -> None:
        """A later attempt decides, but this one is in doubt no more."""
        flight = self._silent.get(number)
        entry = flight.at(index) if flight is not None else None
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

    @property
    def _silence(self) -> Refusal:
        timeout = self._policy.ack_timeout
        words = f"no ack within {timeout:g} s" if timeout is not None else "no word from the broker's library"
        return Refusal(Verdict.RETRY, words)

    def _deadline(self, entries: list[Entry | None], now: float) -> float:
        """Until when a flight's answers are awaited; a library that gives up by itself is not trusted for ever."""
        if self._policy.ack_timeout is not None:
            return now + self._policy.ack_timeout
        return max((entry.batch.expires for entry in entries if entry is not None), default=now) + OVERDUE

    def _land(self, flight: Flight) -> None:
        """A flight is not awaited any more."""
        for entry in flight.entries:
            if entry is not None:
                self.out -= entry.count
                self.out_bytes -= entry.size

    def _land_whole(self, flight: WholeFlight) -> None:
        self.out -= flight.out
        self.out_bytes -= sum(parcel.size for parcel in flight.parcels)

    def _store(self, flight: WholeFlight, count: int, receipt: Receipt) -> None:
        """The next so many places of a whole flight are stored."""
        lane = flight.lane
        while count > 0:
            parcel = flight.parcels[0].split(count) if len(flight.parcels[0]) > count else flight.parcels.pop(0)
            count -= len(parcel)
            flight.stored += len(parcel)
            lane.reach += len(parcel)
            self.out -= len(parcel)
            self.out_bytes -= parcel.size
            self._doubts.not_in_process(parcel.envelopes)
            self._hand_out(lane, Stored(parcel, receipt))

    def _end(self, flight: WholeFlight) -> None:
        """A whole flight is over, and what it carried taken care of."""
        del self._whole[flight.number]
        flight.lane.whole -= 1
        if flight.lane.open is flight:
            flight.lane.open = None
        self._admit(flight.lane)

    def _lose(self, flight: Flight | WholeFlight, refusal: Refusal, now: float) -> None:
        """A flight is not awaited any more: what of it is unanswered is tried again, one by one."""
        lane = flight.lane
        if isinstance(flight, Flight):
            self._land(flight)
            self._silent[flight.number] = flight
            for entry in self._unanswered(flight, refusal):
                self._back_off(lane, entry, now)
            return
        self._land_whole(flight)
        self._silent_whole[flight.number] = flight
        for entry in self._unanswered(flight, refusal):
            lane.one_by_one += 1
            if not self._held_back(lane, entry):
                self._back_off(lane, entry, now)

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
        """Flights of the other kind carry ack deadlines in the order of their numbers, so the oldest decides."""
        silence = self._silence
        while self._flights and next(iter(self._flights.values())).deadline <= now:
            self._lose(self._flights.pop(next(iter(self._flights))), silence, now)
        if self._policy.ack_timeout is None:  # where they are those of the deliveries, and in no order
            for number in [number for number, flight in self._flights.items() if flight.deadline <= now]:
                self._lose(self._flights.pop(number), silence, now)
        for flight in [flight for flight in self._whole.values() if flight.deadline <= now]:
            self._lose(flight, silence, now)
            self._end(flight)

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
        left = min([left, *(parcel.batch.expires for _, parcel in self._unsettled_parcels(self._lanes.keys()))])
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
        return ((lane, entry) for lane, entry in listed if lane in lanes and not entry.done)

    def _unsettled_parcels(self, lanes: Set[LaneQueue]) -> list[tuple[LaneQueue, Parcel]]:
        listed = [(flight.lane, parcel) for flight in self._whole.values() for parcel in flight.parcels]
        return listed + [(lane, parcel) for lane in lanes for parcel in lane.waiting]

    def _abandon(self, lanes: Set[LaneQueue], refusal: Refusal) -> None:
        left = list(self._unsettled(lanes))
        left += [
            (lane, e) for lane, parcel in self._unsettled_parcels(lanes) if lane in lanes for e in parcel.entries()
        ]
        for lane, entry in left:
            self._settle(lane, entry, Outcome.UNKNOWN, None, refusal)
        for lane in lanes:
            lane.waiting.clear()
            lane.ready.clear()
            lane.held.clear()
            lane.one_by_one = lane.whole = 0
            lane.open = None
        topics: set[str] = set()
        for flight in [flight for flight in self._flights.values() if flight.lane in lanes]:
            topics.update(entry.envelope.topic for entry in flight.entries if entry is not None)
            self._land(self._flights.pop(flight.number))
        for whole in [whole for whole in self._whole.values() if whole.lane in lanes]:
            topics.update(whole.topics())
            self._land_whole(self._whole.pop(whole.number))
        self._doubts.unanswered(topics, self._last)
        self._departing = deque(flight for flight in self._departing if flight.lane not in lanes)
        self._only_live()

    def _give_up(self, lane: LaneQueue, entry: Entry) -> None:
        self._finish(lane, entry, Outcome.UNKNOWN, None, self._not_settled_in_time(entry))

    def _give_up_waiting(self, lane: LaneQueue, parcel: Parcel) -> None:
        for entry in parcel.entries():
            self._settle(lane, entry, Outcome.UNKNOWN, None, self._not_settled_in_time(entry))

    def _reject_bad(self, lane: LaneQueue, parcel: Parcel) -> None:
        """Settle what can never be stored as it is, and leave the rest in the parcel."""
        for entry in parcel.entries():
            if type(entry.wire) is EnvelopeError:
                refusal = Refusal(Verdict.REJECT, str(entry.wire))
                self._settle(lane, entry, Outcome.REJECTED, None, refusal)
        pairs = [(e, w) for e, w in zip(parcel.envelopes, parcel.wires, strict=True) if type(w) is not EnvelopeError]
        parcel.envelopes, parcel.wires = [e for e, _ in pairs], [w for _, w in pairs]

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
        self._doubts.not_in_process(entry.envelopes)
        if not isinstance(entry, Group):
            self._hand_out(lane, Settled(entry, outcome, receipt, refusal))
            return
        for behind, member in zip(reversed(range(entry.count)), entry.members(), strict=True):
            own = receipt and receipt.before(behind)
            self._hand_out(lane, Settled(member, outcome, own, refusal))

    def _hand_out(self, lane: LaneQueue, ended: Ended) -> None:
        if not lane.settled:
            self._with_settled.append(lane)
        lane.settled.append(ended)


LEAST_REACH = 16
"""Messages of a whole flight that are out, at most, after one of which the first was refused."""
OVERDUE = 0.5
"""Seconds past its delivery timeout until a message of which the broker's library says nothing is given up."""
