"""What goes one by one: each envelope, or group, is sent, answered, tried again and settled by
itself.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Set
from itertools import count
from random import Random

from ..envelope import Envelope, Outcome
from ..publishing.answers import Receipt, Refusal, Verdict
from .flight import INFINITY, Acked, Flight, LaneQueue
from .segment import Entry
from .window import Traffic

__all__ = ["OneByOne"]

OVERDUE = 0.5
"""Seconds past its delivery timeout until a message of which the broker's library says nothing is
given up.
"""


class OneByOne:
    """An entry in here is ready, held behind another of its aggregate, out, or backing off."""

    def __init__(self, traffic: Traffic, random: Random) -> None:
        self._traffic = traffic
        self._random = random
        self._flights: dict[int, Flight] = {}
        """Out and awaited, oldest first."""
        self._silent: dict[int, Flight] = {}
        """Given up, oldest first, until all is settled: a late ack still says that an envelope is
        stored.
        """
        self._backing_off: list[tuple[float, int, LaneQueue, Entry]] = []
        self._ties = count()
        """Who backs off until the same moment does so in the order of coming."""

    @property
    def backing_off(self) -> int:
        """How many wait until they are tried again."""
        return len(self._backing_off)

    # How an entry goes

    def go(self, lane: LaneQueue, entry: Entry) -> None:
        """Take an entry over, to be sent in its turn."""
        if self.enter(lane, entry):
            self._make_ready(lane, entry, first=False)

    def enter(self, lane: LaneQueue, entry: Entry) -> bool:
        """Take an entry over; False when it has to wait behind another of its aggregate."""
        lane.one_by_one += 1
        aggregate = entry.envelope.aggregate_id
        if aggregate is None or not self._traffic.policy.one_per_aggregate:
            return True
        if aggregate not in lane.held:
            lane.held[aggregate] = None
            return True
        held = lane.held[aggregate]
        if held is None:
            held = lane.held[aggregate] = deque()
        held.append(entry)
        return False

    def send(self, lane: LaneQueue, now: float) -> None:
        """Let what is ready depart, as much as has room."""
        traffic, policy, ready = self._traffic, self._traffic.policy, lane.ready
        limit = min(policy.flight, policy.window - traffic.out)
        entries: list[Entry | None] = []
        messages, size = 0, traffic.out_bytes
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
            traffic.doubts.sent(entry)
        if entries:
            traffic.out += messages
            traffic.out_bytes = size
            flight = Flight(traffic.next_number(), lane, entries, now, self._deadline(entries, now))
            self._flights[flight.number] = flight
            traffic.departing.append(flight)

    # What the broker says

    def acked(self, number: int, index: int, receipt: Receipt) -> None:
        """The broker stored the entry at a place of a flight."""
        flight = self._flights.get(number)
        if flight is None:
            silent = self._silent.get(number)
            entry = silent.at(index) if silent is not None else None
            if silent is not None and entry is not None:
                self.acked_late(silent.lane, entry, receipt)
            return
        self._traffic.doubts.stored(flight, receipt)
        entry = self._answer(flight, index)
        if entry is not None:
            self._finish(flight.lane, entry, Outcome.STORED, receipt, None)

    def acked_all(self, acks: Iterable[tuple[int, int, Receipt]]) -> None:
        """The same as `acked` for each, written out because this is the path of every message that
        goes one by one.

        An ack that names one message is none of a group.
        """
        traffic, flights, groups = self._traffic, self._flights, dict[LaneQueue, Acked]()
        for number, index, receipt in acks:
            flight = flights.get(number)
            entry = flight.at(index) if flight is not None else None
            if entry is not None and entry.count > 1:
                continue
            if flight is None or entry is None or entry.done or traffic.doubts.in_process:
                self.acked(number, index, receipt)
                continue
            entry.done = True
            flight.entries[index] = None
            flight.open -= 1
            if not flight.open:
                del flights[number]
            traffic.out -= 1
            traffic.out_bytes -= entry.size
            lane, aggregate = flight.lane, entry.envelope.aggregate_id
            lane.one_by_one -= 1
            if aggregate in lane.held:
                self._let_follow(lane, aggregate)
            group = groups.get(lane)
            if group is None:
                group = groups[lane] = Acked([], [])
            group.entries.append(entry)
            group.receipts.append(receipt)
        for lane, group in groups.items():
            traffic.hand_out(lane, group)
            traffic.changed[lane] = None

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> None:
        """The broker did not store the entry at a place of a flight."""
        flight = self._flights.get(number)
        if flight is None:
            self._refused_late(number, index)
            return
        entry = self._answer(flight, index)
        if entry is not None:
            self.refuse(flight.lane, entry, refusal, now)

    def refuse(self, lane: LaneQueue, entry: Entry, refusal: Refusal, now: float) -> None:
        """An attempt was refused: what becomes of its entry."""
        entry.last = refusal
        if refusal.verdict is Verdict.RETRY:
            self.back_off(lane, entry, now)
        elif refusal.verdict is Verdict.GIVE_UP:
            self._finish(lane, entry, Outcome.UNKNOWN, None, refusal)
        elif entry.in_doubt:
            reason = (
                f"{refusal.reason}; but an earlier attempt was never answered, so it may be stored"
            )
            self._finish(lane, entry, Outcome.UNKNOWN, None, refusal._replace(reason=reason))
        else:
            self._finish(lane, entry, Outcome.REJECTED, None, refusal)

    def back_off(self, lane: LaneQueue, entry: Entry, now: float) -> None:
        """Try an entry again after a jittered pause, unless its time is over."""
        if now >= entry.batch.expires:
            self._give_up(lane, entry)
            return
        policy = self._traffic.policy
        pause = min(
            policy.longest_backoff, policy.first_backoff * 2.0 ** min(entry.attempts - 1, 30)
        )
        due = now + pause * self._random.uniform(0.5, 1.0)
        self._traffic.retries += 1
        heapq.heappush(self._backing_off, (due, next(self._ties), lane, entry))
        lane.pausing += 1
        self._traffic.changed[lane] = None

    def acked_late(self, lane: LaneQueue, entry: Entry, receipt: Receipt) -> None:
        """An attempt that was given up is answered after all: its entry is stored, whichever
        attempt it is at.
        """
        if not entry.done and lane in self._traffic.lanes:
            self._traffic.late_acks += 1
            self._finish(lane, entry, Outcome.STORED, receipt, None)

    def disconnected(self, refusal: Refusal) -> None:
        """What is out may be lost: it goes back to the head of its lane, in order."""
        lost = [
            (flight.lane, entry)
            for flight in list(self._flights.values())
            for entry in self._lose(flight, refusal)
        ]
        for lane, entry in reversed(lost):
            self._traffic.retries += 1
            self._make_ready(lane, entry, first=True)

    # What time says

    def next_tick(self) -> float:
        """When `tick` has something to do."""
        due = self._backing_off[0][0] if self._backing_off else INFINITY
        return min(due, next(iter(self._flights.values())).deadline) if self._flights else due

    def tick(self, now: float) -> None:
        """End silent attempts and backoffs that are due."""
        self._end_silent_attempts(now)
        while self._backing_off and self._backing_off[0][0] <= now:
            _, _, lane, entry = heapq.heappop(self._backing_off)
            lane.pausing -= 1
            if not entry.done:
                self._make_ready(lane, entry, first=True)
        while self._silent and not next(iter(self._silent.values())).unanswered():
            del self._silent[next(iter(self._silent))]

    def expire(self, now: float) -> None:
        """End the deliveries that are due and not out; those that are out get their answer first."""
        for _, _, lane, entry in list(self._backing_off):
            if not entry.done and entry.batch.expires <= now:
                self._give_up(lane, entry)
        for lane in self._traffic.lanes:
            kept: deque[Entry] = deque()
            while lane.ready:  # to which giving one up adds the next of its aggregate
                entry = lane.ready.popleft()
                if not entry.done and entry.batch.expires <= now:
                    self._give_up(lane, entry)
                elif not entry.done:
                    kept.append(entry)
            lane.ready = kept
        self._forget_settled()

    # What is in here

    def unsettled(self, lanes: Set[LaneQueue]) -> Iterator[tuple[LaneQueue, Entry]]:
        """The entries of these lanes."""
        listed = [(item[2], item[3]) for item in self._backing_off]
        listed += [
            (flight.lane, entry)
            for flight in self._flights.values()
            for entry in flight.unanswered()
        ]
        for lane in lanes:
            listed += [(lane, entry) for entry in lane.ready]
            listed += [(lane, entry) for held in lane.held.values() if held for entry in held]
        return ((lane, entry) for lane, entry in listed if lane in lanes and not entry.done)

    def envelopes(self, number: int, index: int) -> list[Envelope]:
        """What is out at a place of a flight: several if they are a group."""
        flight = self._flights.get(number)
        entry = flight.at(index) if flight is not None else None
        return entry.envelopes if entry is not None else []

    def out_on(self, topic: str) -> list[tuple[int, int]]:
        """Flight and index of all that is out on a topic."""
        return [
            (flight.number, index)
            for flight in self._flights.values()
            for index, entry in enumerate(flight.entries)
            if entry is not None and any(envelope.topic == topic for envelope in entry.envelopes)
        ]

    def abandon(self, lanes: Set[LaneQueue], refusal: Refusal) -> None:
        """Settle all of these lanes as unknown, and forget it."""
        traffic = self._traffic
        for lane, entry in list(self.unsettled(lanes)):
            traffic.settle(lane, entry, Outcome.UNKNOWN, None, refusal)
        for lane in lanes:
            lane.ready.clear()
            lane.held.clear()
            lane.one_by_one = 0
        for flight in [flight for flight in self._flights.values() if flight.lane in lanes]:
            left = self._land(flight)
            traffic.doubts.unanswered({entry.envelope.topic for entry in left}, traffic.last)
        self._forget_settled()

    def _answer(self, flight: Flight, index: int) -> Entry | None:
        """Take an entry out of its flight; None when it was answered or settled before."""
        entry = flight.at(index)
        if entry is None:
            self._traffic.late_acks += 1
            return None
        flight.entries[index] = None
        flight.open -= 1
        if not flight.open:
            del self._flights[flight.number]
        self._traffic.land(entry.count, entry.size)
        if entry.done:
            self._traffic.late_acks += 1
            return None
        return entry

    def _refused_late(self, number: int, index: int) -> None:
        """A later attempt decides, but this one is in doubt no more."""
        flight = self._silent.get(number)
        entry = flight.at(index) if flight is not None else None
        if flight is not None and entry is not None:
            flight.entries[index] = None
            entry.in_doubt -= 1

    def _deadline(self, entries: list[Entry | None], now: float) -> float:
        """Until when a flight's answers are awaited; a library that gives up by itself is not
        trusted for ever.
        """
        timeout = self._traffic.policy.ack_timeout
        if timeout is not None:
            return now + timeout
        return (
            max((entry.batch.expires for entry in entries if entry is not None), default=now)
            + OVERDUE
        )

    def _end_silent_attempts(self, now: float) -> None:
        # Flights carry ack deadlines in the order of their numbers, so the oldest decides.
        due = []
        for flight in self._flights.values():
            if flight.deadline <= now:
                due.append(flight)
            elif self._traffic.policy.ack_timeout is not None:
                break  # where they are those of the deliveries, they are in no order
        for flight in due:
            for entry in self._lose(flight, self._traffic.why_silent):
                self.back_off(flight.lane, entry, now)

    def _lose(self, flight: Flight, refusal: Refusal) -> list[Entry]:
        """A flight gets no answer any more; returns what of it is not settled, in order: each may
        be stored.
        """
        self._land(flight)
        self._silent[flight.number] = flight
        unanswered = flight.unanswered()
        self._traffic.leave_unanswered(unanswered, refusal)
        return unanswered

    def _land(self, flight: Flight) -> list[Entry]:
        """A flight is not awaited any more; returns what of it was."""
        del self._flights[flight.number]
        awaited = [entry for entry in flight.entries if entry is not None]
        self._traffic.land(
            sum(entry.count for entry in awaited), sum(entry.size for entry in awaited)
        )
        return awaited

    def _make_ready(self, lane: LaneQueue, entry: Entry, *, first: bool) -> None:
        if first:
            lane.ready.appendleft(entry)
        else:
            lane.ready.append(entry)
        self._traffic.changed[lane] = None

    def _let_follow(self, lane: LaneQueue, aggregate: str) -> None:
        """One of an aggregate has ended: the next that is held behind it is ready."""
        held = lane.held[aggregate]
        if held:
            self._make_ready(lane, held.popleft(), first=False)
        else:
            del lane.held[aggregate]

    def _give_up(self, lane: LaneQueue, entry: Entry) -> None:
        self._finish(lane, entry, Outcome.UNKNOWN, None, self._traffic.why_given_up(entry))

    def _finish(
        self,
        lane: LaneQueue,
        entry: Entry,
        outcome: Outcome,
        receipt: Receipt | None,
        refusal: Refusal | None,
    ) -> None:
        """Settle an entry, and let the next of its aggregate follow."""
        aggregate = entry.envelope.aggregate_id
        if aggregate is not None and aggregate in lane.held:
            self._let_follow(lane, aggregate)
        lane.one_by_one -= 1
        self._traffic.settle(lane, entry, outcome, receipt, refusal)
        self._traffic.changed[lane] = None

    def _forget_settled(self) -> None:
        """Let go of what is settled among those that back off."""
        self._backing_off = [item for item in self._backing_off if not item[3].done]
        heapq.heapify(self._backing_off)
        for lane in self._traffic.lanes:
            lane.pausing = 0
        for _, _, lane, _ in self._backing_off:
            lane.pausing += 1
