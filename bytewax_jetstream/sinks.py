"""Sinks for `op.output`: a write returns when the broker has stored it, or the run stops."""

from collections.abc import Sequence

from bytewax.outputs import DynamicSink, StatelessSinkPartition

from . import drain
from .envelope import Envelope, Outcome
from .errors import PublishError
from .pool import Lane, borrow_pool, give_back_pool
from .publishing import Publisher
from .settings import BrokerSettings, JetStreamSettings, KafkaSettings

__all__ = ["JetStreamSink", "KafkaSink", "Outlet", "publisher_for"]


def publisher_for(settings: BrokerSettings) -> Publisher:
    """The publisher of a broker; only the broker that is used has its library loaded."""
    if isinstance(settings, KafkaSettings):
        from .kafka.publisher import KafkaPublisher

        return KafkaPublisher(settings)
    if not isinstance(settings, JetStreamSettings):
        return settings.publisher()
    from .jetstream.publisher.publisher import JetStreamPublisher

    return JetStreamPublisher(settings)


class Outlet:
    """A worker's lane in the process's shared pool, for as long as the worker runs.

    Opening it connects and makes or checks the streams, so what is wrong with them is said before
    the first message. Closing it never raises and waits for nothing: after a normal end nothing is
    in flight, and after any other the epoch is replayed.
    """

    def __init__(self, settings: BrokerSettings, *, lane: str, worker: int) -> None:
        pool = borrow_pool(settings.pool)
        try:
            self.lane: Lane = pool.lane(
                publisher_for(settings), name=lane, worker=worker, deadline=drain.deadline
            )
        except BaseException:
            give_back_pool()
            raise
        # Sources close before what they emitted is settled, so a signal finds a lane to drain when
        # they are gone.
        drain.enter()
        self._open = True

    def close(self) -> None:
        """Leave the pool; what is unsettled gets no result."""
        if self._open:
            self._open = False
            drain.leave()
            self.lane.close()
            give_back_pool()


class _Sink(DynamicSink[Envelope]):
    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_SinkPartition":
        """Connect; called by Bytewax for each worker before the first message."""
        return _SinkPartition(
            Outlet(self._settings, lane=f"{step_id}/{worker_index}", worker=worker_index)
        )


class JetStreamSink(_Sink):
    """Store every envelope in JetStream, or stop the run.

    A write waits until all of its envelopes are stored; one that is rejected, or unknown after the
    delivery timeout, raises `PublishError`, and the epoch is not committed. At least once; with
    event ids, once within the stream's duplicate window. Workers are the unit of parallelism.

    `bytewax_jetstream.operators.output` gives the same promise and does not wait at every write.

    :arg settings: Which JetStream, and which streams.
    """

    def __init__(self, settings: JetStreamSettings) -> None:
        super().__init__(settings)


class KafkaSink(_Sink):
    """Store every envelope in Kafka, or stop the run.

    A write waits for the delivery report of each of its envelopes; one that is rejected, or unknown
    at the delivery timeout, raises `PublishError`, and the epoch is not committed. At least once:
    after a crash the last epoch's envelopes are stored again, with the same event ids. Workers are
    the unit of parallelism.

    `bytewax_jetstream.operators.output` gives the same promise and does not wait at every write.

    :arg settings: Which Kafka, and which topics.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__(settings)


class _SinkPartition(StatelessSinkPartition[Envelope]):
    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def write_batch(self, items: Sequence[Envelope]) -> None:
        lane = self._outlet.lane
        lane.submit(items)
        for result in lane.flush():
            if result.outcome is not Outcome.STORED:
                raise PublishError(
                    f"envelope {result.event_id} on {result.topic} is {result.outcome}: {result.reason}"
                )

    def close(self) -> None:
        self._outlet.close()
