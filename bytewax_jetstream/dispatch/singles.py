"""`Singles`: sends what is ready; acks, refusals, silence, backoff and the end of each envelope.

An entry in here is ready, held behind another of its aggregate, in flight, or backing off. What
is ready or held belongs to its lane's queue; what is in flight or backing off, to this module.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import count, groupby
from math import inf
from random import Random

from ..envelope import Envelope, Outcome
from ..publishing import Groups, Policy, Receipt, Refusal, Verdict
from ..publishing import Singles as SinglesOut
from .doubts import Doubts
from .lane_queue import LaneQueue
from .segment import Entry, Group
from .settlements import Settlements, SinglesStored
from .window import Window

__all__ = ["Singles"]


OVERDUE = 0.5
"""Seconds past its delivery timeout until a message is given up of which the broker's library,
which has that timeout too, has reported nothing."""


class _Sent:
    """Entries of one lane sent together; answered ones are None."""

    __slots__ = ("deadline", "entries", "lane", "number", "open", "sent")

    def __init__(
        self, number: int, lane: LaneQueue, entries: list[Entry], sent: float, deadline: float
    ) -> None:
        self.number = number
        self.lane = lane
        self.entries: list[Entry | None] = list(entries)
        self.sent = sent
        self.deadline = deadline
        self.open = len(entries)
        """How many are not answered."""

    def at(self, index: int) -> Entry | None:
        """What is awaited at an index; an answer can name any number."""
        return self.entries[index] if 0 <= index < len(self.entries) else None

    def unanswered(self) -> list[Entry]:
        """What is still awaited."""
        return [entry for entry in self.entries if entry is not None and not entry.done]


class Singles:
    """The singles of one publisher that are in flight or backing off."""

    def __init__(
        self,
        policy: Policy,
        window: Window,
        doubts: Doubts,
        settlements: Settlements,
        lanes: Set[LaneQueue],
        random: Random,
    ) -> None:
        self._policy = policy
        self._window = window
        self._doubts = doubts
        self._settlements = settlements
        self._lanes = lanes
        """All lanes that are served; the dispatch's."""
        self._random = random
        self._sent: dict[int, _Sent] = {}
        """In flight and awaited, oldest first."""
        self._silent: dict[int, _Sent] = {}
        """No longer awaited, oldest first, and kept until all of it is settled: a late ack still
        tells that an envelope is stored."""
        self._backing_off: list[tuple[float, int, LaneQueue, Entry]] = []
        self._ties = count()
        """Entries that back off until the same moment resume in the order in which they came."""
        self.retries = 0
        self.late_acks = 0

    @property
    def backing_off(self) -> int:
        """How many wait until they are tried again."""
        return len(self._backing_off)

    # Taking over

    def take_over(self, lane: LaneQueue, entry: Entry, refusal: Refusal, now: float) -> None:
        """An envelope of a batch was refused: what becomes of it."""
        if lane.enter(entry):
            self._refuse(lane, entry, refusal, now)

    def retry_later(self, lane: LaneQueue, entries: Iterable[Entry], now: float) -> None:
        """Entries of a lost batch are tried again after a pause, each aggregate in order."""
        for entry in entries:
            if lane.enter(entry):
                self._back_off(lane, entry, now)

    def retry_at_once(self, lane: LaneQueue, entries: Sequence[Entry]) -> None:
        """Entries of a batch that a lost connection cut off are tried again on the next one."""
        self.retries += len(entries)
        lane.enter_ready(entries)

    # Sending

    def send(self, lane: LaneQueue, now: float) -> None:
        """Send what is ready, as much as has room."""
        entries: list[Entry] = []
        while lane.ready and not entries:
            policy, window = self._policy, self._window
            room = min(policy.max_send, policy.window - window.messages)
            entries, overdue = lane.take_ready(room, policy.window_bytes - window.bytes, now)
            if overdue:
                self._give_up(lane, overdue)
        if not self._policy.atomic:
            if entries:
                self._send_singles(lane, entries, now)
            return
        for grouped, some in groupby(entries, key=lambda entry: isinstance(entry, Group)):
            (self._send_groups if grouped else self._send_singles)(lane, list(some), now)

    def _send_singles(self, lane: LaneQueue, entries: list[Entry], now: float) -> None:
        envelopes = [entry.envelope for entry in entries]
        number = self._sending(lane, entries, envelopes, now)
        out = SinglesOut(number, envelopes, [entry.wire for entry in entries])
        self._window.send(out, len(entries), sum([entry.size for entry in entries]))

    def _send_groups(self, lane: LaneQueue, entries: list[Entry], now: float) -> None:
        groups = [entry for entry in entries if isinstance(entry, Group)]
        envelopes = [list(group.envelopes) for group in groups]
        number = self._sending(lane, entries, [e for group in envelopes for e in group], now)
        out = Groups(number, envelopes, [list(group.wires) for group in groups])
        messages = sum([group.count for group in groups])
        self._window.send(out, messages, sum([group.size for group in groups]))

    def _sending(
        self, lane: LaneQueue, entries: list[Entry], envelopes: list[Envelope], now: float
    ) -> int:
        """Another attempt of these entries begins; returns its number."""
        for entry in entries:
            entry.attempts += 1
        self._doubts.add_singles(envelopes)
        number = self._window.next_number
        self._sent[number] = _Sent(number, lane, entries, now, self._deadline(entries, now))
        return number

    def _deadline(self, entries: list[Entry], now: float) -> float:
        """Until when to await answers; even a library that gives up by itself may fall silent."""
        timeout = self._policy.ack_timeout
        if timeout is not None:
            return now + timeout
        return max([entry.submission.expires for entry in entries]) + OVERDUE

    # What the broker says

    def acked(self, number: int, index: int, receipt: Receipt) -> None:
        """The broker stored the entry at an index of a send."""
        sent = self._sent.get(number)
        if sent is None:
            silent = self._silent.get(number)
            entry = silent.at(index) if silent is not None else None
            if silent is not None and entry is not None:
                self.acked_late(silent.lane, entry, receipt)
            return
        self._doubts.stored(number, sent.sent, receipt)
        entry = self._answer(sent, index)
        if entry is not None:
            self._end(sent.lane, entry, Outcome.STORED, receipt)

    def acked_many(self, acks: Iterable[tuple[int, int, Receipt]]) -> None:
        """The same as `acked` for each, written out because this is the path of every single.

        An ack that names one message is not that of a group.
        """
        doubts, all_sent, by_lane = self._doubts, self._sent, dict[LaneQueue, SinglesStored]()
        messages = size = 0
        for number, index, receipt in acks:
            sent = all_sent.get(number)
            entry = sent.at(index) if sent is not None else None
            if entry is not None and entry.count > 1:
                continue
            if sent is None or entry is None or entry.done or doubts.in_process:
                self.acked(number, index, receipt)
                continue
            entry.done = True
            sent.entries[index] = None
            sent.open -= 1
            if not sent.open:
                del all_sent[number]
            messages += 1
            size += entry.size
            stored = by_lane.get(sent.lane)
            if stored is None:
                stored = by_lane[sent.lane] = SinglesStored([], [])
            stored.entries.append(entry)
            stored.receipts.append(receipt)
        self._window.release(messages, size)
        for lane, stored in by_lane.items():
            lane.leave(stored.entries)
            self._settlements.add(lane, stored)

    def acked_late(self, lane: LaneQueue, entry: Entry, receipt: Receipt) -> None:
        """An attempt that is no longer awaited is acknowledged after all: its entry is stored,
        whichever attempt it is at.
        """
        if not entry.done and lane in self._lanes:
            self.late_acks += 1
            self._end(lane, entry, Outcome.STORED, receipt)

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> None:
        """The broker did not store the entry at an index of a send."""
        sent = self._sent.get(number)
        if sent is None:
            self._refused_late(number, index)
            return
        entry = self._answer(sent, index)
        if entry is not None:
            self._refuse(sent.lane, entry, refusal, now)

    def disconnected(self, refusal: Refusal) -> None:
        """What is in flight may be lost: it goes back to the front of its lane, in order."""
        lost = [
            (sent.lane, entry)
            for sent in list(self._sent.values())
            for entry in self._lose(sent, refusal)
        ]
        self.retries += len(lost)
        for lane, entry in reversed(lost):
            lane.make_ready_first(entry)

    # What time says

    def next_tick(self) -> float:
        """When `tick` has something to do."""
        due = self._backing_off[0][0] if self._backing_off else inf
        return min(due, next(iter(self._sent.values())).deadline) if self._sent else due

    def tick(self, now: float) -> None:
        """End silent attempts, and backoffs that are over."""
        self._end_silent_attempts(now)
        while self._backing_off and self._backing_off[0][0] <= now:
            _, _, lane, entry = heapq.heappop(self._backing_off)
            lane.resume()
            if not entry.done:
                lane.make_ready_first(entry)
        while self._silent and not next(iter(self._silent.values())).unanswered():
            del self._silent[next(iter(self._silent))]

    def expire(self, now: float) -> None:
        """Give up what is past its delivery timeout and not in flight; what is in flight gets its
        answer first.
        """
        for _, _, lane, entry in list(self._backing_off):
            if not entry.done and entry.submission.expires <= now:
                self._give_up(lane, [entry])
        for lane in self._lanes:
            while overdue := lane.take_overdue(now):
                self._give_up(lane, overdue)  # which makes the next of their aggregates ready
        self._forget_settled()

    # What is in here

    def unsettled(self, lanes: Set[LaneQueue]) -> Iterator[tuple[LaneQueue, Entry]]:
        """The entries of these lanes."""
        listed = [(lane, entry) for _, _, lane, entry in self._backing_off]
        listed += [(sent.lane, each) for sent in self._sent.values() for each in sent.unanswered()]
        for lane in lanes:
            listed += [(lane, entry) for entry in lane.entries()]
        return ((lane, entry) for lane, entry in listed if lane in lanes and not entry.done)

    def in_flight(self, number: int, index: int) -> list[Envelope]:
        """What is awaited at an index of a send: several envelopes if they are a group."""
        sent = self._sent.get(number)
        entry = sent.at(index) if sent is not None else None
        return list(entry.envelopes) if entry is not None else []

    def in_flight_on(self, topic: str) -> list[tuple[int, int]]:
        """Number and index of all that is in flight on a topic."""
        return [
            (sent.number, index)
            for sent in self._sent.values()
            for index, entry in enumerate(sent.entries)
            if entry is not None and any(each.topic == topic for each in entry.envelopes)
        ]

    def abandon(self, lanes: Set[LaneQueue], refusal: Refusal) -> None:
        """Settle all singles of these lanes as unknown, and forget them."""
        for lane, entry in list(self.unsettled(lanes)):
            self._settlements.abandon(lane, [entry], refusal)
        for lane in lanes:
            lane.clear_singles()
        sends = [sent for sent in self._sent.values() if sent.lane in lanes]
        for sent in sends:
            left = self._release(sent)
            topics = {entry.envelope.topic for entry in left}
            self._doubts.unanswered(topics, self._window.last_number)
        self._window.withdraw_numbers({sent.number for sent in sends})
        self._forget_settled()

    # The end of an attempt

    def _answer(self, sent: _Sent, index: int) -> Entry | None:
        """Take an entry out of its send; None when it was answered or settled before."""
        entry = sent.at(index)
        if entry is None:
            self.late_acks += 1
            return None
        sent.entries[index] = None
        sent.open -= 1
        if not sent.open:
            del self._sent[sent.number]
        self._window.release(entry.count, entry.size)
        if entry.done:
            self.late_acks += 1
            return None
        return entry

    def _refuse(self, lane: LaneQueue, entry: Entry, refusal: Refusal, now: float) -> None:
        """An attempt was refused: its entry is tried again, rejected, or unknown."""
        entry.last = refusal
        if refusal.verdict is Verdict.RETRY:
            self._back_off(lane, entry, now)
        elif refusal.verdict is Verdict.GIVE_UP:
            self._end(lane, entry, Outcome.UNKNOWN, refusal=refusal)
        elif entry.in_doubt:
            reason = (
                f"{refusal.reason}; but an earlier attempt was never answered, so it may be stored"
            )
            self._end(lane, entry, Outcome.UNKNOWN, refusal=refusal._replace(reason=reason))
        else:
            self._end(lane, entry, Outcome.REJECTED, refusal=refusal)

    def _refused_late(self, number: int, index: int) -> None:
        """A later attempt decides, but this one is no longer in doubt."""
        sent = self._silent.get(number)
        entry = sent.at(index) if sent is not None else None
        if sent is not None and entry is not None:
            sent.entries[index] = None
            entry.in_doubt -= 1

    def _back_off(self, lane: LaneQueue, entry: Entry, now: float) -> None:
        """Try an entry again after a jittered pause, unless its time is over."""
        if now >= entry.submission.expires:
            self._give_up(lane, [entry])
            return
        policy = self._policy
        growth = 2.0 ** min(entry.attempts - 1, 30)
        pause = min(policy.longest_backoff, policy.first_backoff * growth)
        due = now + pause * self._random.uniform(0.5, 1.0)
        self.retries += 1
        heapq.heappush(self._backing_off, (due, next(self._ties), lane, entry))
        lane.back_off()

    def _end_silent_attempts(self, now: float) -> None:
        # With an ack timeout, deadlines are in the order of the numbers, so the oldest decides.
        # Without one they are those of the deliveries, and in no order.
        due = []
        for sent in self._sent.values():
            if sent.deadline <= now:
                due.append(sent)
            elif self._policy.ack_timeout is not None:
                break
        for sent in due:
            for entry in self._lose(sent, self._settlements.why_silent()):
                self._back_off(sent.lane, entry, now)

    def _lose(self, sent: _Sent, refusal: Refusal) -> list[Entry]:
        """A send gets no answer any more; returns what of it is unsettled, in order: each entry
        may have been stored.
        """
        self._release(sent)
        self._silent[sent.number] = sent
        unanswered = sent.unanswered()
        for entry in unanswered:
            entry.unanswered(refusal)
        topics = {entry.envelope.topic for entry in unanswered}
        self._doubts.unanswered(topics, self._window.last_number)
        return unanswered

    def _release(self, sent: _Sent) -> list[Entry]:
        """A send is no longer awaited; returns what of it was."""
        del self._sent[sent.number]
        awaited = [entry for entry in sent.entries if entry is not None]
        messages = sum([entry.count for entry in awaited])
        self._window.release(messages, sum([entry.size for entry in awaited]))
        return awaited

    # The end of an entry

    def _end(
        self,
        lane: LaneQueue,
        entry: Entry,
        outcome: Outcome,
        receipt: Receipt | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        """Settle an entry; the next of its aggregate follows."""
        lane.leave([entry])
        self._settlements.settle(lane, entry, outcome, receipt, refusal)

    def _give_up(self, lane: LaneQueue, entries: list[Entry]) -> None:
        lane.leave(entries)
        self._settlements.give_up(lane, entries)

    def _forget_settled(self) -> None:
        """Let go of what is settled among what backs off."""
        kept = []
        for item in self._backing_off:
            _, _, lane, entry = item
            if entry.done:
                lane.resume()
            else:
                kept.append(item)
        heapq.heapify(kept)
        self._backing_off = kept
