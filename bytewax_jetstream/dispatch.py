"""What is sent, tried again and settled: every publishing decision, and no I/O and no clock.

One `Dispatch` serves one publisher. Things happen to it (`submit`, `connected`, `acked`, `refused`,
`disconnected`, `tick`), each with the time it happened; it answers with flights to send
(`next_flight`) and with settled envelopes (`take_settled`). The pool turns these into threads and
sockets, the tests into thousands of simulated seconds.

The rules, all of them:

- envelopes of a lane are sent in order, in flights, lanes taking turns;
- where the publisher needs it, one envelope of an aggregate is out at a time: a retry inside a full
  window would re-order (measured: 8,139 inversions; with this rule 0);
- an attempt without an answer within the ack timeout, or cut off by a lost connection, is tried again
  with the same event id, after a jittered backoff;
- what the broker refuses for good is rejected, unless an earlier attempt was never answered: then it is
  unknown, as is what is neither stored nor rejected by its delivery timeout; it may be stored.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from enum import Enum
from itertools import count
from random import Random
from typing import Any, NamedTuple

from .envelope import Envelope, Outcome
from .errors import EnvelopeError

__all__ = [
    "Batch",
    "Dispatch",
    "Entry",
    "Flight",
    "LaneQueue",
    "Policy",
    "Receipt",
    "Refusal",
    "Settled",
    "Verdict",
    "size_of",
]


class Policy(NamedTuple):
    """How flights for one broker are formed and retried."""

    delivery_timeout: float
    ack_timeout: float | None
    """Seconds an attempt may wait; None where the broker's library retries and gives up by itself."""
    one_per_aggregate: bool
    """Whether a second envelope of an aggregate must wait until the first is settled."""
    window: int
    """How many messages may be out at once, all lanes together."""
    window_bytes: int
    """How many payload bytes may be out at once: more than a slow link carries in an ack timeout is no use."""
    flight: int
    """How many messages a lane may send when it is its turn."""
    first_backoff: float = 0.05
    longest_backoff: float = 2.0


class Receipt(NamedTuple):
    """Where the broker stored an envelope."""

    stream: str | None = None
    partition: int | None = None
    sequence: int | None = None
    duplicate: bool | None = None


class Verdict(Enum):
    """What a refusal means for the envelope."""

    RETRY = "retry"
    """Not now: try again with the same event id."""
    REJECT = "reject"
    """Never, this one: the others are not concerned."""
    STOP = "stop"
    """Never, and others will fare the same: a dataflow must stop rather than dead-letter everything."""
    GIVE_UP = "give up"
    """The broker's library has given up; whether it is stored nobody knows."""


class Refusal(NamedTuple):
    """Why the broker did not store an envelope."""

    verdict: Verdict
    reason: str
    code: int | None = None


class Batch(NamedTuple):
    """What a lane was given in one hand-off."""

    submitted: float
    expires: float
    epoch: int


def size_of(envelope: Envelope) -> int:
    """Payload bytes an envelope takes from budget and window; a payload that is not bytes is rejected anyway."""
    payload = envelope.payload
    return len(payload) if type(payload) is bytes else 0


class Entry:
    """An envelope between its acceptance and its settlement."""

    # Class attributes, not slots: most entries never change them, and are made at half the cost.
    wire: Any = None
    """What the publisher made of it, once for all attempts."""
    attempts = 0
    in_doubt = 0
    """How many attempts got no answer: each may be stored, now or later."""
    done = False
    """Settled, maybe by the late answer to an earlier attempt; whoever still lists it passes over it."""
    last: Refusal | None = None
    """Why the last attempt did not do."""

    def __init__(self, envelope: Envelope, batch: Batch) -> None:
        self.envelope = envelope
        self.batch = batch
        self.size = size_of(envelope)


class Settled(NamedTuple):
    """An envelope's end."""

    entry: Entry
    outcome: Outcome
    receipt: Receipt | None
    refusal: Refusal | None


class LaneQueue:
    """The envelopes of one lane that wait for their turn, in order."""

    __slots__ = ("held", "in_turn", "owner", "ready", "settled")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        """Whose queue it is; passed through."""
        self.ready: deque[Entry] = deque()
        """May be sent."""
        self.in_turn = False
        """Among those that wait for their turn, or just having it."""
        self.held: dict[str, deque[Entry] | None] = {}
        """For each aggregate that has an envelope ready, out or backing off: those that wait behind it."""
        self.settled: list[Settled] = []


class Flight:
    """Envelopes of one lane that were sent together; an index is None once it is answered."""

    __slots__ = ("deadline", "entries", "lane", "number", "open")

    def __init__(self, number: int, lane: LaneQueue, entries: list[Entry | None], deadline: float) -> None:
        self.number = number
        self.lane = lane
        self.entries = entries
        self.deadline = deadline
        self.open = len(entries)

    def at(self, index: int) -> Entry | None:
        """What is waited for at a place; an answer can name any."""
        return self.entries[index] if 0 <= index < len(self.entries) else None

    def unanswered(self) -> list[Entry]:
        """What is still waited for."""
        return [entry for entry in self.entries if entry is not None and not entry.done]


class Dispatch:
    """The decisions for one publisher."""

    def __init__(self, policy: Policy, prepare: Callable[[Envelope], Any], random: Random) -> None:
        self._policy = policy
        self._prepare = prepare
        self._random = random
        self._connected = False
        self._lanes: dict[LaneQueue, None] = {}
        self._turns: deque[LaneQueue] = deque()
        """Lanes with something ready, the next to send first."""
        self._flights: dict[int, Flight] = {}
        """Out and awaited, oldest first."""
        self._silent: dict[int, Flight] = {}
        """Given up, oldest first, until all is settled: a late ack still says that an envelope is stored."""
        self._backing_off: list[tuple[float, int, LaneQueue, Entry]] = []
        self._with_settled: list[LaneQueue] = []
        self._next_expiry = INFINITY
        self._numbers = count(1)
        self.out = 0
        self.out_bytes = 0
        self.retries = 0
        self.late_acks = 0

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

    def submit(self, lane: LaneQueue, envelopes: Iterable[Envelope], epoch: int, now: float) -> None:
        """Accept envelopes: each is queued, or rejected at once when it can never be stored as it is."""
        batch = Batch(now, now + self._policy.delivery_timeout, epoch)
        self._next_expiry = min(self._next_expiry, batch.expires)
        gated, held, ready, prepare = self._policy.one_per_aggregate, lane.held, lane.ready, self._prepare
        for envelope in envelopes:
            entry = Entry(envelope, batch)
            try:
                entry.wire = prepare(envelope)
            except EnvelopeError as error:
                self._settle(lane, entry, Outcome.REJECTED, None, Refusal(Verdict.REJECT, str(error)))
                continue
            except Exception as error:  # a value nobody thought of must harm its own envelope only
                reason = f"it cannot be encoded ({type(error).__name__}): give its fields the types Envelope names"
                self._settle(lane, entry, Outcome.REJECTED, None, Refusal(Verdict.REJECT, reason))
                continue
            aggregate = envelope.aggregate_id
            if not gated or aggregate is None:
                ready.append(entry)
            elif aggregate in held:
                waiting = held[aggregate]
                if waiting is None:
                    held[aggregate] = waiting = deque()
                waiting.append(entry)
            else:
                held[aggregate] = None
                ready.append(entry)
        if ready:
            self._await_turn(lane)

    def connected(self) -> None:
        """The publisher can send."""
        self._connected = True

    def disconnected(self, reason: str) -> None:
        """What is out may be lost: it goes back to the head of its lane, in order."""
        self._connected = False
        refusal = Refusal(Verdict.RETRY, reason)
        for flight in reversed(self._flights.values()):
            self._land(flight)
            for entry in reversed(flight.unanswered()):
                entry.last = refusal
                entry.in_doubt += 1
                self.retries += 1
                self._make_ready(flight.lane, entry, first=True)
        self._silent |= self._flights
        self._flights = {}

    def acked(self, number: int, index: int, receipt: Receipt) -> None:
        """The broker stored one envelope of a flight."""
        flight = self._flights.get(number)
        if flight is None:
            self._acked_late(number, index, receipt)
            return
        entry = self._answer(flight, index)
        if entry is not None:
            self._finish(flight.lane, entry, Outcome.STORED, receipt, None)

    def acked_all(self, acks: Iterable[tuple[int, int, Receipt]]) -> None:
        """The broker stored envelopes: flight, index and receipt of each.

        The same as `acked` for each, written out because this is the path that every message takes.
        """
        flights, with_settled = self._flights, self._with_settled
        for number, index, receipt in acks:
            flight = flights.get(number)
            entry = flight.at(index) if flight is not None else None
            if flight is None or entry is None or entry.done:
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
            if aggregate in lane.held:
                waiting = lane.held[aggregate]
                if waiting:
                    self._make_ready(lane, waiting.popleft(), first=False)
                else:
                    del lane.held[aggregate]
            if not lane.settled:
                with_settled.append(lane)
            lane.settled.append(_new(Settled, (entry, Outcome.STORED, receipt, None)))

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> None:
        """The broker did not store one envelope of a flight."""
        flight = self._flights.get(number)
        if flight is None:
            self._refused_late(number, index)
            return
        entry = self._answer(flight, index)
        if entry is None:
            return
        entry.last = refusal
        if refusal.verdict is Verdict.RETRY:
            self._back_off(flight.lane, entry, now)
        elif refusal.verdict is Verdict.GIVE_UP:
            self._finish(flight.lane, entry, Outcome.UNKNOWN, None, refusal)
        elif entry.in_doubt:
            reason = f"{refusal.reason}; but an earlier attempt was never answered, so it may be stored"
            self._finish(flight.lane, entry, Outcome.UNKNOWN, None, refusal._replace(reason=reason))
        else:
            self._finish(flight.lane, entry, Outcome.REJECTED, None, refusal)

    def tick(self, now: float) -> None:
        """Time has passed: end silent attempts, backoffs and deliveries that are due."""
        self._end_silent_attempts(now)
        while self._backing_off and self._backing_off[0][0] <= now:
            _, _, lane, entry = heapq.heappop(self._backing_off)
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
        policy = self._policy
        while self._connected and self._turns and self.out < policy.window and self.out_bytes < policy.window_bytes:
            lane = self._turns.popleft()
            ready, limit = lane.ready, min(policy.flight, policy.window - self.out)
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
            if ready:
                self._turns.append(lane)
            else:
                lane.in_turn = False
            if entries:
                flight = Flight(next(self._numbers), lane, entries, self._deadline(entries, now))
                self._flights[flight.number] = flight
                self.out += len(entries)
                self.out_bytes = size
                return flight
        return None

    def take_settled(self) -> list[tuple[LaneQueue, list[Settled]]]:
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

    # How it comes to that

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
        self.out -= 1
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

    def _refused_late(self, number: int, index: int) -> None:
        """A later attempt decides, but this one is in doubt no more."""
        flight = self._silent.get(number)
        entry = flight.at(index) if flight is not None else None
        if flight is not None and entry is not None:
            flight.entries[index] = None
            entry.in_doubt -= 1

    @property
    def _silence(self) -> str:
        timeout = self._policy.ack_timeout
        return f"no ack within {timeout:g} s" if timeout is not None else "no word from the broker's library"

    def _deadline(self, entries: list[Entry | None], now: float) -> float:
        """Until when a flight's answers are awaited; a library that gives up by itself is not trusted for ever."""
        if self._policy.ack_timeout is not None:
            return now + self._policy.ack_timeout
        return max((entry.batch.expires for entry in entries if entry is not None), default=now) + OVERDUE

    def _land(self, flight: Flight) -> None:
        """A flight is not awaited any more."""
        for entry in flight.entries:
            if entry is not None:
                self.out -= 1
                self.out_bytes -= entry.size

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

    def _end_silent_attempts(self, now: float) -> None:
        """Flights carry deadlines in the order of their numbers, so the oldest decides."""
        while self._flights:
            flight = next(iter(self._flights.values()))
            if flight.deadline > now:
                break
            del self._flights[flight.number]
            self._silent[flight.number] = flight
            self._land(flight)
            for entry in flight.unanswered():
                # The broker's own word on an earlier attempt tells more than this silence.
                entry.last = entry.last or Refusal(Verdict.RETRY, self._silence)
                entry.in_doubt += 1
                self._back_off(flight.lane, entry, now)

    def _expire(self, now: float) -> None:
        """End the deliveries that are due and not out; those that are out get their answer first."""
        for _, _, lane, entry in self._backing_off:
            if not entry.done and entry.batch.expires <= now:
                self._give_up(lane, entry)
        self._backing_off = [item for item in self._backing_off if not item[3].done]
        heapq.heapify(self._backing_off)
        for lane in self._lanes:
            kept: deque[Entry] = deque()
            while lane.ready:  # to which giving one up adds the next of its aggregate
                entry = lane.ready.popleft()
                if not entry.done and entry.batch.expires <= now:
                    self._give_up(lane, entry)
                elif not entry.done:
                    kept.append(entry)
            lane.ready = kept
        self._turns = deque(lane for lane in self._turns if lane.ready)
        for lane in self._lanes:
            lane.in_turn = bool(lane.ready)
        left = min((entry.batch.expires for _, entry in self._unsettled(self._lanes.keys())), default=INFINITY)
        # Who is out past its time is looked at again soon, but must not keep the pool busy until then.
        self._next_expiry = max(left, now + 0.1)

    def _unsettled(self, lanes: Set[LaneQueue]) -> Iterator[tuple[LaneQueue, Entry]]:
        listed = [(item[2], item[3]) for item in self._backing_off]
        listed += [(flight.lane, entry) for flight in self._flights.values() for entry in flight.unanswered()]
        for lane in lanes:
            listed += [(lane, entry) for entry in lane.ready]
            listed += [(lane, entry) for waiting in lane.held.values() if waiting for entry in waiting]
        return ((lane, entry) for lane, entry in listed if lane in lanes and not entry.done)

    def _abandon(self, lanes: Set[LaneQueue], refusal: Refusal) -> None:
        for lane, entry in self._unsettled(lanes):
            self._settle(lane, entry, Outcome.UNKNOWN, None, refusal)
        for lane in lanes:
            lane.ready.clear()
            lane.held.clear()
            lane.in_turn = False
        self._turns = deque(lane for lane in self._turns if lane not in lanes)
        self._backing_off = [item for item in self._backing_off if item[2] not in lanes]
        heapq.heapify(self._backing_off)
        for flight in [flight for flight in self._flights.values() if flight.lane in lanes]:
            self._land(self._flights.pop(flight.number))

    def _give_up(self, lane: LaneQueue, entry: Entry) -> None:
        last = entry.last.reason if entry.last else "never sent: no connection, or no answer to what came before it"
        reason = (
            f"not settled within {self._policy.delivery_timeout:g} s and {entry.attempts} attempts ({last}): "
            "see to the broker, then publish it again with the same event id"
        )
        code = entry.last.code if entry.last else None
        self._finish(lane, entry, Outcome.UNKNOWN, None, Refusal(Verdict.GIVE_UP, reason, code))

    def _finish(
        self, lane: LaneQueue, entry: Entry, outcome: Outcome, receipt: Receipt | None, refusal: Refusal | None
    ) -> None:
        """Settle an entry, and let the next of its aggregate follow."""
        aggregate = entry.envelope.aggregate_id
        if aggregate is not None and aggregate in lane.held:
            waiting = lane.held[aggregate]
            if waiting:
                self._make_ready(lane, waiting.popleft(), first=False)
            else:
                del lane.held[aggregate]
        self._settle(lane, entry, outcome, receipt, refusal)

    def _settle(
        self, lane: LaneQueue, entry: Entry, outcome: Outcome, receipt: Receipt | None, refusal: Refusal | None
    ) -> None:
        entry.done = True
        if not lane.settled:
            self._with_settled.append(lane)
        lane.settled.append(Settled(entry, outcome, receipt, refusal))


INFINITY = float("inf")
OVERDUE = 0.5
"""Seconds past a delivery's end that a library which gives up by itself may take to say so."""
_new = tuple.__new__
"""Past a NamedTuple's keyword constructor, where it runs once a message: 0.1 us instead of 0.4."""
