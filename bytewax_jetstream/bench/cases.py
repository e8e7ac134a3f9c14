"""Cases: which scenarios, strategies and options can be measured, and how they combine."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

__all__ = ["BROKERS", "READERS", "SCENARIOS", "STRATEGIES", "Case", "Choice", "Scenario", "plan"]


class Scenario(NamedTuple):
    """How many messages are published, and at what rate."""

    messages: int
    rate: int | None = None
    """Messages per second; None for as fast as possible."""


SCENARIOS = {
    # The four of the report.
    "low": Scenario(500),
    "medium": Scenario(2_000),
    "high": Scenario(5_000),
    "extreme": Scenario(10_000),
    # So long that a start, a pause of the garbage collector or a slow second hardly counts.
    "sustained": Scenario(100_000),
    "million": Scenario(1_000_000),
    # So slow that no message waits in a queue: shows the time from submit to ack.
    "paced": Scenario(3_000, rate=1_000),
}

STRATEGIES = {
    "jetstream": {
        "before": "where the report started: a stream look-up per publish, acks not awaited",
        "sync": "nats-py's publish, each awaited before the next",
        "task": "nats-py's publish, a task per message",
        "async": "nats-py's publish_async, as documented",
        "raw": "nats-py's publish, with a reply subject of our own whose acks are only counted",
        "pool": "our pool, on a stream without batching: one PubAck per message",
        "batch": "our pool, on a stream that allows batching",
        "lean": "a hand-written fast-ingest loop: the upper limit",
        "flow": "a whole dataflow through jop.publish, on a stream that allows batching",
        "source": "a dataflow that reads the stream back through jop.input",
        "pull": "a hand-written pull loop that reads the stream back; runs with source",
    },
    "kafka": {
        "sync": "confluent-kafka, flushed after every message",
        "sink": "a whole dataflow through Bytewax's KafkaSink",
        "confluent": "a hand-written loop with a callback and a result per message",
        "pool": "our pool",
        "flow": "a whole dataflow through jop.publish",
    },
}
BROKERS = tuple(STRATEGIES)

READERS = frozenset({"source", "pull"})
CAPPED = {"before": 10_000, "sync": 10_000, "task": 10_000}
"""Strategies whose speed does not depend on the number of messages: more only take longer."""
NEVER_PACED = frozenset({"lean", "source", "pull"})
"""A batch of one message would be a plain publish, and reading has no rate."""
WITH_ACK_WORKERS = frozenset({"pool", "batch", "flow"})
WITH_MAX_PENDING = frozenset({"async", "raw", "pool", "batch", "flow"})


class Case(NamedTuple):
    """One strategy under one set of conditions; it is measured in several rounds."""

    scenario: str
    broker: str
    storage: str
    ids: str
    """Where the event id goes: `msgid`, by which the server recognises duplicates, or another
    `header`.
    """
    strategy: str
    messages: int
    payload_bytes: int
    batch: int
    """Messages that come at once: in a source's batch, a submission to the pool, a loop's write."""
    ack_workers: int | None = None
    max_pending: int | None = None
    """Messages that may be unsettled at once; None for the default of the publishing library."""
    rate: int | None = None


class Choice(NamedTuple):
    """What the options of a run choose."""

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
    """The cases of a choice, in groups that take turns: one per scenario, payload and batch."""
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
            # Kafka has neither a duplicate table nor a memory store to choose.
            conditions = (
                product(choice.storage, choice.ids)
                if broker == "jetstream"
                else [("file", "header")]
            )
            for (storage, ids), workers, pending in product(
                conditions, choice.ack_workers, choice.max_pending
            ):
                yield Case(
                    scenario=name,
                    broker=broker,
                    storage=storage,
                    ids=ids,
                    strategy=strategy,
                    messages=min(scenario.messages, CAPPED.get(strategy, scenario.messages)),
                    payload_bytes=payload,
                    batch=batch,
                    ack_workers=workers if strategy in WITH_ACK_WORKERS else None,
                    max_pending=pending if strategy in WITH_MAX_PENDING else None,
                    rate=scenario.rate,
                )
