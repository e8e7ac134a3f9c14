"""Publish what a dataflow produces to NATS JetStream or Kafka, and get every publish result back as
a stream.

    import bytewax_jetstream.operators as jop
    from bytewax_jetstream import Envelope, JetStreamSettings, KafkaSettings

This package's own modules import no broker's library and no Bytewax until they are used:
`operators`, `sinks` and `drain` need Bytewax, `jetstream` needs nats-py, `kafka` needs
confluent-kafka.
"""

from .envelope import Checkpoint, Envelope, Outcome, PublishOptions, PublishResult
from .pool import AckPool, Lane
from .settings import (
    JetStreamSettings,
    KafkaSettings,
    KafkaTopicSettings,
    PoolSettings,
    StreamSettings,
)

__all__ = [
    "AckPool",
    "Checkpoint",
    "Envelope",
    "JetStreamSettings",
    "KafkaSettings",
    "KafkaTopicSettings",
    "Lane",
    "Outcome",
    "PoolSettings",
    "PublishOptions",
    "PublishResult",
    "StreamSettings",
]
