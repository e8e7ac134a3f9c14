"""A worker's way out of the dataflow: its lane in the process's shared pool."""

from .. import drain
from ..envelope import PublishResult
from ..errors import PublishError
from ..pool import Lane, borrow_pool, give_back_pool
from ..publishing import Publisher
from ..settings import BrokerSettings, JetStreamSettings, KafkaSettings

__all__ = ["Outlet", "not_stored", "publisher_for"]


def publisher_for(settings: BrokerSettings) -> Publisher:
    """The publisher of a broker; only the broker that is used has its library loaded."""
    if isinstance(settings, KafkaSettings):
        from ..kafka.publisher import KafkaPublisher

        return KafkaPublisher(settings)
    if not isinstance(settings, JetStreamSettings):
        return settings.publisher()
    from ..jetstream.publisher import JetStreamPublisher

    return JetStreamPublisher(settings)


def not_stored(result: PublishResult, *, step: str, lane: str) -> PublishError:
    """The error of a step that must not lose this envelope."""
    return PublishError(
        f"envelope {result.event_id} on {result.topic} is {result.outcome}: {result.reason}",
        step=step,
        lane=lane,
        broker=result.broker,
        topic=result.topic,
        event_id=result.event_id,
        outcome=result.outcome,
        code=result.code,
        reason=result.reason,
    )


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
