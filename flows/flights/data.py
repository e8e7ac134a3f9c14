"""The input: every flight that left New York City's airports in 2013, as rows.

Where the file comes from and how it was made: `flows/README.md`.
"""

import lzma
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

__all__ = ["Flight", "FlightsSource", "partition_of", "rows", "tail_number"]

FILE = Path(__file__).with_name("flights.csv.xz")
BATCH = 1_000


class Flight(NamedTuple):
    """One row of the file; a missing value is empty, a cancelled flight has no departure delay."""

    row: int
    scheduled: str
    """Departure as scheduled, UTC: `2013-01-01T10:15Z`."""
    carrier: str
    flight: str
    tailnum: str
    origin: str
    dest: str
    dep_delay: str
    arr_delay: str


@cache
def rows() -> Sequence[str]:
    """All lines of the file, by scheduled departure; read once per process, 35 MB."""
    return lzma.decompress(FILE.read_bytes()).decode("ascii").splitlines()[1:]


def tail_number(line: str) -> str:
    """The aircraft of a row; empty when it is not known."""
    return line.split(",", 4)[3]


def partition_of(tailnum: str, partitions: int) -> int:
    """An aircraft's partition: the same in every process and run, so its flights keep order."""
    return crc32(tailnum.encode()) % partitions


class FlightsSource(FixedPartitionedSource[Flight, int]):
    """Emits every row once, in the file's order within a partition; a resumed run continues with
    the row after the last committed one.

    All rows of an aircraft are in one partition. The number of partitions is part of their names:
    resumed with another number, a run would skip and repeat rows, so Bytewax refuses to resume, and
    the recovery store has to be made again.

    :arg partitions: How many; more of them can be read by more workers.
    :arg limit: Read only this many rows, from the beginning.
    """

    def __init__(self, partitions: int, limit: int | None = None) -> None:
        self._names = [f"{index} of {partitions}" for index in range(partitions)]
        # Split once here, not in build_part, which every worker calls.
        self._parts = dict(zip(self._names, _split(rows()[:limit], partitions), strict=True))
        self.resumed: dict[str, int] = {}
        """The first row of each partition that was resumed."""

    def list_parts(self) -> list[str]:
        """The same on every worker: each process has the whole file."""
        return self._names

    def build_part(
        self, step_id: str, for_part: str, resume_state: int | None
    ) -> "FlightsPartition":
        """Start at the beginning, or where the last committed epoch ended."""
        if resume_state is not None:
            self.resumed[for_part] = resume_state
        return FlightsPartition(self._parts[for_part], resume_state or 0)


def _split(lines: Sequence[str], partitions: int) -> "list[array[int]]":
    """The row numbers of each partition, in the file's order."""
    parts = [array("I") for _ in range(partitions)]
    append_for: dict[str, Callable[[int], None]] = {}
    for row, line in enumerate(lines):
        tailnum = tail_number(line)
        append = append_for.get(tailnum)
        if append is None:
            append = append_for[tailnum] = parts[partition_of(tailnum, partitions)].append
        append(row)
    return parts


class FlightsPartition(StatefulSourcePartition[Flight, int]):
    """The rows of some aircraft; its state is the number of the next row."""

    def __init__(self, numbers: "array[int]", first: int) -> None:
        self._numbers = numbers
        self._next = bisect_left(numbers, first)

    def next_batch(self) -> list[Flight]:
        """At most a thousand rows, without waiting."""
        numbers = self._numbers[self._next : self._next + BATCH]
        if not numbers:
            raise StopIteration
        self._next += len(numbers)
        lines = rows()
        return [Flight(number, *lines[number].split(",")) for number in numbers]

    def snapshot(self) -> int:
        """The number of the row after the last emitted one."""
        return self._numbers[self._next - 1] + 1 if self._next else 0
