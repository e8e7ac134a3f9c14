"""`UnreadableCount`: logs that a partition met messages that cannot be read."""

import logging

from ..message import UnreadableMessage
from .consumers import Reading

__all__ = ["UnreadableCount"]

log = logging.getLogger(__name__)


class UnreadableCount:
    """Counts a partition's unreadable messages; logs the first, and the count at the end."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._count = 0

    def add(self, message: UnreadableMessage) -> None:
        """Count a message."""
        self._count += 1
        if self._count == 1:
            log.warning(
                "%s: message %d cannot be read: %s", self._reading, message.sequence, message.reason
            )

    def report(self) -> None:
        """Log how many there were, if more than one."""
        if self._count > 1:
            log.warning("%s: %d messages could not be read", self._reading, self._count)
