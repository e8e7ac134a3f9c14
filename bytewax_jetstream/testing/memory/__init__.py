"""A broker in memory, for tests of dataflows: it stores, refuses, delays and loses as it is told.

Nothing leaves the process, and nothing is stored anywhere but in the broker's own list. What a
dataflow does with stored, rejected and unknown envelopes is the same as with a real broker, for
everything between the dataflow and the broker is the real thing.

    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSink, TestingSource, run_main

    import bytewax_jetstream.operators as jop
    from bytewax_jetstream import Envelope, PublishResult
    from bytewax_jetstream.publishing import Refusal, Verdict
    from bytewax_jetstream.testing.memory import MemoryBroker

    TOO_LARGE = Refusal(Verdict.REJECT, "the order is too large")

    def test_an_order_that_is_too_large_is_a_dead_letter() -> None:
        broker, dead = MemoryBroker(like="jetstream"), list[PublishResult]()
        broker.refuses = lambda each: TOO_LARGE if len(each.payload or b"") > 9 else None
        orders = [Envelope("orders", b"1", "order-1"), Envelope("orders", b"2" * 10, "order-2")]
        flow = Dataflow("shop")
        out = jop.publish("publish", op.input("in", flow, TestingSource(orders)), broker.settings)
        op.output("dead-letters", out.errs, TestingSink(dead))
        run_main(flow)
        assert [message.event_id for message in broker.stored_on("orders")] == ["order-1"]
        assert [result.reason for result in dead] == ["the order is too large"]

The faults of a broker, each as long as it is set:

- `broker.refuses = function`: it answers with a refusal what the function does not let it store.
  `Verdict.RETRY` is tried again, `REJECT` becomes a rejected result, `STOP` stops the run.
- `broker.delay = seconds`: its answers come later; `math.inf` holds them back.
- `broker.loses_answers = share`: it stores, and these answers are lost; 1.0 is silence.
- `broker.loses_requests = share`: these messages never reach it; 1.0 is silence too.
- `broker.reset()`: connections are reset, and the answers on them are lost.
- `broker.go_down()`, `broker.come_up()`: it takes no connections in between.
- `broker.fail(reason)`: its publishers fail for good.

It is not a server: it has one stream for all topics (or any topic, each with partitions), no
limits of its own, no groups that are stored all or none; it checks the types of an envelope's
fields, not a server's rules for their text; messages never expire, and event ids are never
forgotten. For these use `NatsServer` and `KafkaServer`.
"""

from .broker import MemoryBroker, MemorySettings
from .storage import Stored

__all__ = ["MemoryBroker", "MemorySettings", "Stored"]
