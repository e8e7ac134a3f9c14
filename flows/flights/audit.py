"""Counts what the streams hold and compares it with the input, row by row."""

import re
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from .brokers import StreamNames
from .data import tail_number
from .errors import AuditError

__all__ = ["Counted", "Reader", "Stored", "count_flights", "count_stored"]

ROW = re.compile(rb'\{"row":(\d+),').match


class Stored(NamedTuple):
    """A message as the broker delivers it."""

    header: bytes
    payload: bytes


class Reader(Protocol):
    """What the audit needs of a broker; a reader leaves nothing behind when it is closed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def count(self, stream: str) -> int:
        """How many messages a stream or topic has; 0 when it does not exist yet."""

    def read(self, stream: str) -> Iterator[Stored]:
        """Every message; those of an aggregate in their order."""

    def event_id(self, message: Stored) -> bytes | None:
        """The event id a message was published with."""


class Counted(NamedTuple):
    """What the audit found in the two streams."""

    stored: int
    dead_lettered: int
    duplicates: int
    missing: int
    order_violations: int


def count_stored(reader: Reader, names: StreamNames) -> int:
    """How many messages both streams have together."""
    return sum(map(reader.count, names))


def count_flights(reader: Reader, names: StreamNames, lines: Sequence[str]) -> Counted:
    """Compare both streams with the input: every row is stored once, in one of them, and an
    aircraft's rows are in order.

    A message is a duplicate when its id or its row came before. Duplicates are left out of the
    check of the order: a replay stores them again later, behind newer rows.

    :raises AuditError: when a stream cannot be read, or holds something else than the input.
    """
    tails = [tail_number(line) for line in lines]
    seen = bytearray(len(lines))
    ids: set[bytes] = set()
    latest: dict[str, int] = {}
    sizes = dict.fromkeys(names, 0)
    duplicates = order_violations = 0
    for stream in names:
        for message in reader.read(stream):
            event_id, row = _identify(reader, stream, message, len(lines))
            sizes[stream] += 1
            repeated = bool(seen[row]) or event_id in ids
            duplicates += repeated
            seen[row] = 1
            ids.add(event_id)
            if stream == names.flights and not repeated:
                before = latest.get(tails[row], -1)
                order_violations += row < before
                latest[tails[row]] = max(row, before)
    return Counted(
        stored=sizes[names.flights],
        dead_lettered=sizes[names.dead_letters],
        duplicates=duplicates,
        missing=seen.count(0),
        order_violations=order_violations,
    )


def _identify(reader: Reader, stream: str, message: Stored, rows: int) -> tuple[bytes, int]:
    event_id, found = reader.event_id(message), ROW(message.payload)
    if event_id is None or found is None or (row := int(found[1])) >= rows:
        raise AuditError(
            f"{stream} has a message that is not a row of the input: {message.payload[:80]!r}"
        )
    return event_id, row
