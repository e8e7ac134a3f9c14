"""Measures what the metrics cost a message: `python -m tests.support.counting_cost`.

Times the counting of one submission and one delivery of so many messages, as batches (JetStream)
and as singles (Kafka), and prints the best of seven runs.
"""

import time
import timeit

from bytewax_jetstream.dispatch import Entry, Segment, Settlement, SinglesStored, Submission
from bytewax_jetstream.dispatch.settlements import SegmentStored
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.metrics import lane_counts
from bytewax_jetstream.pool.results import waits
from bytewax_jetstream.publishing import Receipt

__all__ = ["main"]

DELIVERIES = (100, 500, 1_000)
"""Messages that are settled together."""
TIMES = 200
RECEIPT = Receipt("STREAM", None, 1, duplicate=False)


def _seconds(settled: list[Settlement], messages: int) -> float:
    counts = lane_counts("jetstream", "cost", 0)

    def count() -> None:
        counts.submitted(messages)
        counts.settled(messages, 0, 0, 0, waits(settled, time.monotonic()))

    return min(timeit.repeat(count, number=TIMES, repeat=7)) / TIMES


def main() -> None:
    """Measure, and print a line for each."""
    submission = Submission(time.monotonic(), 1, 0)
    for messages in DELIVERIES:
        envelopes = [Envelope("topic", b"", str(number)) for number in range(messages)]
        segment = Segment(submission, envelopes, [b""] * messages)
        entries = [Entry(envelope, submission, b"") for envelope in envelopes]
        kinds: dict[str, Settlement] = {
            "batch": SegmentStored(segment, RECEIPT),
            "singles": SinglesStored(entries, [RECEIPT] * messages),
        }
        for name, settled in kinds.items():
            seconds = _seconds([settled], messages)
            print(
                f"{messages:5,} {name:7} {seconds * 1e6:6.1f} us a delivery, "
                f"{seconds / messages * 1e9:5.1f} ns a message"
            )


if __name__ == "__main__":
    main()
