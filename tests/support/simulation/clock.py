"""Simulated time and chance: what happens when, all from one seed."""

import heapq
from collections.abc import Callable
from itertools import count
from random import Random
from typing import TypeVar

__all__ = ["HEALED", "Clock"]

HEALED = 12.0
"""When the faults end, in simulated seconds."""

Happening = Callable[[], None]
H = TypeVar("H", bound=Happening)


class Clock:
    """What is still to happen, in order of time; what happens at one time, in order of entry."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self._happenings: list[tuple[float, int, Happening]] = []
        self._ties = count()

    def at(self, when: float, happening: Happening) -> None:
        """Have something happen."""
        heapq.heappush(self._happenings, (when, next(self._ties), happening))

    def step(self) -> bool:
        """Let the next thing happen; False when there is none."""
        if not self._happenings:
            return False
        self.now, _, happening = heapq.heappop(self._happenings)
        happening()
        return True

    def withdraw(self, kind: type[H]) -> list[tuple[float, H]]:
        """Take out all happenings of one kind, with their times."""
        taken = [(when, each) for when, _, each in self._happenings if isinstance(each, kind)]
        self._happenings = [each for each in self._happenings if not isinstance(each[2], kind)]
        heapq.heapify(self._happenings)
        return taken

    def chance(self, probability: float) -> bool:
        """Whether a fault happens; none does once all has healed."""
        return self.now < HEALED and self.random.random() < probability

    def delay(self, longest: float) -> float:
        """How long something takes; short once all has healed."""
        return self.random.uniform(0, longest if self.now < HEALED else min(longest, 0.01))
