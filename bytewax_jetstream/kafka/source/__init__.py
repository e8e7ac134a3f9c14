"""Reading Kafka topics: every message, by offset, without a consumer group."""

from .message import KafkaFailure, KafkaMessage
from .place import KafkaStart
from .source import KafkaSource, OnError

__all__ = ["KafkaFailure", "KafkaMessage", "KafkaSource", "KafkaStart", "OnError"]
