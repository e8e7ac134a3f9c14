"""The simulated link from the publisher to the broker: one byte after the other."""

from math import inf
from random import Random
from typing import NamedTuple

__all__ = ["ENVELOPE_OVERHEAD", "Link", "Speed", "some_speed"]

ENVELOPE_OVERHEAD = 100
"""Bytes of a message besides its payload."""


class Speed(NamedTuple):
    """How much a link carries, and when it hardly carries anything."""

    bandwidth: float
    """Bytes a second."""
    round_trip: float
    """Seconds."""
    trickles_at: float = inf
    """From then on the peer takes bytes a thousand times as slowly, in simulated seconds."""
    recovers_at: float = inf

    def carried(self, until: float) -> float:
        """How many bytes it could have carried by then."""
        slow = min(max(until, self.trickles_at), self.recovers_at) - self.trickles_at
        return self.bandwidth * (until - (0.999 * slow if slow > 0 else 0.0))

    def time_of(self, carried: float) -> float:
        """When it can have carried so many bytes."""
        seconds = carried / self.bandwidth
        if seconds <= self.trickles_at:
            return seconds
        slow = min((seconds - self.trickles_at) * 1000, self.recovers_at - self.trickles_at)
        return seconds + 0.999 * slow


def some_speed(random: Random) -> Speed:
    """0.2 to 100 MB/s and 0.1 to 300 ms, each order of magnitude as often."""
    return Speed(10 ** random.uniform(5.3, 8.0), 10 ** random.uniform(-4.0, -0.52))


class Link:
    """Counts, as a real connection does, what was written and what the peer has not taken."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.written = 0
        self._end = 0.0
        """How many bytes the link can have carried when it has carried the last one written."""
        self._idle_from = 0.0

    def write(self, size: int, now: float) -> float:
        """Write so many bytes; returns when the peer has all of them."""
        self.written += size
        self._end = max(self._end, self.speed.carried(now)) + size
        self._idle_from = self.speed.time_of(self._end)
        return self._idle_from

    def unsent(self, now: float) -> int:
        """How many of the bytes written the peer has not taken."""
        if now >= self._idle_from:
            return 0
        return max(0, round(self._end - self.speed.carried(now)))

    def clear(self) -> None:
        """The connection is lost, and what the peer had not taken of it."""
        self._end = self._idle_from = 0.0
