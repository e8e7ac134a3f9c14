"""Copies a Kafka topic to a JetStream stream; keeps ids, keys, times, headers, tombstones, and the
order of each key.

    export BRIDGE_TOPIC=orders BRIDGE_SUBJECT=orders.kafka
    python -m bytewax.run flows.kafka_to_jetstream:flow

`BYTEWAX_JETSTREAM_…` and `BYTEWAX_JETSTREAM_KAFKA_…` say how to reach the brokers. A message that
cannot be stored stops the run. Started again with a recovery store, it continues after the last
committed epoch.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from pydantic_settings import BaseSettings, SettingsConfigDict

import bytewax_jetstream.operators as jop
from bytewax_jetstream import JetStreamSettings, KafkaSettings
from bytewax_jetstream.bridge import from_kafka

__all__ = ["BridgeSettings", "flow"]


class BridgeSettings(BaseSettings):
    """What is copied, and where to (`BRIDGE_…`)."""

    model_config = SettingsConfigDict(env_prefix="BRIDGE_")

    topic: str
    """The Kafka topic to read."""
    subject: str
    """The JetStream subject to publish to; a stream must cover it."""
    tail: bool = True
    """Whether to wait for new messages at the end of the topic."""


def flow() -> Dataflow:
    """Make the dataflow, with settings from the environment; `python -m bytewax.run` calls it."""
    bridge = BridgeSettings()
    flow = Dataflow("kafka_to_jetstream")
    read = jop.input("topic", flow, KafkaSettings(), topics=bridge.topic, tail=bridge.tail)
    envelopes = op.map(
        "envelope", read.oks, lambda record: from_kafka(record, bridge.subject, own_id=True)
    )
    jop.output("stream", envelopes, JetStreamSettings(topics=(bridge.subject,)))
    return flow
