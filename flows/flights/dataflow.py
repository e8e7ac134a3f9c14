"""The dataflow: flights in; envelopes, dead letters, results and checkpoints out."""

from pathlib import Path

import bytewax.operators as op
from bytewax.dataflow import Dataflow

import bytewax_jetstream.operators as jop
from bytewax_jetstream import drain_on_signal
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.settings import KafkaSettings

from .brokers import broker_settings
from .data import FlightsSource
from .envelopes import no_tail_number, refused, to_envelope
from .results import ResultsSink, one_writer
from .settings import FlightsBroker, FlightsSettings

__all__ = ["build", "flow"]


def flow() -> Dataflow:
    """Make the dataflow, with settings from the environment, and start its broker if it needs one.

    It is a function, so that importing the module starts no broker; `python -m bytewax.run` calls
    it.
    """
    settings = FlightsSettings()
    settings.directory.claim()
    source = FlightsSource(settings.partitions, settings.limit)
    return build(source, broker_settings(settings), settings.directory.results)


def build(source: FlightsSource, broker: FlightsBroker, results: Path) -> Dataflow:
    """Make the dataflow.

    :arg results: The database that results and checkpoints are written to.
    """
    addressed = _one_topic if isinstance(broker, KafkaSettings) else _unchanged
    flow = Dataflow("flights")
    flights = op.input("flights", flow, drain_on_signal(source, timeout=broker.pool.drain_timeout))
    known = op.branch("has-tail-number", flights, lambda flight: flight.tailnum != "")
    envelopes = op.map("to-envelope", known.trues, lambda flight: addressed(to_envelope(flight)))
    out = jop.publish("publish", envelopes, broker)
    unknown = op.map("no-tail-number", known.falses, no_tail_number)
    dead = op.map(
        "to-dead-letters",
        op.merge("dead", unknown, op.map("refused", out.errs, refused)),
        addressed,
    )
    jop.output("dead-letter", dead, broker)
    packed = [
        op.flat_map_batch("pack-oks", out.oks, one_writer),
        op.flat_map_batch("pack-errs", out.errs, one_writer),
        op.flat_map_batch("pack-checkpoints", out.checkpoints, one_writer),
    ]
    op.output("results", op.merge("settled", *packed), ResultsSink(results))
    return flow


def _unchanged(envelope: Envelope) -> Envelope:
    return envelope


def _one_topic(envelope: Envelope) -> Envelope:
    """On Kafka all flights share a topic; the key keeps an aircraft's flights in order."""
    return envelope._replace(topic=envelope.topic.partition(".")[0])
