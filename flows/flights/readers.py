"""Picks the reader for a broker."""

from bytewax_jetstream.settings import KafkaSettings

from .audit import Reader
from .jetstream import StreamReader
from .settings import FlightsBroker

__all__ = ["open_reader"]


def open_reader(broker: FlightsBroker) -> Reader:
    """Connect to the broker, to count and read what it has stored.

    :raises AuditError: when it cannot be reached.
    """
    if isinstance(broker, KafkaSettings):
        from .kafka import TopicReader  # which loads confluent-kafka

        return TopicReader(broker)
    return StreamReader(broker)
