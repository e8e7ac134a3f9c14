"""The metrics: name, kind, labels and meaning of each. The table in `docs/metrics.md` is made from
this.

Labels have few values: brokers, steps, workers, reasons that are listed here, and, for sources
only, the streams or topics that are read. `step_id` and `worker_index` are Bytewax's own names, so
that its metrics can be joined with these. `kind` and labels of a name never change; a metric that
must change gets another name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "RETRY_REASONS", "Metric"]

Labels = tuple[str, ...]

LANE: Labels = ("broker", "step_id", "worker_index")
BROKER: Labels = ("broker",)
SOURCE: Labels = ("broker", "step_id", "stream", "partition")

RETRY_REASONS = {
    "timeout": "no answer within the ack timeout",
    "disconnected": "the connection was lost before the answer",
    "refused": "the broker said: not now",
    "cut_short": "the batch or group ended before the message",
}
"""Why an attempt is made again."""

LATENCIES = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
"""From a round trip on loopback to twice the delivery timeout."""


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric; instances are compared by identity."""

    name: str
    """As it is scraped."""
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels
    help: str
    merge: Callable[[Iterable[float]], float] = sum
    """Makes one value of those that have equal labels; only a gauge's is not their sum."""
    buckets: tuple[float, ...] = ()


SUBMITTED = Metric(
    "bytewax_jetstream_submitted_total",
    "counter",
    LANE,
    "Envelopes that a step has submitted.",
)
STORED = Metric(
    "bytewax_jetstream_stored_total",
    "counter",
    LANE,
    "Envelopes that the broker has stored, duplicates included.",
)
DUPLICATES = Metric(
    "bytewax_jetstream_duplicates_total",
    "counter",
    LANE,
    "Stored envelopes that the broker had before, as far as it says so.",
)
REJECTED = Metric(
    "bytewax_jetstream_rejected_total",
    "counter",
    LANE,
    "Envelopes that are definitely not stored.",
)
UNKNOWN = Metric(
    "bytewax_jetstream_unknown_total",
    "counter",
    LANE,
    "Envelopes that may be stored or not; each stops a dataflow.",
)
RESULT_LATENCY = Metric(
    "bytewax_jetstream_result_latency_seconds",
    "histogram",
    ("broker", "step_id"),
    "Seconds from the submission of an envelope to its result, of every envelope.",
    buckets=LATENCIES,
)
UNSETTLED_MESSAGES = Metric(
    "bytewax_jetstream_unsettled_messages",
    "gauge",
    (),
    "Envelopes without a result yet: the used part of the budget.",
)
UNSETTLED_BYTES = Metric(
    "bytewax_jetstream_unsettled_bytes",
    "gauge",
    (),
    "Payload bytes of the envelopes without a result yet.",
)
BUDGET_MESSAGES = Metric(
    "bytewax_jetstream_budget_messages",
    "gauge",
    (),
    "How many envelopes may be without a result; then producers wait.",
)
BUDGET_BYTES = Metric(
    "bytewax_jetstream_budget_bytes",
    "gauge",
    (),
    "How many payload bytes may be without a result; then producers wait.",
)
BUDGET_STALLS = Metric(
    "bytewax_jetstream_budget_stalls_total",
    "counter",
    (),
    "How often a producer had to wait for the budget.",
)
IN_FLIGHT_MESSAGES = Metric(
    "bytewax_jetstream_in_flight_messages",
    "gauge",
    BROKER,
    "Messages that are sent and await their answer.",
)
IN_FLIGHT_BYTES = Metric(
    "bytewax_jetstream_in_flight_bytes",
    "gauge",
    BROKER,
    "Payload bytes in flight at the broker.",
)
OLDEST_UNSETTLED = Metric(
    "bytewax_jetstream_oldest_unsettled_seconds",
    "gauge",
    BROKER,
    "For how long the oldest envelope without a result has waited since it was submitted; 0 "
    "without one.",
    merge=max,
)
LAST_PROGRESS = Metric(
    "bytewax_jetstream_last_progress_seconds",
    "gauge",
    BROKER,
    "For how long no answer has settled anything; 0 while nothing is unsettled.",
    merge=max,
)
RETRIES = Metric(
    "bytewax_jetstream_retries_total",
    "counter",
    ("broker", "reason"),
    "Attempts that were made again, by reason. Kafka: none, librdkafka retries by itself.",
)
LATE_ACKS = Metric(
    "bytewax_jetstream_late_acks_total",
    "counter",
    BROKER,
    "Answers to attempts that were no longer awaited.",
)
BATCHES = Metric(
    "bytewax_jetstream_batches_total",
    "counter",
    BROKER,
    "JetStream batches that were begun.",
)
BATCH_MESSAGES = Metric(
    "bytewax_jetstream_batch_messages_total",
    "counter",
    BROKER,
    "Messages that were sent in JetStream batches; divided by the batches it is their size.",
)
LANES = Metric(
    "bytewax_jetstream_lanes",
    "gauge",
    BROKER,
    "Open lanes to a broker: the transports that this process uses.",
)
CONNECTED = Metric(
    "bytewax_jetstream_connected",
    "gauge",
    BROKER,
    "1 while every connection for publishing is up, else 0. Kafka: not told, librdkafka "
    "connects by itself.",
    merge=min,
)
RECONNECTS = Metric(
    "bytewax_jetstream_reconnects_total",
    "counter",
    BROKER,
    "Connections for publishing that were lost: JetStream, when they were replaced; Kafka, when "
    "they were cut.",
)
BARRIER_WAIT = Metric(
    "bytewax_jetstream_barrier_wait_seconds",
    "histogram",
    ("step_id",),
    "Seconds that the end of an epoch waited for results.",
    buckets=LATENCIES,
)
SOURCE_MESSAGES = Metric(
    "bytewax_jetstream_source_messages_total",
    "counter",
    SOURCE,
    "Messages that a source has emitted into the dataflow.",
)
SOURCE_POSITION = Metric(
    "bytewax_jetstream_source_position",
    "gauge",
    SOURCE,
    "The sequence or offset of the next message.",
    merge=max,
)
SOURCE_LAG = Metric(
    "bytewax_jetstream_source_lag_messages",
    "gauge",
    SOURCE,
    "Messages that wait to be emitted, as the broker said last.",
)
SOURCE_REDELIVERIES = Metric(
    "bytewax_jetstream_source_redeliveries_total",
    "counter",
    SOURCE,
    "Deliveries of messages that had been delivered before, with a durable consumer.",
)
SOURCE_SKIPPED = Metric(
    "bytewax_jetstream_source_skipped_total",
    "counter",
    SOURCE,
    "Messages that were removed before they were read; with a subject filter, at most.",
)
SOURCE_RECONNECTS = Metric(
    "bytewax_jetstream_source_reconnects_total",
    "counter",
    SOURCE,
    "How often a partition was opened again after its connection or consumer was lost. "
    "Kafka: none, librdkafka connects by itself.",
)
GROUP_COMMITS = Metric(
    "bytewax_jetstream_source_group_commits_total",
    "counter",
    ("step_id", "result"),
    "Commits of offsets to a Kafka consumer group, which are for monitoring only.",
)
SCRAPE_ERRORS = Metric(
    "bytewax_jetstream_scrape_errors_total",
    "counter",
    (),
    "Scrapes that lack something because it could not be read; the log says what.",
)

METRICS = tuple(each for each in list(globals().values()) if isinstance(each, Metric))
"""All of them, in the order of the table."""
