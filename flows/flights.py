"""The main job: a year of flights into JetStream or Kafka, every publish result into SQLite.

    python -m flows.flights                       the demonstration: progress bar, then a count of
    the stream python -m bytewax.run flows.flights:flow      the same dataflow as any other

A flight becomes an event of its aircraft and goes to stream FLIGHTS; one without a tail number, or
refused by the server, goes to FLIGHTS_DEAD with the reason, or the run stops. Killed and started
again, it goes on after the last committed epoch:

    python -m bytewax.recovery db 1
    python -m bytewax.run flows.flights:flow -w2 -r db -s 1 -b 0

Without `BYTEWAX_JETSTREAM_SERVERS` it runs an embedded nats-server of its own, which lives as long
as this process, and so serves any number of workers but only one process (`-w`, not `-i` and `-a`).
With `FLIGHTS_BROKER=kafka` it is topic `flights` and `BYTEWAX_JETSTREAM_KAFKA_BROKERS`, or a Kafka
broker of its own.
"""

import atexit
import fcntl
import sys
from datetime import timedelta
from pathlib import Path
from typing import Literal, TextIO

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from pydantic import PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

import bytewax_jetstream.operators as jop
from bytewax_jetstream.drain import drain_on_signal
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.errors import JetStreamPipelineError
from bytewax_jetstream.settings import (
    BrokerSettings,
    JetStreamSettings,
    KafkaSettings,
    KafkaTopicSettings,
    StreamSettings,
)
from bytewax_jetstream.testing import KafkaServer, NatsServer
from flows.flights_data import FlightsSource, no_tail_number, refused, to_envelope
from flows.flights_results import ResultsSink, one_writer

__all__ = [
    "DEAD_LETTERS",
    "FLIGHTS",
    "FlightsSettings",
    "RunDirectoryError",
    "broker",
    "dataflow",
    "enter",
    "flow",
]

# Whoever resumes a killed run within a week has its last epoch's messages known as duplicates.
WINDOW = timedelta(days=7)
FLIGHTS = StreamSettings(name="FLIGHTS", subjects=("flights.>",), duplicate_window=WINDOW)
DEAD_LETTERS = StreamSettings(
    name="FLIGHTS_DEAD", subjects=("flights-dead.>",), duplicate_window=WINDOW
)
KAFKA_FLIGHTS = KafkaTopicSettings(name="flights", partitions=4)
KAFKA_DEAD_LETTERS = KafkaTopicSettings(name="flights-dead", partitions=1)


class FlightsSettings(BaseSettings):
    """This job's own settings (`FLIGHTS_…`); those of `BYTEWAX_JETSTREAM_…` say how to reach the
    broker.
    """

    model_config = SettingsConfigDict(env_prefix="FLIGHTS_")

    broker: Literal["jetstream", "kafka"] = "jetstream"
    """Where the flights go."""
    run_dir: Path = Path(__file__).with_name(".run")
    """Where the run keeps what it must not lose: the embedded server's store, the results, the
    recovery store.
    """
    partitions: PositiveInt = 4
    """How many partitions the input has; not to be changed between a run and its resumption."""
    limit: PositiveInt | None = None
    """Only so many rows from the beginning of the year."""

    @property
    def results(self) -> Path:
        """The database of results and checkpoints."""
        return self.run_dir / "results.sqlite"


class RunDirectoryError(JetStreamPipelineError):
    """The run directory cannot be used; nothing was read or published."""


def flow() -> Dataflow:
    """Make the dataflow, with settings from the environment, and start its server if it needs one.

    A function, so that a server runs only where the dataflow does; `python -m bytewax.run` calls
    it.
    """
    settings = FlightsSettings()
    enter(settings.run_dir)
    return dataflow(FlightsSource(settings.partitions, settings.limit), broker(settings), settings)


def dataflow(source: FlightsSource, broker: BrokerSettings, settings: FlightsSettings) -> Dataflow:
    """Flights in; envelopes to the broker; results, checkpoints and dead letters to where they
    belong.
    """
    addressed = _one_topic if isinstance(broker, KafkaSettings) else _as_it_is
    flow = Dataflow("flights")
    flights = op.input("flights", flow, drain_on_signal(source, timeout=broker.pool.drain_timeout))
    known = op.branch("has-tail-number", flights, lambda flight: flight.tailnum != "")
    envelopes = op.map("to-envelope", known.trues, lambda flight: addressed(to_envelope(flight)))
    out = jop.publish("publish", envelopes, broker)
    lost = op.map("no-tail-number", known.falses, no_tail_number)
    dead = op.map(
        "to-dead-letters", op.merge("dead", lost, op.map("refused", out.errs, refused)), addressed
    )
    jop.output("dead-letter", dead, broker)
    packed = [
        op.flat_map_batch("pack-oks", out.oks, one_writer),
        op.flat_map_batch("pack-errs", out.errs, one_writer),
        op.flat_map_batch("pack-checkpoints", out.checkpoints, one_writer),
    ]
    op.output("results", op.merge("settled", *packed), ResultsSink(settings.results))
    return flow


def enter(run_dir: Path) -> TextIO:
    """Make the run directory, and hold it until what is returned is closed, at the latest with this
    process.

    :raises RunDirectoryError: when it cannot be written, or another run is using it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / "lock").open("w")
    except OSError as error:
        raise RunDirectoryError(
            f"the run directory {run_dir} cannot be written ({error.strerror}): "
            "make it writable, or name another one in FLIGHTS_RUN_DIR"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunDirectoryError(
            f"another run is using {run_dir}: wait for it, end it, or name another directory in FLIGHTS_RUN_DIR"
        ) from None
    atexit.register(lock.close)
    return lock


def _as_it_is(envelope: Envelope) -> Envelope:
    return envelope


def _one_topic(envelope: Envelope) -> Envelope:
    """One topic for all on Kafka: the key keeps an aircraft's flights in one partition, in order."""
    return envelope._replace(topic=envelope.topic.partition(".")[0])


def broker(settings: FlightsSettings) -> BrokerSettings:
    """The configured broker, or an embedded one that ends with this process."""
    if settings.broker == "kafka":
        return _kafka(settings)
    jetstream = JetStreamSettings(streams=(FLIGHTS, DEAD_LETTERS))
    if "servers" in jetstream.model_fields_set:
        return jetstream
    server = NatsServer(store_dir=settings.run_dir / "nats").start()
    atexit.register(server.close)
    return jetstream.model_copy(update={"servers": (server.url,)})


def _kafka(settings: FlightsSettings) -> KafkaSettings:
    kafka = KafkaSettings(topic_settings=(KAFKA_FLIGHTS, KAFKA_DEAD_LETTERS))
    if "brokers" in kafka.model_fields_set:
        return kafka
    server = KafkaServer(data_dir=settings.run_dir / "kafka").start()
    atexit.register(server.close)
    return kafka.model_copy(update={"brokers": (server.bootstrap,)})


if __name__ == "__main__":
    from flows.flights_demo import main

    sys.exit(main())
