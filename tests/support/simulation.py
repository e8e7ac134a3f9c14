"""A dispatch between simulated lanes and a simulated broker, under a simulated clock, all from one
seed.

The broker loses, delays and repeats requests, loses, repeats and re-orders answers, refuses, drops
the connection and starts again; what it stored and which event ids it knows survives, as with
JetStream. It takes whole flights; where it is replicated it loses its quorum, and then counts ids
as stored that are only in process, and may elect a leader that never heard of them.
`World(seed).run()` plays one run to its end and returns what was broken, as sentences; the same
seed plays the same run."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import NamedTuple

from bytewax_jetstream.dispatch import Dispatch, LaneQueue, Settled
from bytewax_jetstream.dispatch.batches import Batches, _Batch
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.publishing import (
    Append,
    Groups,
    Outgoing,
    Policy,
    Receipt,
    Refusal,
    Route,
    Verdict,
    prepare_each,
)
from tests.support.dispatching import each_settled

__all__ = ["Believing", "Faults", "World"]

LAST_SUBMISSION = 6.0
HEALED = 12.0
"""When the faults end, in simulated seconds."""
MOST_EVENTS = 20_000
"""A run of some hundred envelopes takes a tenth of that; more means that it goes in circles."""


class Faults(NamedTuple):
    """Probabilities, drawn anew for each run so that runs differ in kind."""

    drop_request: float
    repeat_request: float
    drop_answer: float
    repeat_answer: float
    retry: float
    reject: float
    give_up: float
    delay: float
    """Longest, in seconds, of a request or an answer."""
    mean_uptime: float
    restart: float
    """That a lost connection was the broker's end: what it had received and not stored is gone."""
    mean_quorum: float = 1000.0
    """Seconds until a replicated broker loses its quorum for some time."""


def _some_faults(random: Random) -> Faults:
    def some(most: float) -> float:
        return random.choice((0.0, 0.0, most / 4, most))

    return Faults(
        drop_request=some(0.3),
        repeat_request=some(0.2),
        drop_answer=some(0.3),
        repeat_answer=some(0.2),
        retry=some(0.3),
        reject=some(0.2),
        give_up=some(0.02),
        delay=random.choice((0.001, 0.05, 0.5, 3.0)),
        mean_uptime=random.choice((0.3, 2.0, 5.0, 1000.0)),
        restart=random.random(),
        mean_quorum=random.choice((0.5, 2.0, 1000.0)),
    )


@dataclass(frozen=True)
class Request:
    """One attempt on the wire, of an envelope or of a group."""

    number: int
    index: int
    envelopes: tuple[Envelope, ...]


class AppendArrives(NamedTuple):
    """What arrives of a leg of a whole flight: places and envelopes, and behind how many the end
    comes, if it does.
    """

    number: int
    messages: list[tuple[int, Envelope]]
    end: int | None


@dataclass
class Taking:
    """What the broker knows of a whole flight."""

    through: int = 0
    """How many places it has taken."""
    pending: str = ""
    """The last id it has proposed for it: there is nothing to say of what was taken until that is
    stored.
    """
    over: bool = False


class Proposal(NamedTuple):
    """An envelope that is in process, and what to answer when it is stored."""

    event_id: str
    answer: Callable[[], None]


class Accepted(NamedTuple):
    """An envelope a lane was given."""

    envelope: Envelope
    lane: LaneQueue
    at: float
    group: object
    """The same for those that are stored all or none."""


class World:
    """One run.

    :arg dispatch: The class under test.
    :arg one_per_aggregate: As in `Policy`; without it, retries re-order.
    :arg dedupe: Whether the broker knows event ids; without it, retries are stored twice.
    :arg whole: Whether there are whole flights; drawn from the seed when not given.
    :arg replicated: Whether the broker is; drawn from the seed when not given.
    :arg atomic: Whether an aggregate's envelopes of one hand-off are stored all or none; drawn when
    not given.
    :arg faults: Drawn from the seed when not given.
    """

    def __init__(
        self,
        seed: int,
        *,
        dispatch: type[Dispatch] = Dispatch,
        one_per_aggregate: bool = True,
        dedupe: bool = True,
        whole: bool | None = None,
        replicated: bool | None = None,
        atomic: bool | None = None,
        faults: Faults | None = None,
    ) -> None:
        random = self.random = Random(seed)
        self.faults = faults or _some_faults(random)
        self.patient = random.random() < 0.5
        """Whether the delivery timeout lies far behind the last fault, so that all must come to a
        clear end.
        """
        self.policy = Policy(
            delivery_timeout=60.0 if self.patient else random.choice((1.0, 4.0, 10.0)),
            ack_timeout=random.choice((0.2, 1.0)),
            one_per_aggregate=one_per_aggregate,
            window=random.choice((1, 4, 16, 1000)),
            window_bytes=random.choice((100, 1000, 1_000_000)),
            max_send=random.choice((1, 3, 64)),
            flow_interval=random.choice((1, 3)),
            atomic=random.random() < 0.3 if atomic is None else atomic,
        )
        several = random.random() < 0.5 if replicated is None else replicated
        routed = ("good", "other") if (random.random() < 0.7 if whole is None else whole) else ()
        self._routes = {topic: Route(f"S-{topic}", several, fresh=False) for topic in routed}
        self.now = 0.0
        self.disconnections = 0
        self.problems: list[str] = []
        self._dedupe = dedupe
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._tick_at = float("inf")
        self._dispatch = dispatch(
            self.policy, partial(prepare_each, self._prepare), Random(seed + 1), self._routes.get
        )
        self._lanes = [self._dispatch.add_lane() for _ in range(random.randint(1, 3))]
        self._closed: set[LaneQueue] = set()
        self._failed = False
        self._by_wire: dict[object, Envelope] = {}
        self._accepted: dict[str, Accepted] = {}
        self._results: defaultdict[str, list[tuple[float, Settled]]] = defaultdict(list)
        # The broker's side
        self._log: list[str] = []
        self._places: dict[str, int] = {}
        """Where in the log an event id was stored first."""
        self._refused: dict[str, set[tuple[int, int]]] = defaultdict(set)
        """Which attempts it refused, or gave up, for good, by event id."""
        self._connected = False
        self._last_arrival = 0.0
        self._several = several
        self._quorum = True
        self._proposed: dict[str, Proposal] = {}
        """In process, in order, by event id."""
        self._takings: dict[int, Taking] = {}
        self.later_appends = 0
        """Legs that were not the first of their flight."""
        self.dropped = 0
        """Proposals that a new leader never heard of."""

    def run(self) -> list[str]:
        """Play to the end; returns what was broken."""
        for lane in self._lanes:
            for _ in range(self.random.randint(1, 6)):
                self._at(self.random.uniform(0, LAST_SUBMISSION), partial(self._submit, lane))
            if self.random.random() < 0.1:
                self._at(self.random.uniform(0, 1.5 * LAST_SUBMISSION), partial(self._close, lane))
        self._at(self.random.uniform(0, 2), self._connect)
        if self._several:
            self._at(self.random.expovariate(1 / self.faults.mean_quorum), self._lose_quorum)
        if self.random.random() < 0.05:
            self._at(self.random.uniform(0, HEALED), self._fail)
        for _ in range(MOST_EVENTS):
            if not self._events:
                break
            self.now, _, happen = heapq.heappop(self._events)
            happen()
            self._turn()
        else:
            self.problems.append(f"goes on for ever: {self._dispatch!r} at {self.now:g} s")
        self._look_back()
        return self.problems

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happen))

    def _happens(self, probability: float) -> bool:
        return self.now < HEALED and self.random.random() < probability

    # The producers

    def _prepare(self, envelope: Envelope) -> str:
        if envelope.topic == "bad":
            raise EnvelopeError("the topic is bad")
        self._by_wire[envelope.event_id] = envelope
        return envelope.event_id

    def _submit(self, lane: LaneQueue) -> None:
        if lane in self._closed:
            return
        random, envelopes, submission = self.random, [], len(self._accepted)
        for _ in range(random.choice((1, 5, 30))):
            envelope = Envelope(
                topic="bad"
                if random.random() < 0.02
                else random.choice(("good", "good", "good", "other")),
                payload=b"." * random.choice((0, 10, 90, 300)),
                event_id=f"e{len(self._accepted)}",
                aggregate_id=random.choice((None, "a", "b", "c")),
            )
            grouped = (
                self.policy.atomic and envelope.aggregate_id is not None and envelope.topic != "bad"
            )
            group = (submission, envelope.aggregate_id) if grouped else envelope.event_id
            self._accepted[envelope.event_id] = Accepted(envelope, lane, self.now, group)
            envelopes.append(envelope)
        self._dispatch.submit(lane, envelopes, epoch=1, now=self.now)
        if self._failed:
            self._fail()

    def _close(self, lane: LaneQueue) -> None:
        self._closed.add(lane)
        self._dispatch.remove_lane(lane)

    def _fail(self) -> None:
        self._failed = True
        self._dispatch.abandon("the publisher is beyond repair")

    # The pool, in short

    def _turn(self) -> None:
        dispatch, policy = self._dispatch, self.policy
        while (outgoing := dispatch.next_send(self.now)) is not None:
            self._send(outgoing)
        for lane, settled in dispatch.take_settled():
            for one in (each for group in settled for each in each_settled(group)):
                event_id = one.entry.envelope.event_id
                self._results[event_id].append((self.now, one))
                if self._accepted[event_id].lane is not lane:
                    self.problems.append(f"{event_id} was settled in another lane")
        largest_group = 30 if policy.atomic else 1
        if (
            dispatch.in_flight >= policy.window + largest_group
            or dispatch._window.bytes >= policy.window_bytes + 300 * largest_group
        ):
            self.problems.append(
                f"{dispatch.in_flight} messages and {dispatch._window.bytes} bytes are in flight: more than the window"
            )
        due = dispatch.next_tick()
        if due < self._tick_at:
            self._tick_at = due
            self._at(max(due, self.now), self._tick)

    def _tick(self) -> None:
        self._tick_at = float("inf")
        self._dispatch.tick(self.now)
        if self._dispatch.next_tick() <= self.now:
            self.problems.append(
                f"after the tick at {self.now} the next is due at {self._dispatch.next_tick()}"
            )

    # The network

    def _connect(self) -> None:
        if self._failed:
            return
        self._connected = True
        self._last_arrival = self.now
        self._dispatch.connected()
        uptime = self.random.expovariate(1 / self.faults.mean_uptime)
        if self.now + uptime < HEALED:
            self._at(self.now + uptime, self._disconnect)

    def _disconnect(self) -> None:
        """What is under way is lost, or arrives and is stored all the same."""
        self._connected = False
        self.disconnections += 1
        under_way = [event for event in self._events if isinstance(event[2], _Arrival)]
        self._events = [event for event in self._events if not isinstance(event[2], _Arrival)]
        heapq.heapify(self._events)
        if self.random.random() < self.faults.restart:
            self._takings.clear()
        else:
            stalled = self.random.choice((0.0, 1.0, 5.0))
            for when, _, arrival in under_way:
                self._at(when + stalled, arrival)
        self._dispatch.disconnected("the connection is lost")
        self._at(self.now + self.random.choice((0.01, 0.5, 3.0)), self._connect)

    def _send(self, outgoing: Outgoing) -> None:
        if isinstance(outgoing, Append):
            self._send_append(outgoing)
            return
        number, aggregates = outgoing.number, set[str]()
        sent = (
            outgoing.envelopes
            if isinstance(outgoing, Groups)
            else [[envelope] for envelope in outgoing.envelopes]
        )
        for index, envelopes in enumerate(sent):
            aggregate = envelopes[0].aggregate_id
            if aggregate in aggregates and self.policy.one_per_aggregate:
                self.problems.append(f"two of aggregate {aggregate} are in send {number}")
            aggregates.add(aggregate or "")
            request = Request(number, index, tuple(envelopes))
            if not self._happens(self.faults.drop_request):
                self._post(request)
            if self._happens(self.faults.repeat_request):
                self._post(request)

    def _send_append(self, append: Append) -> None:
        homes: dict[str, str] = {}
        for other in self._dispatch._batches.sent.values():
            for envelope in (each for segment in other.segments for each in segment.envelopes):
                key = f"{id(other.lane)} {envelope.aggregate_id}"
                if (
                    envelope.aggregate_id
                    and homes.setdefault(key, other.route.name) != other.route.name
                ):
                    self.problems.append(
                        f"aggregate {envelope.aggregate_id} is in flight on two routes"
                    )
        self.later_appends += bool(append.first and append.wires)
        envelopes = [self._by_wire[wire] for wire in append.wires]
        kept = [
            (index, each)
            for index, each in enumerate(envelopes, start=append.first)
            if not self._happens(self.faults.drop_request / 9)
        ]
        ends = append.last and not self._happens(self.faults.drop_request / 3)
        end = append.first + len(envelopes) if ends else None
        self._post(AppendArrives(append.number, kept, end))

    def _post(self, request: Request | AppendArrives) -> None:
        """Requests of one connection arrive in their order; those of a lost one whenever they do."""
        delay = self.random.uniform(0, self.faults.delay if self.now < HEALED else 0.01)
        self._last_arrival = max(self._last_arrival, self.now + delay)
        self._at(self._last_arrival, _Arrival(self, request))

    def _answer(self, request: Request, answer: Receipt | Refusal) -> None:
        """Answers overtake each other; they go to whatever connection there is by then."""
        for _ in range(2 if self._happens(self.faults.repeat_answer) else 1):
            if not self._happens(self.faults.drop_answer):
                delay = self.random.uniform(0, self.faults.delay if self.now < HEALED else 0.01)
                self._at(self.now + delay, partial(self._deliver, request, answer))

    def _tell(self, *happen: Callable[[], None]) -> None:
        """An answer in several words, which keep their order."""
        if not self._happens(self.faults.drop_answer):
            delay = self.random.uniform(0, self.faults.delay if self.now < HEALED else 0.01)
            self._at(self.now + delay, partial(self._hear, happen))

    def _hear(self, happen: Iterable[Callable[[], None]]) -> None:
        if self._connected:
            for one in happen:
                one()

    def _deliver(self, request: Request, answer: Receipt | Refusal) -> None:
        if not self._connected:
            return
        if isinstance(answer, Receipt):
            self._dispatch.acked(request.number, request.index, answer)
        else:
            self._dispatch.refused(request.number, request.index, answer, self.now)

    # The broker

    def arrive(self, request: Request | AppendArrives) -> None:
        """Store what comes, or refuse it, and answer."""
        if isinstance(request, AppendArrives):
            self._arrive_whole(request)
            return None
        ids = [envelope.event_id for envelope in request.envelopes]
        event_id = ids[-1]
        known = [each in self._places for each in ids]
        if any(known) and not all(known):
            self.problems.append(f"of {' '.join(ids)} only some are stored")
        if self._dedupe and all(known):
            return self._answer(
                request,
                Receipt(self._stream(event_id), sequence=self._places[event_id], duplicate=True),
            )
        if any(each in self._proposed for each in ids):
            return self._answer(request, Refusal(Verdict.RETRY, "this id is in process"))
        if any((request.number, request.index) in self._refused[each] for each in ids):
            return self._answer(request, Refusal(Verdict.REJECT, "never, as said"))
        if self._happens(self.faults.retry):
            return self._answer(request, Refusal(Verdict.RETRY, "not now"))
        if self._happens(self.faults.reject):
            self._refuse(request)
            verdict = self.random.choice((Verdict.REJECT, Verdict.STOP))
            return self._answer(request, Refusal(verdict, "never", 400))
        if self._happens(self.faults.give_up):
            self._refuse(request)
            return self._answer(request, Refusal(Verdict.GIVE_UP, "the library gave up"))
        for each in ids[:-1]:
            self._store(each, lambda: None)
        return self._store(event_id, lambda: self._answer(request, self._receipt(event_id)))

    def _refuse(self, request: Request) -> None:
        for envelope in request.envelopes:
            self._refused[envelope.event_id].add((request.number, request.index))

    def _arrive_whole(self, burst: AppendArrives) -> None:
        """As fast-ingest in gap mode `fail`: nothing is stored after the first that is missing or
        refused.
        """
        dispatch, number = self._dispatch, burst.number
        if number not in self._takings and (not burst.messages or burst.messages[0][0]):
            self._takings[number] = Taking(over=True)  # it never saw it begin
        taking = self._takings.setdefault(number, Taking())
        if taking.over:
            self._tell(lambda: dispatch.batch_ended(number, 0, self.now))
            return
        words: list[Callable[[], None]] = []
        for place, envelope in burst.messages:
            event_id = envelope.event_id
            if place != taking.through:
                taking.over = True
                break
            if self._dedupe and event_id in self._places:
                if place == 0 and self.random.random() < 0.5:
                    taking.over = True
                    self._tell(lambda: dispatch.batch_returned(number, 1, duplicate=True))
                    return
            elif event_id in self._proposed:
                pass  # taken for stored
            elif self._happens(self.faults.retry / 9) or self._happens(self.faults.reject / 9):
                verdict = self.random.choice((Verdict.RETRY, Verdict.REJECT, Verdict.STOP))
                if verdict is not Verdict.RETRY:
                    self._refused[event_id].add((number, place))
                words.append(
                    partial(dispatch.refused, number, place, Refusal(verdict, "no"), self.now)
                )
                taking.over = True
                break
            else:
                self._store(event_id, lambda: None)
                taking.pending = event_id
            taking.through += 1
            if taking.through % self.policy.flow_interval == 0:
                self._when_stored(
                    taking.pending, partial(dispatch.batch_stored, number, taking.through)
                )
        if burst.end is not None and not taking.over:
            taking.over = True
            if self._happens(
                self.faults.reject
            ):  # it does not take the end, and so does not say how far it came
                refusal = Refusal(Verdict.REJECT, "no")
                self._when_stored(
                    taking.pending, partial(dispatch.refused, number, burst.end, refusal, self.now)
                )
                return
        if taking.over:
            through = taking.through
            words.append(lambda: dispatch.batch_ended(number, through, self.now))
            self._when_stored(taking.pending, *words)

    def _when_stored(self, event_id: str, *words: Callable[[], None]) -> None:
        """Say something when an envelope, the last of some, is in process no more."""
        proposal = self._proposed.get(event_id)
        if proposal is None:
            self._tell(*words)
            return

        def answer() -> None:
            proposal.answer()
            self._tell(*words)

        self._proposed[event_id] = Proposal(event_id, answer)

    def _store(self, event_id: str, answer: Callable[[], None]) -> None:
        if not self._quorum:
            self._proposed[event_id] = Proposal(event_id, answer)
            return
        self._places.setdefault(event_id, len(self._log))
        self._log.append(event_id)
        answer()

    def _receipt(self, event_id: str) -> Receipt:
        return Receipt(self._stream(event_id), sequence=len(self._log) - 1, duplicate=False)

    def _stream(self, event_id: str) -> str:
        return f"S-{self._accepted[event_id].envelope.topic}"

    def _lose_quorum(self) -> None:
        """For some time nothing is stored; then all that is in process is, or a new leader knows
        nothing of it.
        """
        if self.now >= HEALED:
            return
        self._quorum = False
        length = min(self.random.choice((0.1, 1.0, 5.0)), HEALED - self.now)
        self._at(self.now + length, self._regain_quorum)
        self._at(
            self.now + length + self.random.expovariate(1 / self.faults.mean_quorum),
            self._lose_quorum,
        )

    def _regain_quorum(self) -> None:
        self._quorum = True
        proposed, self._proposed = self._proposed, {}
        if self.random.random() < 0.5:
            self.dropped += len(proposed)
            for taking in self._takings.values():
                taking.over = True
            return
        for proposal in proposed.values():
            self._store(proposal.event_id, proposal.answer)

    # What must be true at the end

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How the envelopes of this run ended."""
        return Counter(
            settled.outcome for results in self._results.values() for _, settled in results
        )

    @property
    def dispatch(self) -> Dispatch:
        """What was tested, for its counters."""
        return self._dispatch

    def _look_back(self) -> None:
        self._check_results()
        self._check_order()
        dispatch, lanes = self._dispatch, self._lanes
        batches, singles = dispatch._batches, dispatch._singles
        of_lanes = batches._lanes.values()
        left: dict[str, object] = {
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
            "settled": dispatch._settlements._settled,
        }
        self.problems += [
            f"left behind at the end: {name} {value!r:.80}" for name, value in left.items() if value
        ]

    def _check_results(self) -> None:
        policy = self.policy
        ends: defaultdict[object, set[tuple[bool, Outcome]]] = defaultdict(set)
        for event_id, (envelope, lane, accepted, group) in self._accepted.items():
            results = self._results[event_id]
            if len(results) != 1:
                self.problems.append(f"{event_id} has {len(results)} results")
                continue
            at, (entry, outcome, receipt, refusal) = results[0]
            stored = event_id in self._places
            ends[group].add((stored, outcome))
            if outcome is Outcome.STORED and (not stored or receipt is None or refusal is not None):
                self.problems.append(f"{event_id} is called stored, and is not")
            said = receipt.sequence if receipt else None
            if (
                outcome is Outcome.STORED
                and receipt
                and self._dedupe
                and said is not None
                and self._log[said] != event_id
            ):
                self.problems.append(
                    f"{event_id} is said to be stored at {receipt.sequence}, where another is"
                )
            if outcome is Outcome.REJECTED and stored:
                self.problems.append(f"{event_id} is called rejected, and is stored")
            excused = (
                not self.patient or self._failed or lane in self._closed or self._refused[event_id]
            )
            if outcome is Outcome.UNKNOWN and not excused:
                self.problems.append(f"{event_id} is unknown although the broker healed in time")
            if (envelope.topic == "bad") != (entry.attempts == 0 and outcome is Outcome.REJECTED):
                self.problems.append(
                    f"{event_id} on {envelope.topic} is {outcome} after {entry.attempts} attempts"
                )
            # What is out at the delivery timeout is given its ack timeout, and looked at again
            # within 0.1 s.
            longest = policy.delivery_timeout + (policy.ack_timeout or 0) + 0.2
            if at - accepted > longest:
                self.problems.append(
                    f"{event_id} was settled after {at - accepted:g} s, allowed are {longest:g}"
                )

        for group, found in ends.items():
            if len(found) > 1:
                self.problems.append(f"the group {group} did not end as one: {found}")

    def _check_order(self) -> None:
        for event_id, copies in Counter(self._log).items():
            if copies > 1:
                self.problems.append(f"{event_id} is stored {copies} times")
        place = self._places
        last: dict[tuple[LaneQueue, str], str] = {}
        for event_id, (envelope, lane, _, _) in self._accepted.items():
            results = self._results[event_id]
            if (
                envelope.aggregate_id is None
                or not results
                or results[0][1].outcome is not Outcome.STORED
            ):
                continue
            before = last.get((lane, envelope.aggregate_id))
            if before is not None and event_id in place and place.get(before, -1) > place[event_id]:
                self.problems.append(
                    f"{event_id} is stored before {before}, which its lane was given first"
                )
            last[lane, envelope.aggregate_id] = event_id


class Believing(Batches):
    """Believes every ack: a batch that was not answered goes again as a batch, and no stream is
    ever in doubt."""

    def _retry_later(self, batch: _Batch, refusal: Refusal, now: float) -> None:
        self._end(batch)
        for segment in batch.segments:
            self._doubts.not_in_process(segment.envelopes)
        batch.lane.queue.put_back(batch.segments)

    def _is_in_doubt(self, route: Route) -> bool:
        return False


class _Arrival:
    """A request reaches the broker; a thing of its own so that a restart can forget it."""

    def __init__(self, world: World, request: Request | AppendArrives) -> None:
        self._world, self._request = world, request

    def __call__(self) -> None:
        self._world.arrive(self._request)
