"""What goes in whole flights: a route stores a prefix of each, in order; what is behind that goes
again.

A lane has one whole flight out on each route, and nothing else of the same aggregates; what
collects meanwhile goes on with it, or is the next. It ends when there is no more for it and the
broker would say nothing before its end. Where it was not answered, and where what waits cannot go
in one, envelopes go one by one.
"""

from collections.abc import Callable, Set

from ..publishing.answers import Receipt, Refusal, Verdict
from .flight import INFINITY, LaneQueue, Leg, Route, Stored, WholeFlight
from .segment import Entry, Parcel, fitting
from .singles import OneByOne
from .window import Traffic

__all__ = ["Whole"]

LEAST_REACH = 16
"""Messages of a whole flight that are out, at most, after one of which the first was refused."""


class Whole:
    """The whole flights of one publisher.

    :arg route: Which route takes envelopes of a topic, if one does; may change its answer.
    """

    def __init__(
        self, traffic: Traffic, one_by_one: OneByOne, route: Callable[[str], Route | None]
    ) -> None:
        self._traffic = traffic
        self._one_by_one = one_by_one
        self._route = route
        self._flights: dict[int, WholeFlight] = {}
        """Out and awaited, oldest first."""
        self._silent: dict[int, WholeFlight] = {}
        """Given up, oldest first, until all is settled: a late word still says what is stored."""

    # How envelopes go

    def may_take(self, parcel: Parcel) -> bool:
        """Whether anything of a parcel may go in a whole flight."""
        if parcel.alone:
            return False
        routes = map(self._route, {envelope[0] for envelope in parcel.envelopes})
        return any(route is not None and not self._is_in_doubt(route) for route in routes)

    def may_send(self, lane: LaneQueue) -> bool:
        """Whether what waits in a lane may go in another whole flight, or in the one that is open."""
        if not lane.waiting or lane.one_by_one:
            return False
        return not lane.whole or (lane.open is not None and lane.open.out < lane.reach)

    def send(self, lane: LaneQueue, now: float) -> None:
        """Let the next of what waits depart: with the lane's open flight, in another, or in one for
        each route.
        """
        parcels, route = self._take(lane, now)
        if route is not None:
            self._depart(lane, parcels, route, now)
        elif lane.open is not None:
            self._send_end(
                lane.open
            )  # nothing goes with it: what waits is for another, or its time was over
        elif lane.waiting:
            for each, parcel in self._sort(lane).items():
                self._depart(lane, [parcel], each, now, last=True)

    def end_low(self) -> None:
        """End the flights that cannot go on now and of which the broker has nothing to say before
        their end.
        """
        for flight in list(self._flights.values()):
            if flight.lane.open is flight and flight.out <= self._traffic.policy.flow:
                self._send_end(flight)

    # What the broker says

    def stored_through(self, number: int, places: int, *, duplicate: bool | None = None) -> None:
        """The broker stored the envelopes at the first places of a flight."""
        flight = self._flights.get(number)
        if flight is None:
            self._stored_late(number, places)
            return
        if flight.refusal is not None and places > flight.refusal[0]:
            flight.refusal = (
                None  # it was of another: a broker may name but the topic of what it denies
            )
        self._store(
            flight,
            min(places, flight.places) - flight.stored,
            Receipt(flight.route.name, duplicate=duplicate),
        )
        self._traffic.changed[flight.lane] = None
        if flight.lane.open is not flight and not flight.out:
            self._end(flight)

    def ended(self, number: int, places: int, now: float) -> None:
        """A flight is over: its first places are stored; it ended at a refusal, or nobody knows
        why.
        """
        self.stored_through(number, places)
        flight = self._flights.get(number)
        if flight is None:
            return
        if flight.refusal is None or flight.refusal[0] != flight.stored:
            self._retry_later(flight, Refusal(Verdict.RETRY, "its flight ended before it"), now)
            return
        lane = flight.lane
        self._end(flight)
        (entry,) = flight.parcels[0].split(1).entries()
        lane.waiting.extendleft(parcel for parcel in reversed(flight.parcels) if parcel)
        lane.reach = max(LEAST_REACH, flight.stored)
        for parcel in lane.waiting:
            self._traffic.doubts.not_in_process(parcel.envelopes)
        if self._one_by_one.enter(lane, entry):
            self._one_by_one.refuse(lane, entry, flight.refusal[1], now)

    def returned(self, number: int, places: int, *, duplicate: bool | None = None) -> None:
        """A flight is over: its first places are stored, the others surely not: they go one by one."""
        self.stored_through(number, places, duplicate=duplicate)
        flight = self._flights.get(number)
        if flight is not None:
            self._end(flight)
            for parcel in flight.parcels:
                for entry in parcel.entries():
                    self._one_by_one.go(flight.lane, entry)

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> bool:
        """The broker stores nothing of a flight from a place on, and will say so; False when it is
        no whole flight.
        """
        flight = self._flights.get(number)
        if flight is None:
            return False
        if (
            index >= flight.places
        ):  # the broker does not take its end: what it has of it nobody knows
            self._retry_later(flight, refusal, now)
        elif index >= flight.stored and (flight.refusal is None or index < flight.refusal[0]):
            flight.refusal = index, refusal
            if index == 0:
                self.ended(number, 0, now)  # it never began
            elif flight.lane.open is flight:
                self._send_end(flight)  # or the broker may not know that something is missing
        return True

    def disconnected(self, refusal: Refusal) -> None:
        """What is out may be lost: it goes again, one by one."""
        for flight in list(self._flights.values()):
            for entry in self._lose(flight, refusal):
                self._traffic.retries += 1
                self._one_by_one.go(flight.lane, entry)

    # What time says

    def next_tick(self) -> float:
        """When `tick` has something to do."""
        return min((flight.deadline for flight in self._flights.values()), default=INFINITY)

    def tick(self, now: float) -> None:
        """End the flights that fell silent."""
        for flight in [flight for flight in self._flights.values() if flight.deadline <= now]:
            self._retry_later(flight, self._traffic.why_silent, now)
        for number in [
            number
            for number, one in self._silent.items()
            if all(entry.done for entry in one.entries)
        ]:
            del self._silent[number]

    # What is in here

    def unsettled(self) -> list[Parcel]:
        """What is out."""
        return [parcel for flight in self._flights.values() for parcel in flight.parcels]

    def out_on(self, topic: str) -> list[tuple[int, int]]:
        """Flight and index of all that is out on a topic."""
        return [
            (flight.number, index)
            for flight in self._flights.values()
            for index, each in enumerate(flight.topics(), start=flight.stored)
            if each == topic
        ]

    def abandon(self, lanes: Set[LaneQueue], refusal: Refusal) -> None:
        """Settle all of these lanes as unknown, and forget it."""
        traffic = self._traffic
        for flight in [flight for flight in self._flights.values() if flight.lane in lanes]:
            traffic.doubts.unanswered(set(flight.topics()), traffic.last)
            self._end(flight)
            traffic.abandon(flight.lane, flight.parcels, refusal)

    def _is_in_doubt(self, route: Route) -> bool:
        return self._traffic.doubts.about(route, self._traffic.last, self._traffic.now)

    def _take(self, lane: LaneQueue, now: float) -> tuple[list[Parcel], Route | None]:
        """Take from what waits as much as goes on one route and has room; nothing if the first does
        not.
        """
        traffic, policy, waiting, parcels = (
            self._traffic,
            self._traffic.policy,
            lane.waiting,
            list[Parcel](),
        )
        route, out = (lane.open.route, lane.open.out) if lane.open is not None else (None, 0)
        room = int(min(policy.flight, policy.window - traffic.out, lane.reach - out))
        room_bytes = policy.window_bytes - traffic.out_bytes
        while waiting and room > 0 and room_bytes > 0:
            if waiting[0].batch.expires <= now:
                traffic.give_up(lane, waiting.popleft())
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
                traffic.doubts.in_process.update([envelope[2] for envelope in parcel.envelopes])
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
            if len(set(ids)) < len(ids) or not self._traffic.doubts.in_process.isdisjoint(ids):
                return None
        return route

    def _sort(self, lane: LaneQueue) -> dict[Route, Parcel]:
        """Tell the envelopes that wait first apart by route, as far as they need not wait for each
        other.

        An aggregate has its order over all routes, so it ends where one would be on two of them,
        and where an id may be in process already. What no route takes goes one by one meanwhile.
        """
        in_process = self._traffic.doubts.in_process
        parcel = lane.waiting.popleft()
        if parcel.group:
            self._one_by_one.go(lane, *parcel.entries())
            return {}
        sorted_: dict[Route | None, Parcel] = {}
        homes: dict[str, Route | None] = {}
        taken = 0
        for envelope, wire in zip(parcel.envelopes, parcel.wires, strict=True):
            route = None if parcel.alone else self._route(envelope.topic)
            if route is not None and self._is_in_doubt(route):
                route = None
            if route is not None and route.replicated and envelope.event_id in in_process:
                if taken:
                    break
                route = None
            if (
                envelope.aggregate_id is not None
                and homes.setdefault(envelope.aggregate_id, route) != route
            ):
                break
            if route is not None and route.replicated:
                in_process.add(envelope.event_id)
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
            self._one_by_one.go(lane, entry)
        return {route: part for route, part in sorted_.items() if route is not None}

    def _depart(
        self,
        lane: LaneQueue,
        parcels: list[Parcel],
        route: Route,
        now: float,
        *,
        last: bool = False,
    ) -> None:
        """Let parcels depart with the lane's open flight, or in another."""
        traffic, flight = self._traffic, lane.open
        if flight is None:
            if (
                len(parcels) == 1 and len(parcels[0]) == 1
            ):  # which costs less with an ack of its own
                self._one_by_one.go(lane, *parcels[0].entries())
                return
            flight = WholeFlight(traffic.next_number(), lane, route, parcels[0].envelopes[0].topic)
            self._flights[flight.number] = flight
            lane.whole += 1
            traffic.whole_flights += 1
        first = flight.places
        for parcel in parcels:
            parcel.attempts += 1
            traffic.out_bytes += parcel.size
        flight.add(parcels, now + (traffic.policy.ack_timeout or INFINITY))
        traffic.out += flight.places - first
        traffic.in_whole_flights += flight.places - first
        goes_on = lane.waiting and flight.out < lane.reach
        last = last or (not goes_on and flight.out <= traffic.policy.flow)
        lane.open = None if last else flight
        traffic.departing.append(Leg(flight, parcels, first, last))

    def _send_end(self, flight: WholeFlight) -> None:
        flight.lane.open = None
        self._traffic.departing.append(Leg(flight, [], flight.places, last=True))
        if not flight.out:
            self._end(flight)

    def _store(self, flight: WholeFlight, count: int, receipt: Receipt) -> None:
        """The next so many places of a flight are stored."""
        traffic, lane = self._traffic, flight.lane
        while count > 0:
            parcel = (
                flight.parcels[0].split(count)
                if len(flight.parcels[0]) > count
                else flight.parcels.pop(0)
            )
            count -= len(parcel)
            flight.stored += len(parcel)
            lane.reach += len(parcel)
            traffic.land(len(parcel), parcel.size)
            traffic.doubts.not_in_process(parcel.envelopes)
            traffic.hand_out(lane, Stored(parcel, receipt))

    def _end(self, flight: WholeFlight) -> None:
        """A flight is not awaited any more; what is not known to be stored of it is out no more."""
        lane = flight.lane
        self._traffic.land(flight.out, sum(parcel.size for parcel in flight.parcels))
        del self._flights[flight.number]
        lane.whole -= 1
        if lane.open is flight:
            lane.open = None
        self._traffic.changed[lane] = None

    def _lose(self, flight: WholeFlight, refusal: Refusal) -> list[Entry]:
        """A flight gets no answer any more; returns what of it is not settled, in order."""
        self._end(flight)
        self._silent[flight.number] = flight
        silent = flight.entries = [entry for parcel in flight.parcels for entry in parcel.entries()]
        if (
            flight.refusal is not None
        ):  # it took none from there on, and may have stored what comes before
            place, its = flight.refusal
            silent = flight.entries[: place - flight.stored]
            flight.entries[place - flight.stored].last = its
        self._traffic.leave_unanswered(silent, refusal)
        return flight.entries

    def _retry_later(self, flight: WholeFlight, refusal: Refusal, now: float) -> None:
        """A flight is given up: what of it is not settled is tried again, one by one, after a
        pause.
        """
        for entry in self._lose(flight, refusal):
            if self._one_by_one.enter(flight.lane, entry):
                self._one_by_one.back_off(flight.lane, entry, now)

    def _stored_late(self, number: int, places: int) -> None:
        flight = self._silent.get(number)
        if flight is not None:
            receipt = Receipt(flight.route.name)
            for entry in flight.entries[: max(0, places - flight.stored)]:
                self._one_by_one.acked_late(flight.lane, entry, receipt)
