"""Publishes what a dataflow produces to NATS JetStream or Kafka; every result comes back.

    import bytewax_jetstream.operators as jop
    from bytewax_jetstream import Envelope, JetStreamSettings, KafkaSettings

This package's own modules import no broker's library and no Bytewax until they are used:
`operators`, `sinks` and `drain` need Bytewax, `jetstream` needs nats-py, `kafka` needs
confluent-kafka.
"""

from .envelope import Checkpoint, Envelope, Outcome, PublishOptions, PublishResult
from .errors import (
    BenchError,
    ConnectError,
    EnvelopeError,
    JetStreamPipelineError,
    PoolClosedError,
    PublishError,
    SettleTimeoutError,
    SourceError,
    StreamError,
    TopicError,
)
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
    "BenchError",
    "Checkpoint",
    "ConnectError",
    "Envelope",
    "EnvelopeError",
    "JetStreamPipelineError",
    "JetStreamSettings",
    "KafkaSettings",
    "KafkaTopicSettings",
    "Lane",
    "Outcome",
    "PoolClosedError",
    "PoolSettings",
    "PublishError",
    "PublishOptions",
    "PublishResult",
    "SettleTimeoutError",
    "SourceError",
    "StreamError",
    "StreamSettings",
    "TopicError",
]
