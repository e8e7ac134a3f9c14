"""What the lanes of one publisher share: the window of what is out, what departs next, and what has
ended.
"""

from collections import deque
from collections.abc import Iterable

from ..envelope import Outcome
from ..publishing.answers import Receipt, Refusal, Verdict
from .doubts import Doubts
from .flight import Ended, Flight, LaneQueue, Leg, Policy, Settled
from .segment import Entry, Group, Parcel

__all__ = ["Traffic"]


class Traffic:
    """What is out, which lanes to look at, what to send, what has ended; kept by `Whole` and
    `OneByOne`.
    """

    def __init__(self, policy: Policy, doubts: Doubts) -> None:
        self.policy = policy
        self.doubts = doubts
        self.lanes: dict[LaneQueue, None] = {}
        """All that are served, in the order in which they came."""
        self.changed: dict[LaneQueue, None] = {}
        """Lanes in which something may go on, to be looked at before the next flight."""
        self.departing: deque[Flight | Leg] = deque()
        """Formed, to be sent now."""
        self.now = 0.0
        """When the next flight was last asked for."""
        self.last = 0
        """Number of the last flight."""
        self.out = 0
        """Messages that are sent and awaited."""
        self.out_bytes = 0
        self.retries = 0
        self.late_acks = 0
        self.whole_flights = 0
        self.in_whole_flights = 0
        self._with_settled: list[LaneQueue] = []

    def next_number(self) -> int:
        """Of a flight that is about to depart."""
        self.last += 1
        return self.last

    def land(self, messages: int, size: int) -> None:
        """So much is out no more."""
        self.out -= messages
        self.out_bytes -= size

    def leave_unanswered(self, entries: Iterable[Entry], refusal: Refusal) -> None:
        """These attempts get no answer: each may be stored, and their routes are in doubt."""
        topics = set()
        for entry in entries:
            # The broker's own word on an earlier attempt tells more than this silence.
            entry.last = entry.last or refusal
            entry.in_doubt += 1
            topics.add(entry.envelope.topic)
        self.doubts.unanswered(topics, self.last)

    def settle(
        self,
        lane: LaneQueue,
        entry: Entry,
        outcome: Outcome,
        receipt: Receipt | None,
        refusal: Refusal | None,
    ) -> None:
        """An entry has ended, and with it each member of a group."""
        entry.done = True
        self.doubts.not_in_process(entry.envelopes)
        if not isinstance(entry, Group):
            self.hand_out(lane, Settled(entry, outcome, receipt, refusal))
            return
        for behind, member in zip(reversed(range(entry.count)), entry.members(), strict=True):
            own = receipt and receipt.before(behind)
            self.hand_out(lane, Settled(member, outcome, own, refusal))

    def give_up(self, lane: LaneQueue, parcel: Parcel) -> None:
        """The delivery timeout of a parcel came before it was sent, or sent again."""
        for entry in parcel.entries():
            self.settle(lane, entry, Outcome.UNKNOWN, None, self.why_given_up(entry))

    def abandon(self, lane: LaneQueue, parcels: Iterable[Parcel], refusal: Refusal) -> None:
        """Parcels will not be sent any more, or not be answered: all of them are unknown."""
        for parcel in parcels:
            for entry in parcel.entries():
                self.settle(lane, entry, Outcome.UNKNOWN, None, refusal)

    @property
    def why_silent(self) -> Refusal:
        """Why an attempt that was not answered in time did not do."""
        timeout = self.policy.ack_timeout
        words = (
            f"no ack within {timeout:g} s"
            if timeout is not None
            else "no word from the broker's library"
        )
        return Refusal(Verdict.RETRY, words)

    def why_given_up(self, entry: Entry) -> Refusal:
        """Why an entry is unknown at its delivery timeout."""
        last = (
            entry.last.reason
            if entry.last
            else "never sent: no connection, or no answer to what came before it"
        )
        reason = (
            f"not settled within {self.policy.delivery_timeout:g} s and {entry.attempts} attempts ({last}): "
            "see to the broker, then publish it again with the same event id"
        )
        return Refusal(Verdict.GIVE_UP, reason, entry.last.code if entry.last else None)

    def hand_out(self, lane: LaneQueue, ended: Ended) -> None:
        """Give a lane what has ended, in the order in which it did."""
        if not lane.settled:
            self._with_settled.append(lane)
        lane.settled.append(ended)

    def take_settled(self) -> list[tuple[LaneQueue, list[Ended]]]:
        """What was settled since the last call, by lane, in the order of settlement."""
        lanes, self._with_settled = self._with_settled, []
        taken = []
        for lane in lanes:
            taken.append((lane, lane.settled))
            lane.settled = []
        return taken

    def statistics(self) -> dict[str, int]:
        """The counters."""
        return {
            "out": self.out,
            "retries": self.retries,
            "late_acks": self.late_acks,
            "whole_flights": self.whole_flights,
            "in_whole_flights": self.in_whole_flights,
            "streams_in_doubt": len(self.doubts),
        }
