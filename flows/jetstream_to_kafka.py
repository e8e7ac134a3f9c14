"""Copies a JetStream stream to a Kafka topic; keeps ids, keys, times, headers, tombstones, and the
order of each aggregate.

    export BRIDGE_STREAM=ORDERS BRIDGE_TOPIC=orders
    python -m bytewax.run flows.jetstream_to_kafka:flow

`BYTEWAX_JETSTREAM_…` and `BYTEWAX_JETSTREAM_KAFKA_…` say how to reach the brokers. A message that
cannot be stored stops the run. Started again with a recovery store, it continues after the last
committed epoch.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from pydantic_settings import BaseSettings, SettingsConfigDict

import bytewax_jetstream.operators as jop
from bytewax_jetstream import JetStreamSettings, KafkaSettings
from bytewax_jetstream.bridge import from_jetstream

__all__ = ["BridgeSettings", "flow"]


class BridgeSettings(BaseSettings):
    """What is copied, and where to (`BRIDGE_…`)."""

    model_config = SettingsConfigDict(env_prefix="BRIDGE_")

    stream: str
    """The JetStream stream to read."""
    topic: str
    """The Kafka topic to write."""
    tail: bool = True
    """Whether to wait for new messages at the end of the stream."""


def flow() -> Dataflow:
    """Make the dataflow, with settings from the environment; `python -m bytewax.run` calls it."""
    bridge = BridgeSettings()
    flow = Dataflow("jetstream_to_kafka")
    read = jop.input("stream", flow, JetStreamSettings(), stream=bridge.stream, tail=bridge.tail)
    envelopes = op.map(
        "envelope", read.oks, lambda message: from_jetstream(message, bridge.topic, own_id=True)
    )
    jop.output("topic", envelopes, KafkaSettings(topics=(bridge.topic,)))
    return flow
