"""What is told of one partition of a source."""

from collections.abc import Iterator
from typing import NamedTuple

from . import table
from .meters import Sample

__all__ = ["Partition"]


class Partition(NamedTuple):
    """One partition of a source, as the labels name it."""

    broker: str
    step: str
    stream: str
    """The stream or topic."""
    partition: str
    """The number of the Kafka partition, or the subject filter; empty without one."""

    def samples(
        self,
        *,
        emitted: int,
        position: int,
        lag: int | None,
        skipped: int,
        redelivered: int | None = None,
        reopened: int | None = None,
    ) -> Iterator[Sample]:
        """Its values; None for what there is none of."""
        for metric, value in (
            (table.SOURCE_MESSAGES, emitted),
            (table.SOURCE_POSITION, position),
            (table.SOURCE_LAG, lag),
            (table.SOURCE_REDELIVERIES, redelivered),
            (table.SOURCE_SKIPPED, skipped),
            (table.SOURCE_RECONNECTS, reopened),
        ):
            if value is not None:
                yield Sample(metric, tuple(self), value)
