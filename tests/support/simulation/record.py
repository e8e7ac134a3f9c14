"""What a simulated run was given, what happened to it, and what came of it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from bytewax_jetstream.dispatch import LaneQueue, Settled
from bytewax_jetstream.envelope import Envelope
from tests.support.simulation.kinds import Kind

__all__ = ["Accepted", "Attempts", "Record", "Result"]


class Accepted(NamedTuple):
    """An envelope a lane was given."""

    envelope: Envelope
    lane: LaneQueue
    at: float
    group: object
    """The same for those that are stored all or none."""


class Result(NamedTuple):
    """How an envelope ended."""

    at: float
    settled: Settled
    stalled: bool
    """Whether nothing of its connection was settled for the delivery timeout by then."""


@dataclass(slots=True)
class Attempts:
    """What became of the attempts of one envelope."""

    written: float
    """When the first was."""
    begun: float
    """The same, or when its batch was begun: all of a batch may be forgotten with its first."""
    fails: float
    """The last one fails at this time, or later: when it is refused to be retried, lost with its
    connection, or unanswered for the ack timeout after the peer took it. In a batch, it may fail as
    soon as it is written."""
    failed: float = inf
    """The same of the first, if it was not the last."""
    answered: float = inf
    """When the first answer came that says that the envelope is stored."""


@dataclass
class Record:
    """Kept by event id, in order."""

    kind: Kind
    accepted: dict[str, Accepted] = field(default_factory=dict)
    attempts: dict[str, Attempts] = field(default_factory=dict)
    """Of all that was sent."""
    results: dict[str, list[Result]] = field(default_factory=lambda: defaultdict(list))
    unknown: dict[tuple[LaneQueue, str | None], list[str]] = field(default_factory=dict)
    """Event ids that ended unknown, by lane and aggregate."""
    closed: set[LaneQueue] = field(default_factory=set)
    progress: float = 0.0
    """When the last answer settled something, or something was accepted while nothing was
    unsettled."""
    failed: bool = False
    """Whether the publisher was abandoned."""

    @property
    def unsettled(self) -> int:
        """How many envelopes are."""
        return len(self.accepted) - len(self.results)

    def stalled(self, now: float) -> bool:
        """Whether nothing was settled by an answer for the delivery timeout."""
        return now >= self.progress + self.kind.policy.delivery_timeout - 1e-6

    @property
    def resend_seconds(self) -> float:
        """For how long after the write of an attempt that was not answered another may follow."""
        window = self.kind.duplicate_window
        return inf if window is None else window - self.kind.policy.attempt_seconds

    # Attempts

    def written(
        self, envelopes: Iterable[Envelope], now: float, begun: float, fails: float
    ) -> None:
        """An attempt of each begins, which fails at that time or later."""
        for envelope in envelopes:
            event_id = envelope.event_id
            attempts = self.attempts.get(event_id)
            if attempts is None:
                self.attempts[event_id] = Attempts(now, begun, fails)
            else:
                attempts.failed = min(attempts.failed, attempts.fails)
                attempts.fails = fails

    def refused(self, event_ids: Iterable[str], now: float) -> None:
        """An answer says that they are not stored."""
        for event_id in event_ids:
            attempts = self.attempts[event_id]
            attempts.fails = min(attempts.fails, now)

    def cut(self, now: float) -> None:
        """The connection is lost."""
        self.refused(self.attempts.keys() - self.results.keys(), now)

    def answered(self, event_ids: Iterable[str], now: float) -> None:
        """An answer says that they are stored."""
        for event_id in event_ids:
            attempts = self.attempts[event_id]
            attempts.answered = min(attempts.answered, now)
