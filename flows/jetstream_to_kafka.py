"""Carries a JetStream stream into a Kafka topic: ids, keys, headers and the order of each aggregate
are kept.

    BRIDGE_STREAM=ORDERS BRIDGE_TOPIC=orders python -m bytewax.run flows.jetstream_to_kafka:flow

How to reach the brokers is said by `BYTEWAX_JETSTREAM_…` and `BYTEWAX_JETSTREAM_KAFKA_…`. What
cannot be stored stops the run; started again with a recovery store, it goes on after the last
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
    """What is carried where (`BRIDGE_…`)."""

    model_config = SettingsConfigDict(env_prefix="BRIDGE_")

    stream: str
    """The JetStream stream to read."""
    topic: str
    """The Kafka topic to write."""
    tail: bool = True
    """Whether to go on with what comes later."""


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
