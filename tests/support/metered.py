"""A dataflow that reads a broker and publishes to it, in a process of its own that is scraped.

An environment variable tells it what to read. Of the numbers that it reads, one becomes an envelope
that is rejected, and one an envelope that was published before.
"""

import json
import os
from typing import Any, NamedTuple

import bytewax.operators as op
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow

import bytewax_jetstream.operators as jop
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.settings import BrokerSettings, JetStreamSettings, KafkaSettings

__all__ = ["METERED", "REJECTED", "REPEATED", "Metered"]

METERED = "TEST_METERED"
"""The environment variable."""
REJECTED = 7
"""This number is rejected: its headers are none."""
REPEATED = 9
"""This number has the event id, the topic and the payload of the one before it."""


class Metered(NamedTuple):
    """What the flow is told."""

    broker: str
    address: str
    reads: str
    """A stream or topic with the numbers from 1."""
    writes: str
    """A subject or topic."""
    group: str | None = None
    writes_at: str | None = None
    """JetStream: another server to publish to."""

    @property
    def environment(self) -> dict[str, str]:
        """For the process of the flow."""
        return {METERED: json.dumps(self)}


def _envelope(topic: str, number: int) -> Envelope:
    headers: Any = 5 if number == REJECTED else None
    number -= number == REPEATED
    return Envelope(topic, b"%d" % number, f"{topic}-{number}", headers=headers)


def _flow(told: Metered) -> Dataflow:
    flow = Dataflow("metered")
    settings: BrokerSettings
    if told.broker == "kafka":
        settings = KafkaSettings(brokers=(told.address,))
        records = jop.input("in", flow, settings, topics=told.reads, group=told.group).oks
        numbers = op.map("number", records, lambda each: int(each.value or b""))
    else:
        settings = JetStreamSettings(servers=(told.address,))
        messages = jop.input("in", flow, settings, stream=told.reads).oks
        numbers = op.map("number", messages, lambda each: int(each.payload or b""))
        settings = JetStreamSettings(servers=(told.writes_at or told.address,))
    envelopes = op.map("envelope", numbers, lambda number: _envelope(told.writes, number))
    out = jop.publish("publish", envelopes, settings)
    op.output("errs", op.map("why", out.errs, lambda each: str(each.reason)), StdOutSink())
    return flow


if METERED in os.environ:
    flow = _flow(Metered(*json.loads(os.environ[METERED])))
