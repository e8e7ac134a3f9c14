"""`Outlet`: a worker's lane in the shared pool; settings to publisher; a result as an error."""

from .. import drain
from ..envelope import PublishResult
from ..errors import PublishError
from ..pool import Lane, borrow_pool, give_back_pool
from ..publishing import Publisher
from ..settings import BrokerSettings, JetStreamSettings, KafkaSettings
from .values import text_of

__all__ = ["Outlet", "not_stored", "publisher_for"]


def publisher_for(settings: BrokerSettings) -> Publisher:
    """The publisher for these settings; the library of the other broker is not loaded."""
    if isinstance(settings, KafkaSettings):
        from ..kafka.publisher import KafkaPublisher

        return KafkaPublisher(settings)
    if not isinstance(settings, JetStreamSettings):
        return settings.publisher()
    from ..jetstream.publisher import JetStreamPublisher

    return JetStreamPublisher(settings)


def not_stored(
    result: PublishResult, *, step: str, lane: str, before: str = "", after: str = ""
) -> PublishError:
    """The error that stops a run because this envelope is not stored.

    :arg before: What the message says before the envelope.
    :arg after: What it says after the reason.
    """
    event_id, topic = text_of(result.event_id), text_of(result.topic)
    return PublishError(
        f"{before}envelope {event_id} on {topic} is {result.outcome}: {result.reason}{after}",
        step=step,
        lane=lane,
        broker=result.broker,
        topic=topic,
        event_id=event_id,
        outcome=result.outcome,
        code=result.code,
        reason=result.reason,
    )


class Outlet:
    """A worker's lane in the process's shared pool, open while the worker runs.

    Opening connects and makes or checks the streams, so that errors come before the first message.
    Closing never raises and never waits: after a normal end nothing is in flight, and after any
    other end the epoch is replayed.
    """

    def __init__(self, settings: BrokerSettings, *, lane: str, step: str, worker: int) -> None:
        pool = borrow_pool(settings.pool)
        try:
            with drain.opening():
                self.lane: Lane = pool.lane(
                    publisher_for(settings),
                    name=lane,
                    step=step,
                    worker=worker,
                    deadline=drain.deadline,
                )
        except BaseException:
            give_back_pool()
            raise
        # Sources close before the messages they emitted are settled. So lanes count too: a signal
        # after the sources' end must still drain.
        drain.enter()
        self._open = True

    def close(self) -> None:
        """Close the lane, and give the pool back. What is unsettled becomes unknown, and nobody
        collects it.
        """
        if self._open:
            self._open = False
            drain.leave()
            self.lane.close()
            give_back_pool()
