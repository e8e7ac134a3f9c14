"""`Skipped`: how many messages were removed from the stream before they were read.

No I/O and no clock. Sequences have gaps for two reasons. A message was removed while it waited to
be read: by the stream's limits, which have overtaken the reader, by a purge, or one at a time.
Or it was removed before reading began, or has another subject. Only the first is counted:

- A stream that is read without a filter has no gaps after its last message at the start, so each
  gap there is a message that was removed unread.
- Any other gap is counted as far as the stream's first sequence is beyond it. With a filter that is
  the most it can be, and only if messages waited when the one before the gap was delivered.
"""

import logging

from .reading import Reading

__all__ = ["Skipped"]

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0


class Skipped:
    """Counts one partition's messages that were removed before they were read, and warns of them.

    :arg last: The stream's last sequence when reading began.
    """

    def __init__(self, reading: Reading, last: int) -> None:
        self._reading = reading
        self._last = last
        self._gaps: list[tuple[int, int]] = []
        """Gaps that may be counted, as half-open ranges."""
        self._asked: list[tuple[int, int]] = []
        """Those that were known when the stream's first sequence was asked for."""
        self._untold = 0
        self._range = (0, 0)
        self._told_at = float("-inf")
        self.count = 0
        """The messages that were removed unread; with a filter, the most it can be."""

    @property
    def is_unsure(self) -> bool:
        """Whether the stream's first sequence is needed; see `settle`."""
        return bool(self._gaps or self._asked)

    def ask(self) -> None:
        """The stream's first sequence is asked for now."""
        self._asked += self._gaps
        self._gaps = []

    def gap(self, first: int, end: int, *, waited: bool, now: float) -> None:
        """The sequences from `first` to before `end` were not delivered.

        :arg waited: Whether messages waited for delivery when the one before was delivered.
        """
        if self._reading.subject is not None:
            if waited:
                self._gaps.append((first, end))
            return
        known = max(first, self._last + 1)
        if first < known:
            self._gaps.append((first, min(end, known)))
        if known < end:
            self.add(known, end, now)

    def settle(self, first_sequence: int, now: float) -> None:
        """The stream's first sequence is known: count the gaps before it, forget the others."""
        asked, self._asked = self._asked, []
        for first, end in asked:
            if first < first_sequence:
                self.add(first, min(end, first_sequence), now)

    def add(self, first: int, end: int, now: float) -> None:
        """The sequences from `first` to before `end` were removed unread."""
        self.count += end - first
        self._range = (self._range[0] if self._untold else first, end - 1)
        self._untold += end - first
        if now - self._told_at >= LOG_SECONDS:
            self._told_at = now
            self.report()

    def report(self) -> None:
        """Log what was not logged yet."""
        if not self._untold:
            return
        log.warning(
            "%s: sequences %d to %d were removed before they were read: %s%d messages, %d since "
            "the start: raise the stream's limits, or read faster",
            self._reading,
            *self._range,
            "up to " if self._reading.subject is not None else "",
            self._untold,
            self.count,
        )
        self._untold = 0
