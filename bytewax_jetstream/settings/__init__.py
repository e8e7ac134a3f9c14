"""All settings: of the pool, of JetStream and of Kafka; `sources` says where values come from."""

from .jetstream import JetStreamSettings, StreamSettings
from .kafka import KafkaSettings, KafkaTopicSettings
from .pool import PoolSettings, PublisherSettings
from .run import RunSettings
from .sources import StreamStrategy
from .tracing import TracingSettings

__all__ = [
    "BrokerSettings",
    "JetStreamSettings",
    "KafkaSettings",
    "KafkaTopicSettings",
    "PoolSettings",
    "PublisherSettings",
    "RunSettings",
    "StreamSettings",
    "StreamStrategy",
    "TracingSettings",
]

BrokerSettings = JetStreamSettings | KafkaSettings | PublisherSettings
"""Which broker, and everything that differs between brokers."""
