"""The bare pool with one lane to a broker, for tests that need no dataflow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from bytewax_jetstream.dataflow.outlet import publisher_for
from bytewax_jetstream.envelope import Envelope, PublishResult
from bytewax_jetstream.pool.ack_pool import AckPool
from bytewax_jetstream.pool.lane import Lane
from bytewax_jetstream.settings import (
    BrokerSettings,
    JetStreamSettings,
    KafkaSettings,
    PoolSettings,
)

__all__ = ["Opened", "broker_of", "jetstream", "kafka", "opened", "publish", "settle"]


class Opened(NamedTuple):
    pool: AckPool
    lane: Lane


def jetstream(
    url: str,
    *,
    ack_timeout: float = 1.0,
    delivery_timeout: float = 30.0,
    pool: dict[str, Any] | None = None,
    **settings: Any,
) -> JetStreamSettings:
    """Settings with deadlines for tests; whatever else is the default."""
    return JetStreamSettings(
        servers=tuple(url.split(",")),
        pool=PoolSettings(ack_timeout=ack_timeout, delivery_timeout=delivery_timeout, **pool or {}),
        **settings,
    )


def kafka(
    address: str,
    *,
    ack_timeout: float = 1.0,
    delivery_timeout: float = 30.0,
    pool: dict[str, Any] | None = None,
    **settings: Any,
) -> KafkaSettings:
    """Settings for Kafka with deadlines for tests; whatever else is the default."""
    return KafkaSettings(
        brokers=tuple(address.split(",")),
        pool=PoolSettings(ack_timeout=ack_timeout, delivery_timeout=delivery_timeout, **pool or {}),
        **settings,
    )


@contextmanager
def opened(settings: BrokerSettings) -> Iterator[Opened]:
    """A pool and a lane; closed at the end without waiting."""
    pool = AckPool(settings.pool)
    try:
        yield Opened(pool, pool.lane(publisher_for(settings), name="lane"))
    finally:
        pool.close(0.0)


def publish(settings: BrokerSettings, *envelopes: Envelope) -> dict[str, PublishResult]:
    """Publish in a pool of its own, and wait; the results by event id."""
    with opened(settings) as (_, lane):
        return settle(lane, envelopes)


def settle(lane: Lane, envelopes: Sequence[Envelope]) -> dict[str, PublishResult]:
    """Publish and wait; the results by event id, one each."""
    lane.submit(envelopes)
    results = lane.flush()
    assert len(results) == len(envelopes)
    return {result.event_id: result for result in results}


def broker_of(pool: AckPool) -> dict[str, Any]:
    """The counters of the pool's one broker."""
    (broker,) = pool.statistics()["brokers"]
    assert isinstance(broker, dict)
    return broker
