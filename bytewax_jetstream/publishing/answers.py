"""`Receipt`, `Refusal`, `Verdict`: where a broker stored an envelope, or why it did not."""

from enum import Enum
from typing import NamedTuple

__all__ = ["Receipt", "Refusal", "Verdict"]


class Receipt(NamedTuple):
    """Where the broker stored an envelope; None where it does not say."""

    stream: str | None = None
    partition: int | None = None
    sequence: int | None = None
    """The stream sequence, or the offset in the partition."""
    duplicate: bool | None = None
    """Whether the broker had the event id before."""

    def before(self, messages: int) -> "Receipt":
        """The receipt of the message stored that many messages earlier, where they lie together."""
        return self if self.sequence is None else self._replace(sequence=self.sequence - messages)


class Verdict(Enum):
    """What a refusal means for the envelope."""

    RETRY = "retry"
    """Not stored now: try again with the same event id."""
    REJECT = "reject"
    """Never stored as it is; other envelopes are not affected."""
    STOP = "stop"
    """Never stored, and every other envelope would fare the same: a dataflow must stop rather than
    dead-letter its whole input."""
    GIVE_UP = "give up"
    """The broker's library has given up: the envelope may be stored or not."""


class Refusal(NamedTuple):
    """Why the broker, or the dispatch in its place, did not store an envelope."""

    verdict: Verdict
    reason: str
    code: int | None = None
    """The broker's own error code."""
    own: bool = False
    """Whether the broker refuses this message for its own sake. Then it is tried again until its
    delivery timeout as others are, and is rejected, not unknown, if every attempt was answered."""
    no_attempt_stored: bool = False
    """Whether no earlier attempt has stored the envelope, also none that was not answered: because
    the broker was asked for the event id and does not know it, or cannot have taken any."""
