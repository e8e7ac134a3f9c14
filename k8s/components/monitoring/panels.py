"""The panels that watch dataflows, and their queries: for Grafana, and for the picture in the docs.

`$namespace`, `$job` and `$__rate_interval` are Grafana's variables.
"""

from typing import Literal, NamedTuple

__all__ = ["ROWS", "Panel", "Query", "Unit"]

Unit = Literal["mps", "s", "percentunit", "short"]
"""Grafana's names: messages a second, seconds, a part of 1, a number."""


class Query(NamedTuple):
    """One query, and how its lines are named."""

    promql: str
    legend: str


class Panel(NamedTuple):
    """One panel with lines over time."""

    title: str
    unit: Unit
    about: str
    queries: tuple[Query, ...]


CHOSEN = '{namespace=~"$namespace", job=~"$job"}'


def _chosen(metric: str, more: str = "") -> str:
    labels = CHOSEN if not more else f"{CHOSEN[:-1]}, {more}}}"
    return f"bytewax_jetstream_{metric}{labels}"


def _rate(metric: str, by: str, legend: str, more: str = "") -> Query:
    """So many a second."""
    return Query(f"sum by ({by}) (rate({_chosen(metric, more)}[$__rate_interval]))", legend)


def _most(metric: str, legend: str) -> Query:
    """The largest of each process and broker."""
    return Query(f"max by (instance, broker) ({_chosen(metric)})", legend)


def _quantiles(metric: str, by: str, legend: str) -> tuple[Query, ...]:
    """Half, and 99 in 100."""
    rates = f"sum by (le, {by}) (rate({_chosen(f'{metric}_bucket')}[$__rate_interval]))"
    return tuple(
        Query(f"histogram_quantile({part}, {rates})", f"{legend} {name}")
        for part, name in ((0.5, "p50"), (0.99, "p99"))
    )


def _part(used: str, whole: str, legend: str) -> Query:
    """How much of the whole is used, by process."""
    return Query(
        f"max by (instance) ({_chosen(used)} / {_chosen(whole)})", "{{instance}} " + legend
    )


PUBLISHING = (
    Panel(
        "Results",
        "mps",
        "What became of envelopes. Rejected ones are not stored; an unknown one stops its run.",
        (
            _rate("submitted_total", "step_id", "{{step_id}} submitted"),
            _rate("stored_total", "step_id", "{{step_id}} stored"),
            _rate("duplicates_total", "step_id", "{{step_id}} duplicates"),
            _rate("rejected_total", "step_id", "{{step_id}} rejected"),
            _rate("unknown_total", "step_id", "{{step_id}} unknown"),
        ),
    ),
    Panel(
        "From submission to result",
        "s",
        "Every envelope counts with its own time.",
        _quantiles("result_latency_seconds", "step_id", "{{step_id}}"),
    ),
    Panel(
        "Oldest envelope without a result",
        "s",
        "Grows while a broker is away. The run stops at the delivery timeout, 60 s by default.",
        (
            _most("oldest_unsettled_seconds", "{{instance}} {{broker}} oldest"),
            _most("last_progress_seconds", "{{instance}} {{broker}} since the last progress"),
        ),
    ),
    Panel(
        "Budget",
        "percentunit",
        "Envelopes and bytes without a result. When it is full, producers wait.",
        (
            _part("unsettled_messages", "budget_messages", "messages"),
            _part("unsettled_bytes", "budget_bytes", "bytes"),
        ),
    ),
    Panel(
        "Wait at the end of an epoch",
        "s",
        "An epoch commits when each of its envelopes has a result.",
        _quantiles("barrier_wait_seconds", "step_id", "{{step_id}}"),
    ),
)
BROKERS = (
    Panel(
        "In flight",
        "short",
        "Messages that are sent and await their answer.",
        (Query(f"sum by (broker) ({_chosen('in_flight_messages')})", "{{broker}}"),),
    ),
    Panel(
        "Retries",
        "mps",
        "Attempts that are made again, by reason. librdkafka retries Kafka's by itself.",
        (
            _rate("retries_total", "broker, reason", "{{broker}} {{reason}}"),
            _rate("late_acks_total", "broker", "{{broker}} late acks"),
        ),
    ),
    Panel(
        "Connections",
        "short",
        "1 while JetStream is connected; and connections that were lost in the last 5 minutes.",
        (
            Query(
                f"min by (instance, broker) ({_chosen('connected')})",
                "{{instance}} {{broker}} connected",
            ),
            Query(
                f"sum by (instance, broker) (increase({_chosen('reconnects_total')}[5m]))",
                "{{instance}} {{broker}} lost",
            ),
        ),
    ),
    Panel(
        "Messages in a batch",
        "short",
        "JetStream batches. Singles and Kafka are not in here.",
        (
            Query(
                f"sum by (broker) (rate({_chosen('batch_messages_total')}[$__rate_interval])) / "
                f"sum by (broker) (rate({_chosen('batches_total')}[$__rate_interval]))",
                "{{broker}}",
            ),
        ),
    ),
)
SOURCES = (
    Panel(
        "Messages read",
        "mps",
        "What sources emit into the dataflow.",
        (_rate("source_messages_total", "step_id, stream", "{{step_id}} {{stream}}"),),
    ),
    Panel(
        "Lag",
        "short",
        "Messages that wait in a stream or topic.",
        (
            Query(
                f"sum by (step_id, stream) ({_chosen('source_lag_messages')})",
                "{{step_id}} {{stream}}",
            ),
        ),
    ),
    Panel(
        "Read again, or never",
        "mps",
        "Redeliveries of durable consumers; messages that were removed before they were read.",
        (
            _rate("source_redeliveries_total", "stream", "{{stream}} redelivered"),
            _rate("source_skipped_total", "stream", "{{stream}} skipped"),
        ),
    ),
    Panel(
        "Trouble of sources",
        "short",
        "In the last 5 minutes: partitions opened again, and offsets that a consumer group did "
        "not take.",
        (
            Query(
                f"max by (instance, stream) (increase({_chosen('source_reconnects_total')}[5m]))",
                "{{instance}} {{stream}} opened again",
            ),
            Query(
                "sum by (step_id) (increase("
                + _chosen("source_group_commits_total", 'result="failed"')
                + "[5m]))",
                "{{step_id}} failed commits",
            ),
        ),
    ),
)
ROWS = (("Publishing", PUBLISHING), ("Brokers", BROKERS), ("Sources", SOURCES))
"""All panels, in the order in which they are shown."""
