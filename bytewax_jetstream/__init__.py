"""Publishes what a dataflow produces to NATS JetStream or Kafka; every result comes back.

    import bytewax_jetstream.operators as jop
    from bytewax_jetstream import Envelope, JetStreamSettings, KafkaSettings

This package's own modules import no broker's library and no Bytewax until they are used:
`operators`, `sinks` and `drain_on_signal` need Bytewax, `jetstream` needs nats-py, `kafka` needs
confluent-kafka.
"""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from .drain import drain_on_signal

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
    "drain_on_signal",
]


def __getattr__(name: str) -> Any:
    if name == "drain_on_signal":
        from .drain import drain_on_signal  # which loads Bytewax

        return drain_on_signal
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
