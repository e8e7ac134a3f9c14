"""Publishes three good orders and a bad one to JetStream, and prints the result of each."""

import bytewax.operators as op
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource

import bytewax_jetstream.operators as jop
from bytewax_jetstream import Envelope, JetStreamSettings, StreamSettings
from bytewax_jetstream.testing import NatsServer

server = NatsServer()  # starts a real nats-server; leave it out if you have one running
server.start()
settings = JetStreamSettings(
    servers=(server.url,),
    streams=(StreamSettings(name="ORDERS", subjects=("orders.>",)),),
)


def to_envelope(order: dict[str, str]) -> Envelope:
    """Say where an order goes, what identifies it, and which customer it belongs to."""
    return Envelope(
        topic=order["topic"],
        payload=order["item"].encode(),
        event_id=order["id"],
        aggregate_id=order["customer"],
    )


flow = Dataflow("orders")
orders = op.input(
    "orders",
    flow,
    TestingSource(
        [
            {"id": "o-1", "customer": "ada", "item": "tea", "topic": "orders.new"},
            {"id": "o-2", "customer": "bob", "item": "rice", "topic": "orders.new"},
            {"id": "o-3", "customer": "ada", "item": "tea", "topic": "orders.cancelled"},
            {"id": "o-4", "customer": "eve", "item": "soap", "topic": "returns.new"},
        ]
    ),
)
out = jop.publish("publish", op.map("to-envelope", orders, to_envelope), settings)

stored = op.map("stored", out.oks, lambda result: f"{result.event_id} is stored in {result.stream}")
op.output("print-stored", stored, StdOutSink())
dead = op.map("dead", out.errs, lambda result: f"{result.event_id} is rejected: {result.reason}")
op.output("print-dead", dead, StdOutSink())
done = op.map(
    "done", out.checkpoints, lambda c: f"epoch {c.epoch}: {c.stored} stored, {c.rejected} rejected"
)
op.output("print-done", done, StdOutSink())
