"""Numbers that a dataflow and the test that kills it share; they outlive the SIGKILL."""

import mmap
from enum import IntEnum, auto
from pathlib import Path

from tests.support.recovery.rows import PARTS

__all__ = ["Board", "Slot"]


class Slot(IntEnum):
    """What each number says: of the present run, unless it says of all runs."""

    STOP = 0
    """Set by the test: every partition ends once it has made all of its rows again."""
    SUBMITTED = auto()
    """Envelopes that the pool has accepted."""
    SETTLED = auto()
    """Envelopes that have their result."""
    UNSETTLED = auto()
    """Envelopes that the pool has accepted and that have no result."""
    RETRIED = auto()
    """Envelopes that were sent again."""
    BARRIERS = auto()
    """How often an epoch's end found a lane's envelopes unsettled."""
    CLOSING = auto()
    """How many lanes are waiting at an epoch's end."""
    COMMITS = auto()
    """How often a partition was asked for more after an epoch had closed: that epoch is committed.
    """
    LEFT = auto()
    """Envelopes that were unsettled when the wait at an epoch's end was over, in all runs."""
    MADE = auto()
    """How many rows a partition has ever made, over all runs; one such number for each partition.
    """


NUMBERS = Slot.MADE + PARTS


class Board:
    """The numbers, in a file that both processes map."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * NUMBERS))
        with path.open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    def __getitem__(self, slot: int) -> int:
        return self._numbers[slot]

    def __setitem__(self, slot: int, number: int) -> None:
        self._numbers[slot] = number

    def new_run(self) -> None:
        """Forget the numbers of the last run."""
        for slot in range(Slot.STOP, Slot.LEFT):
            self[slot] = 0

    def made(self, part: int, count: int) -> None:
        """Note how far a partition has come; a replay never lowers the number."""
        self[Slot.MADE + part] = max(count, self[Slot.MADE + part])

    def made_by(self, part: int) -> int:
        """How many rows a partition has ever made."""
        return self[Slot.MADE + part]
