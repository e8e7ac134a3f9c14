"""The real input: every flight that left New York City's airports in 2013, as rows and as
envelopes.

Where it comes from and how it was cut: `README.md` beside this file.
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

from bytewax_jetstream.envelope import Envelope, PublishResult

__all__ = [
    "Flight",
    "FlightsSource",
    "no_tail_number",
    "partition_of",
    "refused",
    "rows",
    "to_envelope",
]

FILE = Path(__file__).with_name("flights.csv.xz")
BATCH = 1_000


class Flight(NamedTuple):
    """One row of the file; what is not known is empty, and a flight without a departure delay was
    cancelled.
    """

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
    """All rows as they stand in the file, by scheduled departure; read once a process, 35 MB."""
    return lzma.decompress(FILE.read_bytes()).decode("ascii").splitlines()[1:]


def partition_of(tailnum: str, partitions: int) -> int:
    """The same for an aircraft in every process and at every start, so that its flights stay in
    order.
    """
    return crc32(tailnum.encode()) % partitions


class FlightsSource(FixedPartitionedSource[Flight, int]):
    """Every row once, in the file's order within a partition; resumes with the row after the last
    committed one.

    An aircraft's rows are all in one partition. Partitions are the unit of parallelism. Their
    number is part of their names, because a run resumed with another number would skip and repeat
    rows: Bytewax then refuses to resume, and the recovery directory has to be made anew.

    :arg partitions: How many.
    :arg limit: Only so many rows from the beginning.
    """

    def __init__(self, partitions: int, limit: int | None = None) -> None:
        self._names = [f"{index} of {partitions}" for index in range(partitions)]
        # Once and here, not by every worker in build_part.
        self._parts = dict(zip(self._names, _split(rows()[:limit], partitions), strict=True))
        self.resumed: dict[str, int] = {}
        """For each partition that did not begin at the beginning, its first row."""

    def list_parts(self) -> list[str]:
        """The same on every worker: each process has the whole file."""
        return self._names

    def build_part(
        self, step_id: str, for_part: str, resume_state: int | None
    ) -> "FlightsPartition":
        """Begin, or begin again where the last committed epoch ended."""
        if resume_state is not None:
            self.resumed[for_part] = resume_state
        return FlightsPartition(self._parts[for_part], resume_state or 0)


def _split(lines: Sequence[str], partitions: int) -> "list[array[int]]":
    """The row numbers of each partition, in the file's order."""
    parts = [array("I") for _ in range(partitions)]
    part_of_tail: dict[str, Callable[[int], None]] = {}
    for row, line in enumerate(lines):
        tailnum = line.split(",", 4)[3]
        append = part_of_tail.get(tailnum)
        if append is None:
            append = part_of_tail[tailnum] = parts[partition_of(tailnum, partitions)].append
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
        """The row after the last one given out."""
        return self._numbers[self._next - 1] + 1 if self._next else 0


def event_id(flight: Flight) -> str:
    """What identifies a flight: the hour it was scheduled for, the carrier and the flight number."""
    return f"{flight.scheduled[:13]}-{flight.carrier}-{flight.flight}"


def to_envelope(flight: Flight) -> Envelope:
    """A flight as an event of its aircraft; the row number in the payload is what order is checked
    by.
    """
    return Envelope(
        topic=f"flights.{flight.origin}.{flight.carrier}",
        payload=_payload(flight),
        event_id=event_id(flight),
        aggregate_id=flight.tailnum,
        event_type="flight.departed" if flight.dep_delay else "flight.cancelled",
    )


def no_tail_number(flight: Flight) -> Envelope:
    """A flight that belongs to no aircraft, as a dead letter."""
    return Envelope(
        topic=f"flights-dead.{flight.origin}.{flight.carrier}",
        payload=_payload(flight),
        event_id=event_id(flight),
        headers={"Reason": "no tail number, so no aircraft whose history it could belong to"},
    )


def refused(result: PublishResult) -> Envelope:
    """An envelope that was rejected, as a dead letter with the reason."""
    assert result.envelope is not None, "a rejected result carries its envelope"
    return result.envelope._replace(
        topic="flights-dead.refused",
        aggregate_id=None,
        headers={"Reason": result.reason or ""},
    )


def _payload(flight: Flight) -> bytes:
    # By hand, as nothing in these fields needs escaping: a fifth of what the json module takes.
    row, scheduled, carrier, number, tailnum, origin, dest, dep_delay, arr_delay = flight
    return (
        f'{{"row":{row},"scheduled":"{scheduled}","carrier":"{carrier}","flight":{number},"tailnum":"{tailnum}",'
        f'"origin":"{origin}","dest":"{dest}","dep_delay":{dep_delay or "null"},"arr_delay":{arr_delay or "null"}}}'
    ).encode()
