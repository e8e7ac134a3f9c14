"""The rows that the killed dataflows publish, the same at every replay."""

from bytewax_jetstream.envelope import Envelope

__all__ = ["PARTS", "STREAM", "TOPICS", "envelope_of", "is_good", "padded"]

STREAM = "ROWS"
TOPICS = "rows.>"
PARTS = 4
AGGREGATES = 23
"""Of each partition, so that an aggregate's rows come from one partition, in order."""


def is_good(index: int) -> bool:
    """Whether a row can be published; the others have an invalid topic."""
    return index % 101 != 100


def envelope_of(part: int, index: int) -> Envelope:
    """A row as the dataflow publishes it; the payload says which row it is."""
    return Envelope(
        f"rows.p{part}.t{index % 5}" if is_good(index) else f"rows.p{part}.*",
        b"%d %d" % (part, index),
        # Every tenth id is one that goes to the server as a digest.
        event_id=f"p{part}-{index}" if index % 10 else f"part {part}, row {index}",
        aggregate_id=f"p{part}-a{index * 7 % AGGREGATES}",
        event_type="even" if index % 2 == 0 else "odd",
    )


def padded(row: Envelope, size: int) -> Envelope:
    """The row with blanks behind its payload, unless its topic is invalid."""
    if row.payload is None or row.topic.endswith("*"):
        return row
    return row._replace(payload=row.payload.ljust(size))
