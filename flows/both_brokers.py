"""Publishes the same envelopes to JetStream and Kafka through one pool, and joins both results of
each envelope by its event id.

    python -m bytewax.run flows.both_brokers:flow

It starts an embedded broker where `BYTEWAX_JETSTREAM_SERVERS` or `BYTEWAX_JETSTREAM_KAFKA_BROKERS`
is not set.
"""

import atexit

import bytewax.operators as op
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource

import bytewax_jetstream.operators as jop
from bytewax_jetstream import (
    Envelope,
    JetStreamSettings,
    KafkaSettings,
    KafkaTopicSettings,
    PublishResult,
    StreamSettings,
)
from bytewax_jetstream.testing import KafkaServer, NatsServer

__all__ = ["flow"]

TOPIC = "orders"
ORDERS = [
    Envelope(TOPIC, b"tea", event_id=f"o-{number}", aggregate_id=f"c-{number % 3}")
    for number in range(10)
]


def flow() -> Dataflow:
    """Make the dataflow, and start the brokers that are not configured."""
    flow = Dataflow("both")
    orders = op.input("orders", flow, TestingSource(ORDERS))
    on_jetstream = jop.publish("jetstream", orders, _jetstream())
    on_kafka = jop.publish("kafka", orders, _kafka())
    both = op.join(
        "both",
        op.key_on("jetstream-by-id", on_jetstream.oks, _event_id),
        op.key_on("kafka-by-id", on_kafka.oks, _event_id),
    )
    op.output("print", op.map("line", both, _line), StdOutSink())
    return flow


def _event_id(result: PublishResult) -> str:
    return result.event_id


def _line(joined: tuple[str, tuple[PublishResult | None, PublishResult | None]]) -> str:
    event_id, (jetstream, kafka) = joined
    assert jetstream is not None, "the join waits for both"
    assert kafka is not None, "the join waits for both"
    return (
        f"{event_id} is in stream {jetstream.stream}, "
        f"and in topic {kafka.topic} at offset {kafka.sequence} of partition {kafka.partition}"
    )


def _jetstream() -> JetStreamSettings:
    settings = JetStreamSettings(streams=(StreamSettings(name="ORDERS", subjects=(TOPIC,)),))
    if "servers" in settings.model_fields_set:
        return settings
    server = NatsServer().start()
    atexit.register(server.close)
    return settings.model_copy(update={"servers": (server.url,)})


def _kafka() -> KafkaSettings:
    settings = KafkaSettings(topic_settings=(KafkaTopicSettings(name=TOPIC, partitions=3),))
    if "brokers" in settings.model_fields_set:
        return settings
    server = KafkaServer().start()
    atexit.register(server.close)
    return settings.model_copy(update={"brokers": (server.bootstrap,)})
