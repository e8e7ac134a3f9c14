"""What can be measured: scenarios, strategies, and the cases that a choice of options comes to."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

__all__ = ["BROKERS", "READERS", "SCENARIOS", "STRATEGIES", "Case", "Choice", "Scenario", "plan"]


class Scenario(NamedTuple):
    """How many messages are published, and how fast at most."""

    messages: int
    rate: int | None = None
    """Messages a second; None for as fast as it goes."""


SCENARIOS = {
    # The report's four.
    "low": Scenario(500),
    "medium": Scenario(2_000),
    "high": Scenario(5_000),
    "extreme": Scenario(10_000),
    # Long enough that a start, a pause of the collector or a slow second decides nothing.
    "sustained": Scenario(100_000),
    "million": Scenario(1_000_000),
    # From submit to ack, when nothing queues.
    "paced": Scenario(3_000, rate=1_000),
}

STRATEGIES = {
    "jetstream": {
        "before": "the report's starting point: a stream look-up for each publish, acks not waited for",
        "sync": "nats-py's publish, awaited one by one",
        "task": "nats-py's publish, a task for each message",
        "async": "nats-py's publish_async, as documented",
        "pool": "our pool, on a stream without batching: one PubAck for each message",
        "batch": "our pool, on a stream that allows batching",
        "lean": "a hand-written fast-ingest loop: the limit",
        "flow": "a whole dataflow through jop.publish, on a stream that allows batching",
        "source": "a dataflow that reads the stream back through jop.input",
        "pull": "a hand-written pull loop that reads the stream back; comes with source",
    },
    "kafka": {
        "sync": "confluent-kafka, flushed after each message",
        "sink": "a whole dataflow through Bytewax's KafkaSink",
        "confluent": "a hand-written loop with a callback and a result for each message",
        "pool": "our pool",
        "flow": "a whole dataflow through jop.publish",
    },
}
BROKERS = tuple(STRATEGIES)

READERS = frozenset({"source", "pull"})
CAPPED = {"before": 10_000, "sync": 10_000, "task": 10_000}
"""Strategies whose speed does not change with more messages, only the time that they take."""
NEVER_PACED = frozenset({"lean", "source", "pull"})
"""A flight of one is a publish, and reading has no pace."""
WITH_ACK_WORKERS = frozenset({"pool", "batch", "flow"})
WITH_MAX_PENDING = frozenset({"async", "pool", "batch", "flow"})


class Case(NamedTuple):
    """One strategy under one set of conditions; `round` after `round` of it is measured."""

    scenario: str
    broker: str
    storage: str
    ids: str
    """Where the event id goes: `msgid`, which the server knows duplicates by, or another `header`.
    """
    strategy: str
    messages: int
    payload_bytes: int
    batch: int
    """Messages that come at once: a source's batch, a hand-over to the pool, a write of a loop."""
    ack_workers: int | None = None
    max_pending: int | None = None
    """Messages that may be unsettled at once; None for the default of whoever publishes."""
    rate: int | None = None


class Choice(NamedTuple):
    """What a run was asked for."""

    scenarios: Sequence[str]
    brokers: Sequence[str]
    strategies: Sequence[str]
    storage: Sequence[str] = ("file",)
    ids: Sequence[str] = ("msgid",)
    ack_workers: Sequence[int | None] = (None,)
    max_pending: Sequence[int | None] = (None,)
    payload: Sequence[int] = (108,)
    batch: Sequence[int] = (1_000,)


def plan(choice: Choice) -> list[list[Case]]:
    """The cases of a choice, in groups that take turns: one for each scenario, payload and batch."""
    groups = []
    for name, payload, batch in product(choice.scenarios, choice.payload, choice.batch):
        cases = dict.fromkeys(_group(choice, name, payload, 1 if SCENARIOS[name].rate else batch))
        if cases:
            groups.append(list(cases))
    return groups


def _group(choice: Choice, name: str, payload: int, batch: int) -> Iterator[Case]:
    scenario = SCENARIOS[name]
    for broker in choice.brokers:
        for strategy in STRATEGIES[broker]:
            reads_beside = strategy == "pull" and "source" in choice.strategies
            if strategy not in choice.strategies and not reads_beside:
                continue
            if scenario.rate and strategy in NEVER_PACED:
                continue
            # Kafka has no duplicate table and no memory store to choose.
            conditions = (
                product(choice.storage, choice.ids)
                if broker == "jetstream"
                else [("file", "header")]
            )
            for (storage, ids), workers, pending in product(
                conditions, choice.ack_workers, choice.max_pending
            ):
                yield Case(
                    name,
                    broker,
                    storage,
                    ids,
                    strategy,
                    min(scenario.messages, CAPPED.get(strategy, scenario.messages)),
                    payload,
                    batch,
                    workers if strategy in WITH_ACK_WORKERS else None,
                    pending if strategy in WITH_MAX_PENDING else None,
                    scenario.rate,
                )
