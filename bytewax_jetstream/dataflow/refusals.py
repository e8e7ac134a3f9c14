"""`Refusals`: each reason for which envelopes are rejected is logged once, and counted."""

import logging
import re
import threading
from collections import Counter
from collections.abc import Iterable

from ..envelope import Outcome, PublishResult
from .values import printable, text_of

__all__ = ["Refusals"]

log = logging.getLogger(__name__)

MOST = 20
"""How many reasons are told apart; a reason may name something of each message."""
OTHER = "other reasons"
NUMBERS = re.compile(r"\d+")


class Refusals:
    """The reasons for which envelopes of one publish step are rejected.

    Results may also be in streams that nobody looks at; the log of a process is looked at first.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self._counts: Counter[str] = Counter()
        self._firsts: dict[str, str] = {}
        """Of each kind of reason, the first one."""
        self._lock = threading.Lock()

    def add(self, results: Iterable[PublishResult]) -> None:
        """Count rejected results, and log those that are the first of their kind."""
        for result in results:
            if result.outcome is not Outcome.REJECTED:
                continue  # an unknown one stops the run, whose error has the reason
            kind = _kind(result)
            with self._lock:
                if kind not in self._firsts and len(self._firsts) >= MOST:
                    kind = OTHER
                first = kind not in self._firsts
                if first:
                    self._firsts[kind] = str(result.reason) if kind != OTHER else OTHER
                self._counts[kind] += 1
            if first:
                log.warning(
                    "%s: envelope %s on %s is rejected: %s; further ones for the same reason are "
                    "counted, and logged at the end",
                    self._step,
                    printable(text_of(result.event_id)),
                    printable(text_of(result.topic)),
                    printable(str(result.reason)),
                )

    def end(self) -> None:
        """Log how many envelopes were rejected for each reason since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            firsts, self._firsts = self._firsts, {}
        for kind, count in counts.most_common():
            reason = printable(firsts[kind])
            log.warning("%s: %d envelopes were rejected: %s", self._step, count, reason)


def _kind(result: PublishResult) -> str:
    """The reason without what differs from message to message."""
    reason = str(result.reason)
    for value in filter(None, (text_of(result.event_id), text_of(result.topic))):
        reason = reason.replace(value, "...")
    return NUMBERS.sub("0", reason)
