"""Picks the reader for a broker."""

from bytewax_jetstream.settings import BrokerSettings, KafkaSettings

from .audit import Reader
from .jetstream import StreamReader

__all__ = ["open_reader"]


def open_reader(broker: BrokerSettings) -> Reader:
    """Connect to the broker, to count and read what it has stored.

    :raises AuditError: when it cannot be reached.
    """
    if isinstance(broker, KafkaSettings):
        from .kafka import TopicReader  # which loads confluent-kafka

        return TopicReader(broker)
    return StreamReader(broker)
