"""Publishes what a dataflow produces to NATS JetStream or Kafka; every result comes back.

    import bytewax_jetstream.operators as jop
    from bytewax_jetstream import Envelope, JetStreamSettings, KafkaSettings

Nothing is loaded before it is used: the pool and the settings need pydantic; `operators`, `sinks`
and `drain_on_signal` need Bytewax; `jetstream` needs nats-py, `kafka` confluent-kafka.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .envelope import Checkpoint, Envelope, Outcome, PublishOptions, PublishResult
from .errors import (
    BenchError,
    ConnectError,
    EnvelopeError,
    JetStreamPipelineError,
    PoolClosedError,
    PublishError,
    RunError,
    SettleTimeoutError,
    SourceError,
    StreamError,
    TopicError,
)

if TYPE_CHECKING:
    from .drain import drain_on_signal
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
    "RunError",
    "SettleTimeoutError",
    "SourceError",
    "StreamError",
    "StreamSettings",
    "TopicError",
    "drain_on_signal",
]


LATER = {
    "AckPool": "pool",
    "JetStreamSettings": "settings",
    "KafkaSettings": "settings",
    "KafkaTopicSettings": "settings",
    "Lane": "pool",
    "PoolSettings": "settings",
    "StreamSettings": "settings",
    "drain_on_signal": "drain",
}
"""The module of each name that is loaded when it is used."""


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{LATER[name]}"), name)
    globals()[name] = found
    return found
