"""A dispatch between simulated lanes and a simulated broker, in simulated time, all from one seed.

    lanes ── submit ──► Dispatch ── next_send ──► network ──► broker
                           ▲                                    │
                           └──────── reports ◄── network ◄──────┘

The network loses, delays, repeats and re-orders; the broker refuses, restarts and loses its
quorum. `World(seed).run()` plays one run to its end and returns what was broken, as sentences; the
same seed plays the same run.
"""

from collections import Counter
from functools import partial
from random import Random

from bytewax_jetstream.dispatch import Dispatch, LaneQueue
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.publishing import Append, Ask, Groups, Outgoing, Policy, Route, prepare_each
from tests.support.dispatching import each_settled
from tests.support.simulation.broker import Broker
from tests.support.simulation.checks import (
    Accepted,
    Record,
    check_order,
    check_progress,
    check_results,
    check_routes,
    check_window,
    left_behind,
)
from tests.support.simulation.clock import HEALED, Clock
from tests.support.simulation.faults import Faults, some_faults
from tests.support.simulation.network import Network, Request

__all__ = ["World"]

LAST_SUBMISSION = 6.0
MOST_STEPS = 20_000
"""A run of some hundred envelopes takes a tenth of that; more means that it goes in circles."""


class World:
    """One run.

    :arg dispatch: The class under test.
    :arg one_per_aggregate: As in `Policy`; without it, retries change the order.
    :arg dedupe: Whether the broker knows event ids; without it, retries are stored twice.
    :arg batches: Whether streams take batches; drawn from the seed when not given, like the rest.
    :arg replicated: Whether the broker is.
    :arg atomic: Whether an aggregate's envelopes of one submission are stored all or none.
    :arg faults: How unreliable it all is.
    """

    def __init__(
        self,
        seed: int,
        *,
        dispatch: type[Dispatch] = Dispatch,
        one_per_aggregate: bool = True,
        dedupe: bool = True,
        batches: bool | None = None,
        replicated: bool | None = None,
        atomic: bool | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._clock = Clock(seed)
        random = self._random = self._clock.random
        self._faults = faults or some_faults(random)
        patient = random.random() < 0.5
        policy = self._policy = Policy(
            delivery_timeout=60.0 if patient else random.choice((1.0, 4.0, 10.0)),
            ack_timeout=random.choice((0.2, 1.0)),
            one_per_aggregate=one_per_aggregate,
            window=random.choice((1, 4, 16, 1000)),
            window_bytes=random.choice((100, 1000, 1_000_000)),
            max_send=random.choice((1, 3, 64)),
            flow_interval=random.choice((1, 3)),
            atomic=random.random() < 0.3 if atomic is None else atomic,
        )
        self._replicated = random.random() < 0.5 if replicated is None else replicated
        routed = random.random() < 0.7 if batches is None else batches
        topics = ("good", "other") if routed else ()
        routes = {topic: Route(f"S-{topic}", self._replicated, fresh=False) for topic in topics}
        self.problems: list[str] = []
        self.dispatch = dispatch(
            policy, partial(prepare_each, self._prepare), Random(seed + 1), routes.get
        )
        """What is tested, also for its counters."""
        self._network = Network(self._clock, self._faults, self.dispatch)
        self._broker = Broker(
            self._clock,
            self._faults,
            self.dispatch,
            self._network,
            flow_interval=policy.flow_interval,
            dedupe=dedupe,
            problems=self.problems,
        )
        self._lanes = [self.dispatch.add_lane() for _ in range(random.randint(1, 3))]
        self._record = Record(policy, patient)
        self._by_wire: dict[object, Envelope] = {}
        self._tick_at = float("inf")
        self.later_appends = 0
        """Appends that were not the first of their batch."""

    def run(self) -> list[str]:
        """Play to the end; returns what was broken."""
        random, at = self._random, self._clock.at
        for lane in self._lanes:
            for _ in range(random.randint(1, 6)):
                at(random.uniform(0, LAST_SUBMISSION), partial(self._submit, lane))
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
        return Counter(settled.outcome for results in every for _, settled in results)

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
        random, envelopes, submission = self._random, [], len(record.accepted)
        before = set(record.accepted)
        for _ in range(random.choice((1, 5, 30))):
            bad = random.random() < 0.02
            envelope = Envelope(
                topic="bad" if bad else random.choice(("good", "good", "good", "other")),
                payload=b"." * random.choice((0, 10, 90, 300)),
                event_id=f"e{len(record.accepted)}",
                aggregate_id=random.choice((None, "a", "b", "c")),
            )
            grouped = self._policy.atomic and envelope.aggregate_id is not None and not bad
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
        while (outgoing := self.dispatch.next_send(self.now)) is not None:
            self._send(outgoing)
        self._take()
        self.problems += check_window(self.dispatch, self._policy)
        self.problems += check_progress(self._record, self.now)
        due = self.dispatch.next_tick()
        if due < self._tick_at:
            self._tick_at = due
            self._clock.at(max(due, self.now), self._tick)

    def _take(self) -> None:
        for lane, settlements in self.dispatch.take_settled():
            for settled in (each for some in settlements for each in each_settled(some)):
                event_id = settled.entry.envelope.event_id
                self._record.results[event_id].append((self.now, settled))
                if settled.outcome is not Outcome.UNKNOWN and settled.entry.attempts:
                    self._record.progress = self.now
                if self._record.accepted[event_id].lane is not lane:
                    self.problems.append(f"{event_id} was settled in another lane")

    def _tick(self) -> None:
        self._tick_at = float("inf")
        self.dispatch.tick(self.now)
        due = self.dispatch.next_tick()
        if due <= self.now:
            self.problems.append(f"after the tick at {self.now} the next is due at {due}")

    # The publisher, in short

    def _connect(self) -> None:
        if self._record.failed:
            return
        self._network.connect()
        self.dispatch.connected(self.now)
        end = self.now + self._random.expovariate(1 / self._faults.mean_uptime)
        if end < HEALED:
            self._clock.at(end, self._disconnect)

    def _disconnect(self) -> None:
        if self._network.cut():
            self._broker.restart()
        self.dispatch.disconnected("the connection is lost", self.now)
        self._clock.at(self.now + self._random.choice((0.01, 0.5, 3.0)), self._connect)

    def _send(self, outgoing: Outgoing) -> None:
        if isinstance(outgoing, Append):
            self._send_append(outgoing)
            return
        if isinstance(outgoing, Ask):
            self._ask(outgoing)
            return
        if isinstance(outgoing, Groups):
            sent = outgoing.envelopes
        else:
            sent = [[envelope] for envelope in outgoing.envelopes]
        aggregates = set[str]()
        for index, envelopes in enumerate(sent):
            aggregate = envelopes[0].aggregate_id
            if aggregate in aggregates and self._policy.one_per_aggregate:
                number = outgoing.number
                self.problems.append(f"two of aggregate {aggregate} are in send {number}")
            aggregates.add(aggregate or "")
            request = Request(outgoing.number, index, tuple(envelopes))
            self._network.send(request, self._broker.arrive)

    def _ask(self, ask: Ask) -> None:
        """The broker says what it knows, or is not heard; that is never silent for ever."""

        def answer() -> None:
            heard = not self._clock.chance(self._faults.drop_answer)
            known = [self._broker.known(each) if heard else None for each in ask.envelopes]
            self.dispatch.known(ask.number, known)

        self._clock.at(self.now + self._clock.delay(self._faults.delay), answer)

    def _send_append(self, append: Append) -> None:
        self.problems += check_routes(self.dispatch)
        self.later_appends += bool(append.first and append.wires)
        envelopes = [self._by_wire[wire] for wire in append.wires]
        messages = list(enumerate(envelopes, start=append.first))
        end = append.first + len(envelopes) if append.last else None
        self._network.send_append(append.number, messages, end, self._broker.arrive_append)
