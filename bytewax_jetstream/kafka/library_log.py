"""librdkafka's own log lines, as lines of Python's logging; a line that repeats is shown once."""

import logging
import re
import time

__all__ = ["library_log"]

AGAIN_SECONDS = 60.0
"""A line that is repeated all the time is shown this often."""
MOST_LINES = 1000
"""How many different lines are remembered."""
VARYING = re.compile(
    r"\[thrd:[^\]]*\]|\[[^\]]*#(producer|consumer)-\d+\]"  # who says it
    r"|\(after \d+ms in state \w+(, \d+ identical error\(s\) suppressed)?\)"
    r"|\d+(\.\d+)?(ms|s)\b"
)
"""Parts in which repeated lines differ."""
HARMLESS = re.compile(
    r"^GETPID .*Coordinator load in progress"
    r"|^CONFWARN .*enable\.gapless\.guarantee is experimental"
    r"|^FATAL .*Gap-less ordering would not be guaranteed"
)
"""A cluster that has just started says the first at the first start of a producer, and it is
retried. The others are about a producer that stops at a refused request, as it is meant to.
"""


class _Once(logging.Filter):
    """Lets a line pass once a minute, and harmless ones only at the level DEBUG."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if HARMLESS.search(line):
            return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
        key = VARYING.sub("", line)
        now = time.monotonic()
        if self._shown.get(key, 0.0) > now:
            return False
        if len(self._shown) >= MOST_LINES:
            self._shown.clear()
        self._shown[key] = now + AGAIN_SECONDS
        return True


library_log = logging.getLogger("bytewax_jetstream.kafka.librdkafka")
"""The property `logger` of every client."""
library_log.addFilter(_Once())
