"""Where the flights go: the streams or topics, at the configured broker or an embedded one."""

import atexit
from datetime import timedelta
from typing import NamedTuple

from bytewax_jetstream.settings import (
    JetStreamSettings,
    KafkaSettings,
    KafkaTopicSettings,
    StreamSettings,
)
from bytewax_jetstream.testing import KafkaServer, NatsServer

from .settings import FlightsBroker, FlightsSettings

__all__ = ["StreamNames", "broker_settings", "stream_names"]

# A run that is resumed within a week sends the last epoch's messages again, and the server still
# recognises them as duplicates.
WINDOW = timedelta(days=7)
FLIGHTS = StreamSettings(name="FLIGHTS", subjects=("flights.>",), duplicate_window=WINDOW)
DEAD_LETTERS = StreamSettings(
    name="FLIGHTS_DEAD", subjects=("flights-dead.>",), duplicate_window=WINDOW
)
KAFKA_FLIGHTS = KafkaTopicSettings(name="flights", partitions=4)
KAFKA_DEAD_LETTERS = KafkaTopicSettings(name="flights-dead", partitions=1)


class StreamNames(NamedTuple):
    """The two streams, or topics, of the job."""

    flights: str
    dead_letters: str


def stream_names(broker: FlightsBroker) -> StreamNames:
    """What the streams or topics are called at this broker."""
    if isinstance(broker, KafkaSettings):
        return StreamNames(KAFKA_FLIGHTS.name, KAFKA_DEAD_LETTERS.name)
    return StreamNames(FLIGHTS.name, DEAD_LETTERS.name)


def broker_settings(settings: FlightsSettings) -> FlightsBroker:
    """How to reach the configured broker, or an embedded one that ends with this process."""
    return _kafka(settings) if settings.broker == "kafka" else _jetstream(settings)


def _jetstream(settings: FlightsSettings) -> JetStreamSettings:
    replicas = {"replicas": settings.replicas}
    streams = tuple(each.model_copy(update=replicas) for each in (FLIGHTS, DEAD_LETTERS))
    jetstream = JetStreamSettings(streams=streams)
    if "servers" in jetstream.model_fields_set:
        return jetstream
    server = NatsServer(store_dir=settings.directory.nats).start()
    atexit.register(server.close)
    return jetstream.model_copy(update={"servers": (server.url,)})


def _kafka(settings: FlightsSettings) -> KafkaSettings:
    kafka = KafkaSettings(topic_settings=(KAFKA_FLIGHTS, KAFKA_DEAD_LETTERS))
    if "brokers" in kafka.model_fields_set:
        return kafka
    server = KafkaServer(data_dir=settings.directory.kafka).start()
    atexit.register(server.close)
    return kafka.model_copy(update={"brokers": (server.bootstrap,)})
