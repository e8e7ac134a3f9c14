"""The rules, begin here: accepts, gives lanes turns, passes answers to `Batches` and `Singles`.

One `Dispatch` serves one publisher. Things happen to it (`submit`, `connected`, `acked`,
`batch_ended`, `refused`, `disconnected`, `tick`), with their time where it matters. It answers
with what to send (`next_send`) and with what has ended (`take_settled`). The pool turns that into
threads and sockets, the tests into thousands of simulated seconds.

The rules:

1. Lanes take turns. What a lane accepted is sent in order, as far as the rules below allow it.
2. Where a stream takes batches, a lane has one batch in flight (one for each route, where one
   segment was split by route), and nothing else of the same aggregates. What is submitted
   meanwhile is appended to it, or goes in the next one.
3. What was sent behind a refused message of a batch is sent again. So that less is sent in vain,
   the next batch may have only as many messages in flight as this one had stored (at least 16),
   and one more for each message that is stored.
4. A message that is alone, and whatever a route does not take, goes as a single, in its place in
   the order. With `atomic`, one aggregate's envelopes of a submission are a group: one entry,
   stored all or none.
5. Where the publisher asks for it, one single of an aggregate is in flight at a time. A retry
   inside a full window would change the order (measured: 8,139 inversions without, 0 with).
6. An attempt that is silent for the ack timeout is tried again with the same event id, as a
   single, after a jittered pause. What a lost connection cut off goes on the next one, before what
   waits: a batch as a batch, of which the ids are asked for first, or as singles if it was lost
   before and nothing of it was stored since.
7. A message refused for good is rejected. If an earlier attempt of it was never answered, it is
   unknown instead, because that attempt may have stored it. So is a message that keeps failing,
   and everything unsettled on a connection without progress: see `clocks`.
8. Behind an unknown message, nothing is sent of what its lane has accepted of its aggregate, until
   the caller has collected that result. It is unknown too.
9. After an attempt that was not answered, a message is not sent again once its stream may have
   forgotten its event id: it is unknown.
10. A replicated stream is given batches only of what cannot be in process there: see `doubts`.
11. When a single turns out to be a duplicate, the ids of those held behind it are asked for, many
    at once, before more of its aggregate is sent.
12. How much may be in flight follows the link and the broker: see `Window`.

Each piece of state has one owner, and the others call its methods:

    Dispatch      which lanes there are, whose turn it is      (here)
    LaneQueue     what waits in a lane, what is held back      lane_queue; rule 8
    Batches       batches in flight                            batches; rules 2 and 3, examples
    Singles       singles in flight and backing off            singles; rules 4 to 7, 9
    Doubts        ids in process, streams in doubt             doubts; rule 10, an example
    Asks          what of the held singles is asked for        asks; rule 11, an example
    Window        how much is in flight, what goes out next    window; rule 12, an example
    Settlements   what has ended                               settlements
    Answers       when silent attempts were renewed            clocks; rules 6 and 7
    Retries       how many attempts were made again, and why   retries
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from math import inf
from random import Random

from ..envelope import Envelope, Outcome
from ..errors import EnvelopeError
from ..publishing import Outgoing, Policy, Receipt, Refusal, Route, Verdict, Wire
from .asks import Asks
from .batches import Batches, Plan
from .clocks import Answers
from .doubts import Doubts
from .lane_queue import LaneQueue
from .retries import Retries, Why
from .segment import Entry, Submission, segments_of
from .settlements import Settlement, Settlements
from .singles import Singles
from .window import Window

__all__ = ["Dispatch"]

FEW = 64
"""Envelopes of a lane that go as singles while its stream is in doubt: when the doubt ends, what
has begun as a single still goes one by one."""


class Dispatch:
    """The decisions for one publisher.

    :arg prepare: Makes of each envelope what the publisher sends, or an `EnvelopeError`.
    :arg route: Which route takes batches of a topic, if one does; may change its answer.
    :arg duplicate_window: For how many seconds the stream of a topic remembers an event id; None
        if it does not, or if that is not known.
    """

    def __init__(
        self,
        policy: Policy,
        prepare: Callable[[Sequence[Envelope]], list[Wire | EnvelopeError]],
        random: Random,
        route: Callable[[str], Route | None] = lambda topic: None,
        duplicate_window: Callable[[str], float | None] = lambda topic: None,
    ) -> None:
        self._policy = policy
        self._prepare = prepare
        self._lanes: dict[LaneQueue, None] = {}
        """All that are served, in the order in which they came."""
        self._changed: dict[LaneQueue, None] = {}
        """Lanes that may be able to send, to be looked at before the next send."""
        self._turns: dict[LaneQueue, None] = {}
        """Lanes with something to send, the next first."""
        self._connected = False
        self._accepted = 0
        self._answered = 0
        """What was settled by answers when it was last looked at."""
        self._progress_at = 0.0
        """When the last answer settled something, or something was accepted while nothing was
        unsettled."""
        self._last_answers_at = 0.0
        """While nothing is sent any more for lack of progress: until when answers are awaited that
        tell rejected from unknown."""
        self._window = Window(policy)
        self._answers = Answers()
        self._retries = Retries()
        self._doubts = Doubts(route, policy.ack_timeout or 0.0)
        self._settlements = Settlements(policy, self._doubts)
        self._asks = Asks(policy, self._window, self._settlements)
        owners = policy, self._window, self._doubts, self._settlements, self._answers
        self._singles = Singles(
            *owners, self._retries, self._asks, self._lanes.keys(), random, duplicate_window
        )
        self._batches = Batches(*owners, self._retries, self._singles, route)

    def __repr__(self) -> str:
        state = "connected" if self._connected else "disconnected"
        return (
            f"<Dispatch {state}, {self.in_flight} in flight, "
            f"{self._singles.backing_off} backing off, {len(self._lanes)} lanes>"
        )

    @property
    def in_flight(self) -> int:
        """How many messages are sent and awaited."""
        return self._window.messages - self._singles.held_messages

    @property
    def progress_at(self) -> float:
        """When the last answer settled something or, if that was later, when something was accepted
        while nothing was unsettled; infinite while nothing is.
        """
        return self._progress_at if self.unsettled > 0 else inf

    def waits_for(self) -> str:
        """What the unsettled envelopes wait for, in words."""
        if not self._connected:
            return "there is no connection"
        refusal = self._singles.last_refusal
        return f"the last refusal: {refusal.reason}" if refusal else "no answer"

    @property
    def position(self) -> int:
        """The position of the next message that is sent."""
        return self._window.position

    @property
    def unsettled(self) -> int:
        """How many envelopes were accepted and have not ended."""
        return self._accepted - self._settlements.settled

    # What happens to it

    def add_lane(self) -> LaneQueue:
        """Serve another lane from now on."""
        lane = LaneQueue(self._changed, one_per_aggregate=self._policy.one_per_aggregate)
        self._lanes[lane] = None
        return lane

    def remove_lane(self, lane: LaneQueue) -> None:
        """Forget a lane; whatever it had unsettled is settled as unknown."""
        self._abandon(
            {lane}, Refusal(Verdict.GIVE_UP, "its lane was closed before it was answered")
        )
        self._lanes.pop(lane, None)
        self._changed.pop(lane, None)
        self._batches.forget_lane(lane)

    def submit(
        self,
        lane: LaneQueue,
        envelopes: Sequence[Envelope],
        epoch: int,
        now: float,
        seen: int = 0,
        handed_over: float | None = None,
    ) -> None:
        """Accept envelopes: each waits, or is rejected now if it can never be stored as it is.

        :arg seen: How many unknown results of this lane the caller had collected.
        :arg handed_over: When the caller handed them over.
        """
        submission = Submission(now, epoch, seen, handed_over)
        if lane.broken:
            if lane.unswept:
                self._settlements.not_sent(lane, lane.take_broken())
            lane.heal(seen)
        if not self.unsettled:
            self._start_clock(now)
        self._accepted += len(envelopes)
        wires = self._prepare(envelopes)
        if EnvelopeError in set(map(type, wires)):
            envelopes, wires = self._reject_bad(lane, submission, envelopes, wires)
        lane.enqueue(segments_of(submission, envelopes, wires, atomic=self._policy.atomic))

    def connected(self, now: float) -> None:
        """The publisher can send."""
        self._connected = True
        self._singles.connected(now)
        self._batches.connected(now)

    def disconnected(self, reason: str, now: float) -> None:
        """What is in flight may be lost, and is tried again."""
        self._connected = False
        self._window.withdraw()
        refusal = Refusal(Verdict.RETRY, reason)
        self._singles.disconnected(refusal, now)
        self._batches.disconnected(refusal, now)
        self._asks.disconnected()
        self._answers.clear()

    def taken(self, position: int, now: float) -> None:
        """The peer took bytes of what was sent at this position."""
        self._answers.add(position - 1, now)

    def acked(self, number: int, index: int, receipt: Receipt, now: float) -> None:
        """The broker stored a single, or a group."""
        self._singles.acked(number, index, receipt, now)

    def acked_many(self, acks: Iterable[tuple[int, int, Receipt]], now: float) -> None:
        """The broker stored singles: number, index and receipt of each."""
        self._singles.acked_many(acks, now)

    def batch_stored(
        self,
        number: int,
        count: int,
        now: float,
        stream: str | None = None,
        *,
        duplicate: bool | None = None,
    ) -> None:
        """The broker stored the first messages of a batch, which goes on."""
        self._batches.stored(number, count, now, duplicate=duplicate, stream=stream)

    def batch_ended(self, number: int, count: int, now: float, stream: str | None = None) -> None:
        """A batch is over: complete, at a refusal, or for an unknown reason."""
        self._batches.ended(number, count, now, stream)

    def batch_returned(
        self, number: int, count: int, now: float, *, duplicate: bool | None = None
    ) -> None:
        """A batch is over; what it did not store goes as singles."""
        self._batches.returned(number, count, now, duplicate=duplicate)

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> None:
        """The broker did not store a single; of a batch, nothing from that index on."""
        if not self._batches.refused(number, index, refusal, now):
            self._singles.refused(number, index, refusal, now)

    def delayed(self, number: int, index: int, refusal: Refusal) -> None:
        """The publisher itself tries a single again."""
        self._singles.delayed(number, index, refusal)

    def group_known(self, number: int, index: int, receipts: Sequence[Receipt | None]) -> None:
        """The broker stored some envelopes of a group before; the others go again."""
        self._singles.group_known(number, index, receipts)

    def known(self, number: int, receipts: Sequence[Receipt | None]) -> None:
        """The broker was asked for event ids: those with a receipt are stored."""
        self._asks.known(number, receipts)

    def tick(self, now: float) -> None:
        """Time has passed: end silent attempts, and pauses and clocks that are over."""
        self._look(now)
        no_progress_at = self._no_progress_at()
        if no_progress_at <= now:
            self._last_answers_at = self._singles.refused_until(no_progress_at)
            if self._last_answers_at <= now:
                self._abandon(self._lanes.keys(), None)
                self._start_clock(now)
        self._batches.tick(now)
        self._singles.tick(now)
        self._answers.forget_before(min(self._singles.oldest(), self._batches.oldest()))

    def abandon(self, reason: str) -> None:
        """Settle everything as unknown: the publisher is closed, or cannot go on."""
        self._connected = False
        self._abandon(self._lanes.keys(), Refusal(Verdict.GIVE_UP, reason))

    # What it answers

    def next_send(self, now: float) -> Outgoing | None:
        """What to send next; None while there is nothing, no connection or no room."""
        self._look(now)
        window = self._window
        full = window.messages >= window.limit or window.bytes >= window.limit_bytes
        if full or window.full_at is not None:
            window.follow_link(now)
        outgoing = window.outgoing
        while self._connected and not outgoing and not self._last_answers_at:
            if self._changed:
                for lane in list(self._changed):
                    self._admit(lane, now)
                self._changed.clear()
            if not self._give_turn(now):
                if self._batches.sent:
                    self._batches.end_idle()
                break
        return outgoing.popleft() if outgoing else None

    def take_settled(self) -> list[tuple[LaneQueue, list[Settlement]]]:
        """What was settled since the last call, by lane, in the order of settlement."""
        return self._settlements.take()

    def next_tick(self) -> float:
        """When `tick` has something to do at the latest, if nothing else happens."""
        no_progress_at = max(self._no_progress_at(), self._last_answers_at)
        return min(no_progress_at, self._singles.next_tick(), self._batches.next_tick())

    def in_flight_at(self, number: int, index: int) -> list[Envelope]:
        """What is awaited at an index: several envelopes if they are a group."""
        batch = self._batches.sent.get(number)
        if batch is not None:
            return batch.at(index)
        return self._singles.in_flight(number, index)

    def in_flight_on(self, topic: str) -> list[tuple[int, int]]:
        """Number and index of all that is in flight on a topic."""
        return self._singles.in_flight_on(topic) + self._batches.in_flight_on(topic)

    def oldest_submitted(self) -> float:
        """Since when the oldest unsettled envelope waits; infinite when nothing is unsettled.

        Any thread may ask. So it looks at copies, in the order in which an envelope moves on; what
        is put back for a retry at this very moment may be missed.
        """
        lanes = list(self._lanes)
        found = [each.submission for lane in lanes for each in list(lane.waiting)]
        found += [each.submission for lane in lanes for each in lane.entries() if not each.done]
        found += self._batches.submissions()
        found += [each.submission for _, each in self._singles.unsettled(set(lanes))]
        return min([submission.since for submission in found], default=inf)

    @property
    def retries(self) -> Mapping[Why, int]:
        """How many attempts were made again, by reason: always the same reasons."""
        return self._retries.by_reason

    def statistics(self) -> dict[str, int]:
        """The counters."""
        return {
            "connected": self._connected,
            "in_flight": self.in_flight,
            "admitted_bytes": self._window.bytes,
            "retries": sum(self._retries.by_reason.values()),
            "late_acks": self._singles.late_acks,
            "batches": self._batches.batches,
            "messages_in_batches": self._batches.messages_in_batches,
            "streams_in_doubt": len(self._doubts),
        }

    # Turns

    def _admit(self, lane: LaneQueue, now: float) -> None:
        """Decide for what waits, in order, how it goes, as far as that can be decided now."""
        if lane.unswept:
            self._settlements.not_sent(lane, lane.take_broken())
        plan = Plan.WAIT
        while lane.waiting and lane.singles < self._policy.window:
            plan = self._batches.plan(lane, now)
            if plan is Plan.FEW_SINGLES and lane.singles < FEW:
                if not lane.waiting[0].group and lane.waiting[0].count > FEW - lane.singles:
                    lane.split_first(FEW - lane.singles)
            elif plan is not Plan.SINGLES:
                break
            lane.enter_ready(lane.pop_first().entries())
        if lane.ready or plan is Plan.BATCH:
            self._turns.setdefault(lane)

    def _give_turn(self, now: float) -> bool:
        """Let the next lane send; False when there is none, or no room."""
        policy, window = self._policy, self._window
        room = window.limit - window.messages
        if not self._turns or room <= 0 or window.bytes >= window.limit_bytes:
            return False
        lane = next(iter(self._turns))
        if not lane.ready and window.messages and room < policy.flow_interval:
            return False  # until there is room for an append worth its answer
        del self._turns[lane]
        if lane.ready:
            self._singles.send(lane, now)
        else:
            self._batches.send(lane, now)
        self._changed[lane] = None
        return True

    # The end of deliveries

    def _look(self, now: float) -> None:
        """Note progress: an answer has settled something since the last look."""
        answered = self._settlements.answered
        if answered != self._answered:
            self._answered = answered
            self._start_clock(now)

    def _start_clock(self, now: float) -> None:
        """The connection's clock begins again, and what waits may be sent."""
        self._progress_at, self._last_answers_at = now, 0.0

    def _no_progress_at(self) -> float:
        """When all that is unsettled is given up, unless there is progress before."""
        return self.progress_at + self._policy.delivery_timeout

    def _abandon(self, lanes: Set[LaneQueue], refusal: Refusal | None) -> None:
        """Settle all of these lanes as unknown: without a refusal, for lack of progress."""
        self._singles.abandon(lanes, refusal)
        self._batches.abandon(lanes, refusal)
        for lane in lanes:
            for segment in lane.clear_waiting():
                self._settlements.abandon(lane, segment.entries(), refusal)
            self._turns.pop(lane, None)

    def _reject_bad(
        self,
        lane: LaneQueue,
        submission: Submission,
        envelopes: Sequence[Envelope],
        wires: Sequence[Wire | EnvelopeError],
    ) -> tuple[list[Envelope], list[Wire | EnvelopeError]]:
        """Settle what can never be stored as it is; returns the rest."""
        good = []
        for envelope, wire in zip(envelopes, wires, strict=True):
            if isinstance(wire, EnvelopeError):
                entry = Entry(envelope, submission, None)
                refusal = Refusal(Verdict.REJECT, str(wire))
                self._settlements.settle(
                    lane, entry, Outcome.REJECTED, refusal=refusal, answered=False
                )
            else:
                good.append((envelope, wire))
        return [envelope for envelope, _ in good], [wire for _, wire in good]
