"""The main job: a year of flights goes to JetStream or Kafka, and every publish result to SQLite.

    python -m flows.flights                    the demo: a progress bar, then a count of the stream
    python -m bytewax.run flows.flights:flow   the same dataflow, run like any other

A flight becomes an event of its aircraft and goes to stream FLIGHTS. A flight without a tail
number, and one that the broker rejects, goes to FLIGHTS_DEAD with the reason. If a dead letter is
rejected too, the run stops. Start a killed run again with the same command, and it continues after
its last committed epoch:

    python -m bytewax.recovery db 1
    python -m bytewax.run flows.flights:flow -w2 -r db -s 1 -b 0

Without `BYTEWAX_JETSTREAM_SERVERS` it starts an embedded nats-server, which ends with this process.
So it can have any number of workers, but only one process: use `-w`, not `-i` and `-a`. With
`FLIGHTS_BROKER=kafka` the flights go to topic `flights`, at `BYTEWAX_JETSTREAM_KAFKA_BROKERS` or at
an embedded Kafka broker.
"""

from .dataflow import flow

__all__ = ["flow"]
