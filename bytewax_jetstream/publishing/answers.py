"""What a broker says of an envelope: where it is stored, or why it is not."""

from enum import Enum
from typing import NamedTuple

__all__ = ["Receipt", "Refusal", "Verdict"]


class Receipt(NamedTuple):
    """Where the broker stored an envelope."""

    stream: str | None = None
    partition: int | None = None
    sequence: int | None = None
    duplicate: bool | None = None

    def before(self, messages: int) -> "Receipt":
        """Of the message so many before, where they were stored one behind the other."""
        return self if self.sequence is None else self._replace(sequence=self.sequence - messages)


class Verdict(Enum):
    """What a refusal means for the envelope."""

    RETRY = "retry"
    """Not now: try again with the same event id."""
    REJECT = "reject"
    """Never, this one: the others are not concerned."""
    STOP = "stop"
    """Never, and others will fare the same: a dataflow must stop rather than dead-letter
    everything.
    """
    GIVE_UP = "give up"
    """The broker's library has given up; whether it is stored nobody knows."""


class Refusal(NamedTuple):
    """Why the broker did not store an envelope."""

    verdict: Verdict
    reason: str
    code: int | None = None
