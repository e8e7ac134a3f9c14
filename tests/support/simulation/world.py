"""A dispatch between simulated lanes and a simulated broker, in simulated time, all from one seed.

    lanes ── submit ──► Dispatch ── next_send ──► network ──► broker
                           ▲                                    │
                           └──────── reports ◄── network ◄──────┘

The network has the speed of a link, and loses, delays, repeats and re-orders; the broker refuses,
restarts, falls silent and loses its quorum: see `kinds`. `World(seed).run()` plays one run to its
end and returns what was broken, as sentences; the same seed plays the same run.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

from bytewax_jetstream.dispatch import Dispatch, LaneQueue
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.pool.transit import Transit
from bytewax_jetstream.publishing import Append, Ask, Groups, Outgoing, Route, prepare_each
from tests.support.dispatching import each_settled
from tests.support.simulation.broker import Broker
from tests.support.simulation.checks import (
    check_order,
    check_patience,
    check_progress,
    check_results,
    check_routes,
    check_window,
    left_behind,
)
from tests.support.simulation.clock import HEALED, Clock
from tests.support.simulation.events import Events
from tests.support.simulation.faults import Faults
from tests.support.simulation.kinds import KINDS, LAST_SUBMISSION, Kind
from tests.support.simulation.network import Network, Request, SentAppend
from tests.support.simulation.record import Accepted, Record, Result

__all__ = ["World"]

PAYLOAD = b"." * 1_000_000
MOST_STEPS = 20_000
"""A run of some hundred envelopes takes a tenth of that; more means that it goes in circles."""


class World:
    """One run.

    :arg kind: What the run is like; drawn from the seed when not given, like the rest.
    :arg faults: Instead of those of its kind.
    :arg dispatch: The class under test.
    :arg one_per_aggregate: As in `Policy`; without it, retries change the order.
    :arg dedupe: Whether the broker knows event ids; without it, retries are stored twice.
    :arg batches: Whether streams take batches.
    :arg replicated: Whether the broker is.
    :arg atomic: Whether an aggregate's envelopes of one submission are stored all or none.
    """

    def __init__(
        self,
        seed: int,
        *,
        kind: Callable[[Random], Kind] | None = None,
        faults: Faults | None = None,
        dispatch: type[Dispatch] = Dispatch,
        one_per_aggregate: bool = True,
        dedupe: bool = True,
        batches: bool | None = None,
        replicated: bool | None = None,
        atomic: bool | None = None,
    ) -> None:
        self._clock = Clock(seed)
        random = self._random = self._clock.random
        drawn = (kind or random.choice(KINDS))(random)
        policy = drawn.policy._replace(
            one_per_aggregate=one_per_aggregate,
            atomic=drawn.policy.atomic if atomic is None else atomic,
        )
        self._kind = drawn._replace(policy=policy, faults=faults or drawn.faults)
        self._faults = self._kind.faults
        self._replicated = random.random() < 0.5 if replicated is None else replicated
        routed = random.random() < 0.7 if batches is None else batches
        topics = self._kind.topics if routed else ()
        routes = {topic: Route(f"S-{topic}", self._replicated, fresh=False) for topic in topics}
        self.problems: list[str] = []
        window = self._kind.duplicate_window
        self.dispatch = dispatch(
            policy,
            partial(prepare_each, self._prepare),
            Random(seed + 1),
            routes.get,
            lambda topic: window,
        )
        """What is tested, also for its counters."""
        self._record = Record(self._kind)
        self._events = Events(self._clock, self.dispatch, self._record)
        self._network = Network(self._clock, self._faults, self._kind.speed, self._events)
        self._transit = Transit()
        self._broker = Broker(
            self._clock,
            self._faults,
            self._events,
            self._network,
            dedupe=dedupe,
            duplicate_window=window,
            problems=self.problems,
        )
        self._lanes = [self.dispatch.add_lane() for _ in range(random.randint(1, 3))]
        self._by_wire: dict[object, Envelope] = {}
        self._tick_at = float("inf")
        self.later_appends = 0
        """Appends that were not the first of their batch."""

    def run(self) -> list[str]:
        """Play to the end; returns what was broken."""
        random, at = self._random, self._clock.at
        for lane in self._lanes:
            for _ in range(random.randint(*self._kind.submissions)):
                at(random.uniform(*self._kind.submitted), partial(self._submit, lane))
            if random.random() < 0.1:
                at(random.uniform(0, 1.5 * LAST_SUBMISSION), partial(self._close, lane))
        at(random.uniform(0, 2), self._connect)
        if self._replicated:
            self._broker.plan_quorum_loss()
        if random.random() < 0.05:
            at(random.uniform(0, HEALED), self._fail)
        for _ in range(MOST_STEPS):
            if not self._clock.step():
                break
            self._process()
        else:
            self.problems.append(f"runs forever: {self.dispatch!r} at {self.now:g} s")
        # It lets go of what is settled with the next tick, which comes when more is sent.
        self.dispatch.tick(self.now)
        self.problems += check_results(self._record, self._broker)
        self.problems += check_order(self._record, self._broker)
        self.problems += left_behind(self.dispatch, self._lanes)
        return self.problems

    # What happened

    @property
    def now(self) -> float:
        """How long it has run, in simulated seconds."""
        return self._clock.now

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How the envelopes of this run ended."""
        every = self._record.results.values()
        return Counter(result.settled.outcome for results in every for result in results)

    @property
    def disconnections(self) -> int:
        """How often the connection was lost."""
        return self._network.disconnections

    @property
    def dropped(self) -> int:
        """How many messages in process a new leader never heard of."""
        return self._broker.dropped

    # The producers

    def _prepare(self, envelope: Envelope) -> str:
        if envelope.topic == "bad":
            raise EnvelopeError("the topic is bad")
        self._by_wire[envelope.event_id] = envelope
        return envelope.event_id

    def _submit(self, lane: LaneQueue) -> None:
        record = self._record
        if lane in record.closed:
            return
        random, kind, envelopes = self._random, self._kind, list[Envelope]()
        submission = len(record.accepted)
        before = set(record.accepted)
        for _ in range(random.choice(kind.submission_sizes)):
            bad = random.random() < 0.02
            topic = "bad" if bad else random.choice(kind.topics)
            envelope = Envelope(
                topic=topic,
                payload=PAYLOAD[: random.choice(kind.sizes)],
                event_id=f"e{len(record.accepted)}",
                aggregate_id=random.choice((None, "s") if topic == "stuck" else kind.aggregates),
            )
            grouped = kind.policy.atomic and envelope.aggregate_id is not None and not bad
            group = (submission, envelope.aggregate_id) if grouped else envelope.event_id
            record.accepted[envelope.event_id] = Accepted(envelope, lane, self.now, group)
            envelopes.append(envelope)
        self.dispatch.submit(lane, envelopes, epoch=1, now=self.now)
        self._take()
        if record.results.keys() >= before:
            record.progress = self.now
        if record.failed:
            self._fail()

    def _close(self, lane: LaneQueue) -> None:
        self._record.closed.add(lane)
        self.dispatch.remove_lane(lane)

    def _fail(self) -> None:
        self._record.failed = True
        self.dispatch.abandon("the publisher cannot go on")

    # The pool, in short

    def _process(self) -> None:
        first = self.dispatch.position
        while (outgoing := self.dispatch.next_send(self.now)) is not None:
            self._send(outgoing)
        self._note_taken(first)
        self._take()
        self.problems += check_window(self.dispatch, self._kind)
        self.problems += check_progress(self._record, self.now)
        due = self.dispatch.next_tick()
        if due < self._tick_at:
            self._tick_at = due
            self._clock.at(max(due, self.now), self._tick)

    def _note_taken(self, first: int) -> None:
        position = self._transit.look(first, *self._network.transit())
        if position is not None:
            self.dispatch.taken(position, self.now)

    def _take(self) -> None:
        stalled = self._record.stalled(self.now)
        for lane, settlements in self.dispatch.take_settled():
            for settled in (each for some in settlements for each in each_settled(some)):
                event_id = settled.entry.envelope.event_id
                self._record.results[event_id].append(Result(self.now, settled, stalled))
                if settled.outcome is not Outcome.UNKNOWN and settled.entry.attempts:
                    self._record.progress = self.now
                if self._record.accepted[event_id].lane is not lane:
                    self.problems.append(f"{event_id} was settled in another lane")

    def _tick(self) -> None:
        self._tick_at = float("inf")
        self._note_taken(self.dispatch.position)
        self.dispatch.tick(self.now)
        due = self.dispatch.next_tick()
        if due <= self.now:
            self.problems.append(f"after the tick at {self.now} the next is due at {due}")

    # The publisher, in short

    def _connect(self) -> None:
        if self._record.failed or self.now > self._faults.no_return_after:
            return
        self._network.connect()
        self.dispatch.connected(self.now)
        end = self.now + self._random.expovariate(1 / self._faults.mean_uptime)
        if end < HEALED:
            self._clock.at(end, self._disconnect)

    def _disconnect(self) -> None:
        if self._network.cut():
            self._broker.restart()
        self._events.cut()
        self._transit.clear()
        self.dispatch.disconnected("the connection is lost", self.now)
        self._clock.at(self.now + self._random.choice(self._faults.outages), self._connect)

    def _send(self, outgoing: Outgoing) -> None:
        if isinstance(outgoing, Append):
            self._send_append(outgoing)
        elif isinstance(outgoing, Ask):
            self._network.ask(outgoing, self._broker.known, self._kind.policy.attempt_seconds)
        elif isinstance(outgoing, Groups):
            self._send_singles(outgoing.number, outgoing.envelopes)
        else:
            self._send_singles(outgoing.number, [[each] for each in outgoing.envelopes])

    def _send_singles(self, number: int, sent: list[list[Envelope]]) -> None:
        """Singles, or groups: each has an answer of its own."""
        aggregates = set[str]()
        for index, envelopes in enumerate(sent):
            aggregate = envelopes[0].aggregate_id
            if aggregate in aggregates and self._kind.policy.one_per_aggregate:
                self.problems.append(f"two of aggregate {aggregate} are in send {number}")
            aggregates.add(aggregate or "")
            self.problems += check_patience(self._record, envelopes, self.now)
            request = Request(number, index, tuple(envelopes))
            taken = self._network.send(request, self._broker.arrive)
            self._events.sent(number, index, envelopes, taken)

    def _send_append(self, append: Append) -> None:
        self.problems += check_routes(self.dispatch)
        self.later_appends += bool(append.first and append.wires)
        envelopes = [self._by_wire[wire] for wire in append.wires]
        self._events.appended(append.number, envelopes)
        messages = list(enumerate(envelopes, start=append.first))
        end = append.first + len(envelopes) if append.last else None
        sent = SentAppend(append.number, append.topic, messages, append.flow, append.again, end)
        self._network.send_append(sent, self._broker.arrive_append)
