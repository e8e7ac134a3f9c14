"""`Singles`: sends what is ready; acks, refusals, silence, backoff and the end of each envelope.

An entry in here is ready, held behind another of its aggregate, in flight, or backing off. What
is ready or held belongs to its lane's queue; what is in flight or backing off, to this module.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import count, groupby
from math import inf
from random import Random

from ..envelope import Envelope, Outcome
from ..publishing import AskFirst, Groups, Policy, Receipt, Refusal, Verdict
from ..publishing import Singles as SinglesOut
from .asks import Asks
from .clocks import Answers
from .doubts import Doubts
from .lane_queue import LaneQueue
from .retries import Retries, Why
from .segment import Entry, Group
from .settlements import Settlements, SinglesStored
from .window import Window

__all__ = ["Singles"]


class _Sent:
    """Entries of one lane sent together; those that are not awaited are None."""

    __slots__ = ("_first", "entries", "lane", "number", "open", "position", "written")

    def __init__(
        self,
        number: int,
        lane: LaneQueue,
        entries: Sequence[Entry | None],
        position: int,
        written: float,
    ) -> None:
        self.number = number
        self.lane = lane
        self.entries = list(entries)
        self.position = position
        """Of the first entry."""
        self.written = written
        self.open = len(entries)
        """How many are awaited."""
        self._first = 0

    @property
    def first(self) -> int:
        """The index of the first that is awaited; there must be one."""
        while self.entries[self._first] is None:
            self._first += 1
        return self._first

    def at(self, index: int) -> Entry | None:
        """What is awaited at an index; an answer can name any number."""
        return self.entries[index] if 0 <= index < len(self.entries) else None

    def awaited(self) -> list[int]:
        """The indices of what is awaited."""
        return [index for index, entry in enumerate(self.entries) if entry is not None]

    def unanswered(self) -> list[Entry]:
        """What is not settled."""
        return [entry for entry in self.entries if entry is not None and not entry.done]


class Singles:
    """The singles of one publisher that are in flight or backing off."""

    def __init__(
        self,
        policy: Policy,
        window: Window,
        doubts: Doubts,
        settlements: Settlements,
        answers: Answers,
        retries: Retries,
        asks: Asks,
        lanes: Set[LaneQueue],
        random: Random,
        duplicate_window: Callable[[str], float | None] = lambda topic: None,
    ) -> None:
        self._duplicate_window = duplicate_window
        self._policy = policy
        self._window = window
        self._doubts = doubts
        self._settlements = settlements
        self._answers = answers
        self._retries = retries
        self._asks = asks
        self._lanes = lanes
        """All lanes that are served; the dispatch's."""
        self._random = random
        self._sent: dict[int, _Sent] = {}
        """In flight and awaited, oldest first."""
        self._silent: dict[int, _Sent] = {}
        """No longer awaited, by number, and kept until all of it is settled: a late ack still tells
        that an envelope is stored. Without retries of our own, kept until it is answered."""
        self.held_messages = 0
        """Messages of those without retries: they keep their place in the window, so that the
        memory of the broker's library stays bounded."""
        self._connected = False
        self._first_expiry = inf
        """When the first clock of what is ready ends, while there is no connection."""
        self._backing_off: list[tuple[float, int, LaneQueue, Entry]] = []
        self._ties = count()
        """Entries that back off until the same moment resume in the order in which they came."""
        self.last_refusal: Refusal | None = None
        """The last that is retried."""
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

    def retry_later(self, lane: LaneQueue, entries: Iterable[Entry], why: Why, now: float) -> None:
        """Entries of a lost batch are tried again after a pause, each aggregate in order."""
        for entry in entries:
            if lane.enter(entry):
                self._back_off(lane, entry, why, now)
            else:
                entry.stop_clock(now)

    def retry_at_once(self, lane: LaneQueue, entries: Sequence[Entry], now: float) -> None:
        """Entries of a batch that a lost connection cut off are tried again on the next one."""
        self._retries.add("disconnected", len(entries))
        for entry in entries:
            entry.stop_clock(now)
        lane.enter_ready(entries)
        self._run_clocks(now)

    def connected(self, now: float) -> None:
        """What is ready waits for room from now on."""
        self._connected = True
        self._first_expiry = inf
        for lane in self._lanes:
            for entry in lane.ready:
                entry.stop_clock(now)

    # Sending

    def send(self, lane: LaneQueue, now: float) -> None:
        """Send what is ready, as much as has room."""
        policy, window = self._policy, self._window
        room = min(policy.max_send, window.limit - window.messages)
        entries, overdue = lane.take_ready(room, window.limit_bytes - window.bytes, now)
        if overdue:  # what follows them must not be sent in this turn
            self._give_up(lane, [entry for entry in overdue if entry.resend_until >= now])
            forgotten = [entry for entry in overdue if entry.resend_until < now]
            lane.leave(forgotten)
            self._settlements.forgotten(lane, forgotten)
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
            entry.attempts += type(entry.wire) is not AskFirst  # it is asked for, not sent
        self._doubts.add_singles(envelopes)
        number = self._window.next_number
        self._sent[number] = _Sent(number, lane, entries, self._window.position, now)
        return number

    # What the broker says

    def acked(self, number: int, index: int, receipt: Receipt, now: float) -> None:
        """The broker stored the entry at an index of a send."""
        sent = self._awaited(number, index, now)
        if sent is None:
            silent, entry = self._answer_late(number, index)
            if silent is not None and entry is not None:
                self.acked_late(silent.lane, entry, receipt)
            return
        self._doubts.stored(number, sent.written, receipt)
        entry = self._answer(sent, index)
        if entry is not None:
            self._end(sent.lane, entry, Outcome.STORED, receipt)

    def acked_many(self, acks: Iterable[tuple[int, int, Receipt]], now: float) -> None:
        """The same as `acked` for each, written out because this is the path of every single.

        An ack that names one message is not that of a group.
        """
        doubts, all_sent, by_lane = self._doubts, self._sent, dict[LaneQueue, SinglesStored]()
        messages = size = 0
        earliest: float = inf
        for number, index, receipt in acks:
            sent = all_sent.get(number)
            entry = sent.at(index) if sent is not None else None
            if entry is not None and entry.count > 1:
                continue
            if sent is None or entry is None or entry.done or doubts.in_process:
                self.acked(number, index, receipt, now)
                continue
            position = sent.position + index
            if position < earliest:
                earliest = position
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
        if earliest < inf:
            self._answers.add(int(earliest), now)
        for lane, stored in by_lane.items():
            if lane.held:
                for entry, receipt in zip(stored.entries, stored.receipts, strict=True):
                    if receipt[3]:  # `duplicate`: a receipt may be a bare tuple
                        self._asks.behind(lane, entry.envelope.aggregate_id)
            lane.leave(stored.entries)
            self._settlements.stored_singles(lane, stored)

    def acked_late(self, lane: LaneQueue, entry: Entry, receipt: Receipt) -> None:
        """An attempt that is no longer awaited is acknowledged after all: its entry is stored,
        whichever attempt it is at.
        """
        if not entry.done and lane in self._lanes:
            self.late_acks += 1
            self._end(lane, entry, Outcome.STORED, receipt)

    def refused(self, number: int, index: int, refusal: Refusal, now: float) -> None:
        """The broker did not store the entry at an index of a send."""
        sent = self._awaited(number, index, now)
        if sent is None:
            # A later attempt decides, but this one is no longer in doubt.
            silent, entry = self._answer_late(number, index)
            if silent is not None and entry is not None:
                silent.entries[index] = None
                entry.answered_late()
            return
        entry = self._answer(sent, index)
        if entry is not None:
            self._refuse(sent.lane, entry, refusal, now)

    def delayed(self, number: int, index: int, refusal: Refusal) -> None:
        """The publisher itself tries an entry again; it is awaited as before."""
        sent = self._sent.get(number)
        entry = sent.at(index) if sent is not None else None
        if entry is not None:
            entry.last = self.last_refusal = refusal

    def group_known(self, number: int, index: int, receipts: Sequence[Receipt | None]) -> None:
        """Envelopes of a group with a receipt are stored; the others go again, without them."""
        sent = self._sent.get(number)
        if sent is None or not isinstance(sent.at(index), Group) or all(receipts):
            return
        entry = self._answer(sent, index)
        if not isinstance(entry, Group):
            return
        known = [receipt is not None for receipt in receipts]
        stored = entry.take_out(known)
        # An unanswered attempt did not store it: it would have stored all.
        entry.in_doubt, entry.resend_until = 0, inf
        for member, receipt in zip(stored, filter(None, receipts), strict=True):
            self._settlements.settle(sent.lane, member, Outcome.STORED, receipt)
        self._retries.add("cut_short")
        sent.lane.make_ready_first(entry)

    def disconnected(self, refusal: Refusal, now: float) -> None:
        """What is in flight may be lost: it goes back to the front of its lane, in order."""
        self._connected = False
        lost = [
            (sent.lane, entry)
            for sent in list(self._sent.values())
            for entry in self._lose(sent, sent.awaited(), refusal, now)
        ]
        self._retries.add("disconnected", len(lost))
        for lane, entry in reversed(lost):
            lane.make_ready_first(entry)
        self._run_clocks(now)

    def _run_clocks(self, now: float) -> None:
        """Without a connection the clocks of what is ready run."""
        for lane in self._lanes:
            for entry in lane.ready:
                entry.run_clock(now)
                self._first_expiry = min(self._first_expiry, entry.expires)

    # What time says

    def next_tick(self) -> float:
        """When `tick` has something to do."""
        due = self._backing_off[0][0] if self._backing_off else inf
        if self._sent:
            oldest = next(iter(self._sent.values()))
            due = min(due, self._deadline(oldest, oldest.first))
        return min(due, self._first_expiry)

    def tick(self, now: float) -> None:
        """End silent attempts, backoffs that are over, and clocks that have run out.

        What is in flight when its clock runs out gets its answer first.
        """
        self._end_silent_attempts(now)
        resumed = []
        while self._backing_off and self._backing_off[0][0] <= now:
            _, _, lane, entry = heapq.heappop(self._backing_off)
            lane.resume()
            if entry.done:
                continue
            if entry.expires <= now:
                self._give_up(lane, [entry])
                continue
            if self._connected:
                entry.stop_clock(now)
            else:
                self._first_expiry = min(self._first_expiry, entry.expires)
            resumed.append((lane, entry))
        for lane, entry in reversed(resumed):
            lane.make_ready_first(entry)
        if self._first_expiry <= now:
            self._first_expiry = inf
            for lane in self._lanes:
                self._give_up(lane, lane.take_overdue(now))
            self._run_clocks(now)
        self._forget_settled()

    # What is in here

    def unsettled(self, lanes: Set[LaneQueue]) -> Iterator[tuple[LaneQueue, Entry]]:
        """The entries of these lanes."""
        listed = [(lane, entry) for _, _, lane, entry in self._backing_off]
        every = list(self._sent.values())
        listed += [(sent.lane, each) for sent in every for each in sent.unanswered()]
        for lane in lanes:
            listed += [(lane, entry) for entry in lane.entries()]
        return ((lane, entry) for lane, entry in listed if lane in lanes and not entry.done)

    def oldest(self) -> float:
        """The position of the oldest message in flight."""
        if not self._sent:
            return inf
        sent = next(iter(self._sent.values()))
        return sent.position + sent.first

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

    def refused_until(self, before: float) -> float:
        """Until when answers are awaited that tell rejected from unknown: to attempts written
        before then, at messages that were only refused so far, for their own sake.
        """
        return max(
            [
                self._deadline(sent, index)
                for sent in self._sent.values()
                if sent.written < before
                for index, entry in enumerate(sent.entries)
                if entry is not None
                and not entry.in_doubt
                and entry.last is not None
                and entry.last.own
            ],
            default=0.0,
        )

    def abandon(self, lanes: Set[LaneQueue], refusal: Refusal | None) -> None:
        """Settle all singles of these lanes as unknown, and forget them."""
        for sent in self._sent.values():
            for awaited in sent.unanswered():
                awaited.in_doubt += sent.lane in lanes  # this attempt will not be answered
        for lane, entry in list(self.unsettled(lanes)):
            self._settlements.abandon(lane, [entry], refusal)
        for lane in lanes:
            lane.clear_singles()
        sends = [sent for sent in self._sent.values() if sent.lane in lanes]
        for sent in sends:
            left = self._stop_awaiting(sent, sent.awaited())
            lost = [envelope for entry in left for envelope in entry.envelopes]
            self._doubts.given_up(lost, self._window.last_number)
        self._window.withdraw_numbers({sent.number for sent in sends})
        self._forget_settled()

    def resend_until(self, topic: str, written: float) -> float:
        """Until when an attempt that was not answered may be followed by another.

        Later the broker may have forgotten its id, and would store it twice.
        """
        window = self._duplicate_window(topic)
        return inf if window is None else written + window - self._policy.attempt_seconds

    # The end of an attempt

    @property
    def _resends(self) -> bool:
        """Whether a silent attempt is followed by another."""
        return self._policy.ack_timeout is not None

    def _awaited(self, number: int, index: int, now: float) -> _Sent | None:
        """The send with an entry that is awaited at that index; it renews what is behind it."""
        sent = self._sent.get(number)
        if sent is None or (sent.at(index) is None and number in self._silent):
            return None
        if sent.at(index) is not None:
            self._answers.add(sent.position + index, now)
        return sent

    def _answer_late(self, number: int, index: int) -> tuple[_Sent | None, Entry | None]:
        """What is no longer awaited is answered after all; without retries it leaves the window."""
        silent = self._silent.get(number)
        entry = silent.at(index) if silent is not None else None
        if silent is not None and entry is not None and not self._resends:
            silent.entries[index] = None
            silent.open -= 1
            self.held_messages -= entry.count
            self._window.release(entry.count, entry.size)
            self.late_acks += 1
        return silent, entry

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
            self.last_refusal = refusal
            entry.fail(now, self._policy.delivery_timeout)
            self._back_off(lane, entry, "refused", now)
        elif refusal.verdict is Verdict.GIVE_UP:
            self._end(lane, entry, Outcome.UNKNOWN, refusal=refusal)
        elif entry.in_doubt and not refusal.no_attempt_stored:
            reason = (
                f"{refusal.reason}; but an earlier attempt was never answered, so it may be stored"
            )
            self._end(lane, entry, Outcome.UNKNOWN, refusal=refusal._replace(reason=reason))
        else:
            self._end(lane, entry, Outcome.REJECTED, refusal=refusal)

    def _back_off(self, lane: LaneQueue, entry: Entry, why: Why, now: float) -> None:
        """Try an entry again after a jittered pause, unless its time is over."""
        if now >= entry.expires:
            self._give_up(lane, [entry])
            return
        policy = self._policy
        growth = 2.0 ** min(entry.attempts - 1, 30)
        pause = min(policy.longest_backoff, policy.first_backoff * growth)
        due = now + pause * self._random.uniform(0.5, 1.0)
        self._retries.add(why)
        due = min(due, entry.expires)
        heapq.heappush(self._backing_off, (due, next(self._ties), lane, entry))
        lane.back_off()

    def _deadline(self, sent: _Sent, index: int) -> float:
        """Until when to await the answer to the entry at an index."""
        renewed = self._answers.since(sent.position + index, sent.written)
        return renewed + self._policy.attempt_seconds

    def _end_silent_attempts(self, now: float) -> None:
        # Deadlines are in the order of the positions: what was written later was renewed later.
        for sent in list(self._sent.values()):
            silent = []
            for index in sent.awaited():
                if self._deadline(sent, index) > now:
                    break
                silent.append(index)
            if not silent:
                return
            entries = self._lose(sent, silent, self._settlements.why_silent(), now)
            if self._resends:
                for entry in entries:
                    self._back_off(sent.lane, entry, "timeout", now)
            else:
                self._give_up(sent.lane, entries)

    def _lose(self, sent: _Sent, indices: list[int], refusal: Refusal, now: float) -> list[Entry]:
        """Attempts get no answer any more; returns what of them is unsettled, in order: each
        entry may have been stored.
        """
        unanswered = [entry for entry in self._stop_awaiting(sent, indices) if not entry.done]
        for entry in unanswered:
            if type(entry.wire) is not AskFirst:  # which was only asked for, and not sent
                until = self.resend_until(entry.envelope.topic, sent.written)
                entry.unanswered(refusal, until)
            entry.fail(now, self._policy.delivery_timeout)
        lost = [envelope for entry in unanswered for envelope in entry.envelopes]
        self._doubts.unanswered(lost, self._window.last_number, now)
        return unanswered

    def _stop_awaiting(self, sent: _Sent, indices: list[int]) -> list[Entry]:
        """The entries at these indices are no longer awaited; returns them."""
        silent = self._silent.get(sent.number)
        if silent is None:
            nothing = [None] * len(sent.entries)
            silent = _Sent(sent.number, sent.lane, nothing, sent.position, sent.written)
            silent.open = 0
            self._silent[sent.number] = silent
        removed = []
        for index in indices:
            entry = sent.entries[index]
            assert entry is not None, "only what is awaited can be removed"
            sent.entries[index], silent.entries[index] = None, entry
            removed.append(entry)
        sent.open -= len(indices)
        silent.open += len(indices)
        if not sent.open:
            del self._sent[sent.number]
        messages = sum([entry.count for entry in removed])
        if self._resends:
            self._window.release(messages, sum([entry.size for entry in removed]))
        else:
            self.held_messages += messages
        return removed

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
        if receipt is not None and receipt[3]:
            self._asks.behind(lane, entry.envelope.aggregate_id)
        lane.leave([entry])
        self._settlements.settle(lane, entry, outcome, receipt, refusal)

    def _give_up(self, lane: LaneQueue, entries: list[Entry]) -> None:
        lane.leave(entries)
        self._settlements.give_up(lane, entries)

    def _forget_settled(self) -> None:
        """Let go of what is settled among what backs off or is silent."""
        silent = self._silent.items()
        settled = [
            number
            for number, each in silent
            if not (each.unanswered() if self._resends else each.open)
        ]
        for number in settled:
            del self._silent[number]
        if not any(entry.done for _, _, _, entry in self._backing_off):
            return
        kept = []
        for item in self._backing_off:
            _, _, lane, entry = item
            if entry.done:
                lane.resume()
            else:
                kept.append(item)
        heapq.heapify(kept)
        self._backing_off = kept
