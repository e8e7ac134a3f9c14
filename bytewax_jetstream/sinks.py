"""`JetStreamSink`, `KafkaSink`: sinks for `op.output` whose writes wait until all is stored."""

from collections.abc import Sequence

from bytewax.outputs import DynamicSink, StatelessSinkPartition

from .dataflow.outlet import Outlet, not_stored
from .dataflow.values import check_envelopes
from .envelope import Envelope, Outcome
from .settings import BrokerSettings, JetStreamSettings, KafkaSettings

__all__ = ["JetStreamSink", "KafkaSink"]


class _Sink(DynamicSink[Envelope]):
    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_SinkPartition":
        """Connect; called by Bytewax for each worker before the first message."""
        lane = f"{step_id}/{worker_index}"
        outlet = Outlet(self._settings, lane=lane, step=step_id, worker=worker_index)
        return _SinkPartition(outlet, step_id)


class JetStreamSink(_Sink):
    """Every envelope is stored in JetStream, or the run stops.

    A write waits until all of its envelopes are stored. One that is rejected, or unknown at the
    delivery timeout, raises `PublishError`, and the epoch is not committed. At least once; with
    `dedupe`, once within the stream's duplicate window. Every worker publishes.

    `bytewax_jetstream.operators.output` gives the same guarantee without waiting at every write.

    :arg settings: Which JetStream, and which streams.
    """

    def __init__(self, settings: JetStreamSettings) -> None:
        super().__init__(settings)


class KafkaSink(_Sink):
    """Every envelope is stored in Kafka, or the run stops.

    A write waits until all of its envelopes are stored. One that is rejected, or unknown at the
    delivery timeout, raises `PublishError`, and the epoch is not committed. At least once: after a
    crash the last epoch's envelopes are stored again, with the same event ids. Every worker
    publishes.

    `bytewax_jetstream.operators.output` gives the same guarantee without waiting at every write.

    :arg settings: Which Kafka, and which topics.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__(settings)


class _SinkPartition(StatelessSinkPartition[Envelope]):
    def __init__(self, outlet: Outlet, step_id: str) -> None:
        self._outlet = outlet
        self._step_id = step_id

    def write_batch(self, items: Sequence[Envelope]) -> None:
        check_envelopes(items, self._step_id)
        lane = self._outlet.lane
        lane.submit(items)
        for result in lane.flush():
            if result.outcome is not Outcome.STORED:
                raise not_stored(result, step=self._step_id, lane=lane.name)

    def close(self) -> None:
        self._outlet.close()
