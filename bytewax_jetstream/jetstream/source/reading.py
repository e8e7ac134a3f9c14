"""`Reading`, `Found`: what a partition reads, and the consumer through which it does."""

from datetime import timedelta
from typing import Any, NamedTuple

from ..message import Start

__all__ = ["Found", "Reading"]


class Reading(NamedTuple):
    """What one partition reads."""

    stream: str
    subject: str | None
    """Read only messages whose subject matches this pattern; None reads all."""
    start: Start
    durable: str | None
    ack_wait: timedelta
    max_ack_pending: int
    step: str = ""
    """The id of the step that reads; with stream and subject it names the partition."""

    def __str__(self) -> str:
        return f"stream {self.stream}" + (f" (subject {self.subject})" if self.subject else "")


class Found(NamedTuple):
    """A consumer that is ready to be pulled from."""

    name: str
    config: dict[str, Any]
    created: str
    """When the consumer was made."""
    position: int
    """The stream sequence it delivers from."""
    ack_floor: int
    """The stream sequence up to which everything is acknowledged."""
    unacknowledged: int
    """How many messages were delivered, to anyone, and not acknowledged."""
    pending: int
    """How many messages were not delivered."""
    number: int
    """How many deliveries it has made."""
    paused: bool
    """Whether it delivers nothing until its pause is over."""
    stream: dict[str, Any] | None = None
    """What the server said of the stream just before; None if this user may not ask."""

    @property
    def last(self) -> int:
        """The stream's last sequence just before the consumer was made; 0 if unknown."""
        return 0 if self.stream is None else int(self.stream["state"]["last_seq"])
