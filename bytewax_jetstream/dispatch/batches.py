"""`Batches`: which route takes what waits; appends, stored prefixes, refusals, lost batches.

A stream stores the messages of a batch in order and, after one it refuses, none of the rest.
A lane has one batch in flight, and nothing else of the same aggregates. What is submitted
meanwhile is appended to it, or goes in the next one. The server acknowledges a batch at intervals
(flow acks: the first n messages are stored) and at its end; it is ended when there is nothing to
append and the server would say nothing before the end.

A refused message. Batch 7 carries e1 to e5; e3 is too large for the stream.

    sent       append of batch 7: e1 e2 e3 e4 e5, last
    answered   refused: index 2 (e3)       -> remembered: e3 is the first that was not stored
    answered   batch ended: 2 stored       -> e1, e2 are stored
                                              e3 is rejected: it is the one after the stored ones
                                              e4, e5 are definitely not stored: back to the front
                                              of what waits
    sent       append of batch 8: e4 e5, last
    answered   batch ended: 2 stored       -> e4, e5 are stored

  Everything behind a refused message is sent in vain. So the next batch may only have as many
  messages in flight as this one had stored (`reach`, at least 16), one more for each stored.

A lost batch. Batch 7 carries e1 to e5.

    sent       append of batch 7: e1 e2 e3 e4 e5, last
    answered   flow ack: 2 stored          -> e1, e2 are stored
    connection lost                        -> e3, e4, e5 may be stored: back to the front of what
                                              waits
    connected
    sent       append of batch 8: e3 e4 e5, last, again   (the publisher asks for their ids first)
    answered   batch 8: 1 stored, a duplicate             -> e3 is stored
    connection lost, and another           -> e4, e5 go again as a batch, because one was stored
    connection lost, and another           -> none was stored: one of them may be the reason, so
                                              each is tried again as a single

A silent batch, with an ack timeout of 5 s. Batch 7 carries e1 to e5.

    t = 0.0    append of batch 7: e1 e2 e3 e4 e5, last
    t = 0.1    flow ack: 2 stored          -> e1, e2 are stored
    t = 5.1    nothing since               -> e3, e4, e5 may be stored: each is tried again as a
                                              single, after a pause, with its own event id
    t = 5.15   singles, send 8: e3 e4 e5   (of one aggregate only the first; the rest is held)
    t = 5.2    acks of e3 (duplicate), e4 and e5 -> stored
    or         batch 7 ended: 5 stored, late     -> e3, e4, e5 are stored; send 8 is not awaited

A doubt, where a replicated stream must not be given a batch at all: see `doubts`.
"""

from collections.abc import Callable, Set
from enum import Enum
from math import inf
from operator import itemgetter

from ..envelope import Envelope
from ..publishing import Append, Policy, Receipt, Refusal, Route, Verdict, Wire
from .batch import Batch, BatchLane
from .clocks import Answers
from .doubts import Doubts
from .lane_queue import LaneQueue
from .retries import Retries, Why
from .segment import Entry, Segment, Submission
from .settlements import Settlements
from .singles import Singles
from .window import Window

__all__ = ["Batches", "Plan"]

TOPIC = itemgetter(Envelope._fields.index("topic"))
LEAST_REACH = 16
"""Messages of a batch that may always be in flight, however early the one before was refused."""
FLOW_AGAIN = 64
"""Messages after which a batch that was lost is answered: the link may be slow."""


class Plan(Enum):
    """How what waits first in a lane is to go."""

    BATCH = "in a batch, now"
    WAIT = "in a batch, once what is in flight is settled"
    SINGLES = "as singles"
    FEW_SINGLES = "as singles, few at a time, because batches may go soon"


class Batches:
    """The batches of one publisher.

    :arg route: Which route takes batches of a topic, if one does; may change its answer.
    """

    def __init__(
        self,
        policy: Policy,
        window: Window,
        doubts: Doubts,
        settlements: Settlements,
        answers: Answers,
        retries: Retries,
        singles: Singles,
        route: Callable[[str], Route | None],
    ) -> None:
        self._policy = policy
        self._window = window
        self._doubts = doubts
        self._settlements = settlements
        self._answers = answers
        self._retries = retries
        self._singles = singles
        self._route = route
        self._lanes: dict[LaneQueue, BatchLane] = {}
        self.sent: dict[int, Batch] = {}
        """In flight and awaited, oldest first; read by all, changed here."""
        self._silent: dict[int, Batch] = {}
        """No longer awaited, oldest first, and kept until all of it is settled: a late answer
        still tells what is stored."""
        self._now = 0.0
        self.batches = 0
        """How many were begun."""
        self.messages_in_batches = 0

    # Deciding how envelopes go

    def plan(self, queue: LaneQueue, now: float) -> Plan:
        """How what waits first is to go; there must be something that waits."""
        lane = self._lanes.get(queue)
        if lane is not None and lane.in_flight:
            return Plan.BATCH if lane.may_append() and not queue.singles else Plan.WAIT
        first = queue.waiting[0]
        if first.alone or (queue.singles and queue.backing_off):
            return Plan.SINGLES  # rather than wait for singles that back off, which may take long
        self._now = now
        # Each topic once and in order: asking about a stream may put it in doubt.
        routes = map(self._route, dict.fromkeys([each[0] for each in first.envelopes]))
        in_doubt = [self._is_in_doubt(route) for route in routes if route is not None]
        if not in_doubt:
            return Plan.SINGLES
        if all(in_doubt) or (first.past is not None and self._may_be_in_process(first)):
            return Plan.FEW_SINGLES
        return Plan.WAIT if queue.singles else Plan.BATCH

    def may_send(self, queue: LaneQueue) -> bool:
        """Whether what waits may go in another batch, or in the one that is open."""
        if not queue.waiting or queue.singles:
            return False
        lane = self._lanes.get(queue)
        return lane is None or not lane.in_flight or lane.may_append()

    def send(self, queue: LaneQueue, now: float) -> None:
        """Send the next of what waits, if it may go: with the open batch, in another, or in one
        for each route.
        """
        if not self.may_send(queue) or self._end_overdue(queue, now):
            return
        self._now = now
        lane = self._lanes.get(queue)
        if lane is None:
            lane = self._lanes[queue] = BatchLane(queue)
        segments, route = self._take(lane)
        if route is not None:
            self._append(lane, segments, route, now)
        elif lane.open is not None:
            # Nothing goes with it: what waits is for another batch.
            self._send_end(lane.open)
        elif queue.waiting:
            for each, segment in self._sort(queue).items():
                self._append(lane, [segment], each, now, last=True)

    def end_idle(self) -> None:
        """End the batches that cannot go on now and of which the server says nothing before their
        end.
        """
        for batch in list(self.sent.values()):
            if batch.lane.open is batch and batch.count - batch.stored <= batch.flow:
                self._send_end(batch)

    # What the broker says

    def stored(
        self,
        number: int,
        count: int,
        now: float,
        *,
        duplicate: bool | None = None,
        stream: str | None = None,
    ) -> None:
        """The first `count` messages of a batch are stored, in the stream that the broker named or
        else in that of its route.
        """
        batch = self.sent.get(number)
        if batch is None:
            self._stored_late(number, count)
            return
        if count > batch.stored:
            self._answers.add(batch.position_of(min(count, batch.count) - 1), now)
        if batch.refusal is not None and count > batch.refusal[0]:
            # It was not of this message: a denial names only the topic it is for.
            batch.refusal = None
        receipt = Receipt(stream or batch.route.name, duplicate=duplicate)
        self._store(batch, min(count, batch.count) - batch.stored, receipt)
        if batch.lane.open is not batch and batch.count == batch.stored:
            self._end(batch)
        else:
            batch.lane.queue.mark_changed()

    def ended(self, number: int, count: int, now: float, stream: str | None = None) -> None:
        """A batch is over with its first `count` messages stored: complete, at a refusal, or for
        an unknown reason.
        """
        self.stored(number, count, now, stream=stream)
        batch = self.sent.get(number)
        if batch is None:
            return
        if batch.refusal is None or batch.refusal[0] != batch.stored:
            refusal = Refusal(Verdict.RETRY, "its batch ended before it")
            self._retry(batch, refusal, "cut_short", now, whole=self._may_go_again(batch))
            return
        lane = batch.lane
        self._end(batch)
        (refused,) = batch.segments[0].split(1).entries()
        lane.queue.put_back(batch.segments)
        lane.reach = max(LEAST_REACH, batch.stored)
        for segment in batch.segments:
            self._doubts.not_in_process(segment.envelopes)
        self._singles.take_over(lane.queue, refused, batch.refusal[1], now)

    def returned(
        self, number: int, count: int, now: float, *, duplicate: bool | None = None
    ) -> None:
        """A batch is over with its first `count` messages stored; the rest, definitely not stored,
        goes as singles.
        """
        self.stored(number, count, now, duplicate=duplicate)
        batch = self.sent.get(number)
        if batch is not None:
            self._end(batch)
            for segment in batch.segments:
                batch.lane.queue.enter_ready(segment.entries())

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> bool:
        """Nothing of a batch is stored from an index on, and its end will follow; False when no
        batch of that number is awaited.
        """
        batch = self.sent.get(number)
        if batch is None:
            return False
        if index >= batch.stored:
            self._answers.add(batch.position_of(index), now)
        if index >= batch.count:  # the server does not take the end: what it stored is not known
            self._retry(batch, refusal, "refused", now, whole=self._may_go_again(batch))
        elif index >= batch.stored and (batch.refusal is None or index < batch.refusal[0]):
            batch.refusal = index, refusal
            if index == 0:
                self.ended(number, 0, now)  # it never began
            elif batch.lane.open is batch:
                self._send_end(batch)  # or the server may not know that something is missing
        return True

    def disconnected(self, refusal: Refusal, now: float) -> None:
        """What is in flight may be lost: it goes again on the next connection."""
        for batch in reversed(list(self.sent.values())):  # the oldest comes to the front
            if self._may_go_again(batch):
                self._put_back(batch, refusal, "disconnected", now)
            else:
                lost = self._lose(batch, refusal, now)
                self._singles.retry_at_once(batch.lane.queue, lost, now)

    def connected(self, now: float) -> None:
        """What was lost waits for room from now on."""
        for queue in self._lanes:
            if queue.lost:
                queue.stop_clocks(now)

    # What time says

    def next_tick(self) -> float:
        """When `tick` has something to do."""
        return min([self._deadline(batch) for batch in self.sent.values()], default=inf)

    def tick(self, now: float) -> None:
        """Retry the batches that fell silent."""
        for batch in [batch for batch in self.sent.values() if self._deadline(batch) <= now]:
            # Late answers may still come, so it does not go again as a batch.
            why = self._settlements.why_silent()
            self._retry(batch, why, "timeout", now, whole=False)
        settled = [n for n, batch in self._silent.items() if all(e.done for e in batch.entries)]
        for number in settled:
            del self._silent[number]

    def _deadline(self, batch: Batch) -> float:
        return batch.waits_since(self._answers) + self._policy.attempt_seconds

    # What is in here

    def oldest(self) -> float:
        """The position of the oldest message in flight."""
        return min([batch.position_of(batch.stored) for batch in self.sent.values()], default=inf)

    def submissions(self) -> list[Submission]:
        """Those of all that is in flight."""
        return [each.submission for sent in list(self.sent.values()) for each in sent.segments]

    def in_flight_on(self, topic: str) -> list[tuple[int, int]]:
        """Number and index of all that is in flight on a topic."""
        return [
            (batch.number, index)
            for batch in self.sent.values()
            for index, each in enumerate(batch.topics(), start=batch.stored)
            if each == topic
        ]

    def abandon(self, queues: Set[LaneQueue], refusal: Refusal | None) -> None:
        """Settle all batches of these lanes as unknown, and forget them."""
        batches = [batch for batch in self.sent.values() if batch.lane.queue in queues]
        for batch in batches:
            self._end(batch)
            entries = [entry for segment in batch.segments for entry in segment.entries()]
            lost = [entry.envelope for entry in entries]
            self._doubts.given_up(lost, self._window.last_number)
            self._settlements.abandon(batch.lane.queue, entries, refusal)
        self._window.withdraw_numbers({batch.number for batch in batches})

    def forget_lane(self, queue: LaneQueue) -> None:
        """A lane was closed."""
        self._lanes.pop(queue, None)

    # Taking what waits

    def _is_in_doubt(self, route: Route) -> bool:
        return route.replicated and self._doubts.is_about(
            route, self._window.last_number, self._now
        )

    def _take(self, lane: BatchLane) -> tuple[list[Segment], Route | None]:
        """Take from what waits as much as goes on one route and has room; nothing when the first
        does not.
        """
        queue, window, segments = lane.queue, self._window, list[Segment]()
        route, in_flight = None, 0
        if lane.open is not None:
            route, in_flight = lane.open.route, lane.open.count - lane.open.stored
        policy = self._policy
        room = int(min(policy.max_send, window.limit - window.messages, lane.reach - in_flight))
        room_bytes = window.limit_bytes - window.bytes
        while queue.waiting and room > 0 and room_bytes > 0:
            segment = queue.waiting[0]
            if segment.alone:
                break
            if segment.count > room or segment.size > room_bytes:
                fitting = segment.fitting(room, room_bytes)
                if fitting < segment.count:
                    segment = queue.split_first(fitting)
            its_route = self._route_of_all(segment)
            if its_route is None or its_route != (route or its_route):
                break
            route = its_route
            segments.append(queue.pop_first())
            if route.replicated:
                self._doubts.add_batch(segment.envelopes)
            room -= segment.count
            room_bytes -= segment.size
        return segments, route if segments else None

    def _route_of_all(self, segment: Segment) -> Route | None:
        """The one route that takes all of a segment as it is, if there is one."""
        routes = {self._route(topic) for topic in set(map(TOPIC, segment.envelopes))}
        route = routes.pop()
        if routes or route is None or self._is_in_doubt(route):
            return None
        if route.replicated:
            ids = {envelope[2] for envelope in segment.envelopes}
            if len(ids) < segment.count or self._may_be_in_process(segment):
                return None
        return route

    def _may_be_in_process(self, segment: Segment) -> bool:
        in_process = self._doubts.in_process
        return bool(in_process) and not in_process.isdisjoint([e[2] for e in segment.envelopes])

    def _sort(self, queue: LaneQueue) -> dict[Route, Segment]:
        """Split what waits first by route, as far as its envelopes need not wait for each other.

        An aggregate has its order over all routes, so the split ends where one would be on two of
        them, and where an id may be in process already. What no route takes goes as singles.

        Example: topics `a` and `b` go to routes A and B, `c` to none; aggregates in brackets.
        `a1[x] b2[y] c3[z] a4[y]` gives A: `a1`, B: `b2`, a single `c3`; `a4` waits, because `y`
        has an envelope on its way to B.
        """
        segment = queue.pop_first()
        if segment.group:
            queue.enter_ready(segment.entries())
            return {}
        by_route: dict[Route | None, list[int]] = {}
        homes: dict[str, Route | None] = {}
        taken = 0
        for index, envelope in enumerate(segment.envelopes):
            route = None if segment.alone else self._route(envelope.topic)
            if route is not None and self._is_in_doubt(route):
                route = None
            if route is not None and envelope.event_id in self._doubts.in_process:
                if taken:
                    break
                route = None
            aggregate = envelope.aggregate_id
            if aggregate is not None and homes.setdefault(aggregate, route) != route:
                break
            if route is not None and route.replicated:
                self._doubts.add_batch([envelope])
            by_route.setdefault(route, []).append(index)
            taken += 1
        parts = {route: segment.part(indices) for route, indices in by_route.items()}
        segment.split(taken)
        queue.put_back([segment])
        alone = parts.pop(None, None)
        if alone is not None:
            queue.enter_ready(alone.entries())
        return {route: part for route, part in parts.items() if route is not None}

    # Sending

    def _append(
        self,
        lane: BatchLane,
        segments: list[Segment],
        route: Route,
        now: float,
        *,
        last: bool = False,
    ) -> None:
        """Send segments with the lane's open batch, or begin another."""
        batch = lane.open
        if batch is None and len(segments) == 1 and segments[0].count == 1:
            # Alone, a message costs less with an ack of its own.
            lane.queue.enter_ready(segments[0].entries())
            return
        # Copied: a segment may be split while a publisher still holds the append.
        topics, wires, size = list[str](), list[Wire](), 0
        for segment in segments:
            topics += map(TOPIC, segment.envelopes)
            wires += segment.wires
            segment.attempts += 1
            size += segment.size
        position = self._window.position
        again = any(segment.past is not None for segment in segments)
        if batch is None:
            number = self._window.next_number
            flow = self._flow(len(topics), size, again)
            batch = Batch(number, lane, route, segments, len(topics), position, now, flow)
            self.sent[number] = batch
            lane.in_flight += 1
            self.batches += 1
        else:
            batch.add(segments, len(topics), position, now)
        self.messages_in_batches += len(topics)
        in_flight = batch.count - batch.stored
        goes_on = lane.queue.waiting and in_flight < lane.reach
        last = last or (not goes_on and in_flight <= batch.flow)
        lane.open = None if last else batch
        first = batch.count - len(topics)
        append = Append(batch.number, batch.topic, first, topics, wires, last, batch.flow, again)
        self._window.send(append, len(topics), size)

    def _flow(self, messages: int, size: int, again: bool) -> int:
        """After how many messages of a batch its broker is to say how many it has stored: at least
        after each quarter of the window, and sooner if it was lost.
        """
        quarter = self._window.limit_bytes // 4 * messages // max(1, size)
        most = min(self._policy.flow_interval, FLOW_AGAIN) if again else self._policy.flow_interval
        return max(1, min(most, quarter))

    def _send_end(self, batch: Batch) -> None:
        batch.lane.open = None
        end = Append(batch.number, batch.topic, batch.count, [], [], True, batch.flow)
        self._window.send(end, 0, 0)
        if batch.count == batch.stored:
            self._end(batch)

    # The end of messages, and of a batch

    def _store(self, batch: Batch, count: int, receipt: Receipt) -> None:
        """The next `count` messages of a batch are stored."""
        if count <= 0:
            return
        batch.stored += count
        batch.lane.reach += count
        size, queue, whole = 0, batch.lane.queue, 0
        for segment in batch.segments:
            if segment.count > count:
                break
            count -= segment.count
            whole += 1
        stored = batch.segments[:whole]
        del batch.segments[:whole]
        if count:
            stored.append(batch.segments[0].split(count))
        messages = 0
        for segment in stored:
            messages += segment.count
            size += segment.size
            self._settlements.stored_segment(queue, segment, receipt)
        self._window.release(messages, size)

    def _end(self, batch: Batch) -> None:
        """A batch is no longer awaited; what is not known to be stored is no longer in flight."""
        lane = batch.lane
        if batch.segments:
            self._window.release(batch.count - batch.stored, batch.size())
        del self.sent[batch.number]
        lane.in_flight -= 1
        if lane.open is batch:
            lane.open = None
        lane.queue.mark_changed()

    def _lose(self, batch: Batch, refusal: Refusal, now: float) -> list[Entry]:
        """A batch gets no answer any more; returns what of it is unsettled, in order."""
        self._charge(batch, now)
        self._end(batch)
        self._silent[batch.number] = batch
        batch.entries = [entry for segment in batch.segments for entry in segment.entries()]
        silent = batch.entries
        if batch.refusal is not None:
            # Nothing was stored from the refused message on; what comes before it may be.
            index, its_refusal = batch.refusal
            silent = batch.entries[: index - batch.stored]
            batch.entries[index - batch.stored].last = its_refusal
        written = batch.written
        for entry in silent:
            until = self._singles.resend_until(entry.envelope.topic, written)
            entry.unanswered(refusal, until)
        for entry in batch.entries:
            entry.fail(now, self._policy.delivery_timeout)
            entry.run_clock(now)
        lost = [entry.envelope for entry in silent]
        self._doubts.unanswered(lost, self._window.last_number, now)
        return batch.entries

    def _retry(self, batch: Batch, refusal: Refusal, why: Why, now: float, *, whole: bool) -> None:
        """A batch is lost: what of it is unsettled goes again as a whole, or as singles after a
        pause.
        """
        if whole:
            self._put_back(batch, refusal, why, now)
            batch.lane.queue.stop_clocks(now)
        else:
            lost = self._lose(batch, refusal, now)
            self._singles.retry_later(batch.lane.queue, lost, why, now)

    def _may_go_again(self, batch: Batch) -> bool:
        """Whether a lost batch goes again as one: not if it was lost before and nothing of it has
        been stored since, because one of its messages may be the reason.
        """
        return batch.refusal is None and (batch.stored > 0 or batch.segments[0].past is None)

    def _put_back(self, batch: Batch, refusal: Refusal, why: Why, now: float) -> None:
        """A lost batch waits, before all that its lane has waiting."""
        self._charge(batch, now)
        self._end(batch)
        self._retries.add(why, batch.count - batch.stored)
        for segment in batch.segments:
            topics = set(map(TOPIC, segment.envelopes))
            until = min([self._singles.resend_until(topic, batch.written) for topic in topics])
            past = segment.lost()
            past.unanswered(refusal, until)
            past.fail(now, self._policy.delivery_timeout)
            past.run_clock(now)
            self._doubts.unanswered(segment.envelopes, self._window.last_number, now)
        batch.lane.queue.put_back(batch.segments)

    def _charge(self, batch: Batch, now: float) -> None:
        """Of what was lost before and went in a batch, only the first had a running clock."""
        past = batch.segments[0].past if batch.segments else None
        if past is not None:
            past.run_clock(batch.waits_since(self._answers))
            past.stop_clock(now)

    def _end_overdue(self, queue: LaneQueue, now: float) -> bool:
        """End what was lost and must not be sent any more; returns whether there was any."""
        overdue = queue.take_overdue_segments(now) if queue.lost else []
        for segment in overdue:
            assert segment.past is not None, "only what was lost is overdue"
            if segment.past.resend_until < now:
                self._settlements.forgotten(queue, segment.entries())
            else:
                self._settlements.give_up(queue, segment.entries())
        return bool(overdue)

    def _stored_late(self, number: int, count: int) -> None:
        batch = self._silent.get(number)
        if batch is not None:
            receipt = Receipt(batch.route.name)
            for entry in batch.entries[: max(0, count - batch.stored)]:
                self._singles.acked_late(batch.lane.queue, entry, receipt)
