"""librdkafka's producer, and its delivery reports gathered for the pool's thread.

Reports are served in three places: a thread that polls, so that they come while the dataflow idles;
the pool's thread after each flight, because the polling thread alone starves on the GIL; and
whoever waits for an epoch's end, in steps of `flush`, because only a flush makes librdkafka send at
once instead of lingering.
"""

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ..errors import ConnectError
from ..publishing.answers import Receipt
from ..settings import KafkaSettings
from .config import producer

__all__ = ["INDEX_BITS", "Client", "Failure", "error_of", "place_of"]

log = logging.getLogger(__name__)
library_log = logging.getLogger("bytewax_jetstream.kafka.librdkafka")

POLL = 0.05
"""Seconds a poll waits for a report, and the thread's end for the poll."""
STEP = 0.001
"""Seconds of one flush: it returns late rather than early while another thread serves the reports.
"""
PAUSE = 0.0002
"""Seconds between two of them."""

INDEX_BITS = 10
INDEX_MASK = (1 << INDEX_BITS) - 1

DeliveryCallback = Callable[[KafkaError | None, Message], None]
Failure = tuple[int, int, int, str]
"""Flight, index, error code and text of a message that was not stored."""


def place_of(flight: int, index: int) -> int:
    """A message's flight and its index in it, which is below 1,024, in one number."""
    return flight << INDEX_BITS | index


def error_of(error: BaseException) -> KafkaError | None:
    """Kafka's own word in an exception; a fatal one can come as the cause of a `SystemError`."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KafkaException) and seen.args and isinstance(seen.args[0], KafkaError):
            return seen.args[0]
        seen = seen.__cause__ or seen.__context__
    return None


class Client:
    """One producer with its polling thread; its methods may be called on any thread.

    :arg on_reports: Called on whichever thread has served reports, when there were none before.
    :arg on_failure: Called once, likewise, when the producer is beyond repair.
    :raises ConnectError: when librdkafka does not take the settings.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        on_reports: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self.acks: list[tuple[int, int, Receipt]] = []
        self.failures: list[Failure] = []
        self.last_error: KafkaError | None = None
        """What was wrong with a connection lately; librdkafka goes on by itself."""
        self.report = _report_type(self.acks.append, self.failures.append)
        """Makes what takes one message's report, from its `place_of`."""
        self._on_reports, self._on_failure = on_reports, on_failure
        self._told = False
        self._queued = 0
        """When somebody was last in a hurry."""
        self._failed = False
        self._closing = False
        self._pid = os.getpid()
        try:
            self._producer = Producer(
                {**producer(settings), "error_cb": self._on_error, "logger": library_log}
            )
        except (KafkaException, TypeError, ValueError) as error:
            raise ConnectError(
                f"librdkafka does not accept the settings ({error}): correct them",
                broker="kafka",
                servers=settings.brokers,
                reason=str(error),
            ) from None
        self.produce = self._producer.produce
        self._thread = threading.Thread(
            target=self._poll, name="bytewax_jetstream-kafka", daemon=True
        )
        self._thread.start()

    def __len__(self) -> int:
        """Messages and reports that are with librdkafka."""
        return len(self._producer)

    def list_topics(self, seconds: float) -> Any:
        """The cluster's metadata, from a broker; raises `KafkaException` when none answers in time."""
        return self._producer.list_topics(timeout=seconds)

    def serve(self) -> None:
        """Take the reports that are there."""
        self._guarded(self._producer.poll, 0)

    def hurry(self) -> None:
        """Have librdkafka send what lingers, for a moment; not while it gets on anyway, which this
        would slow down.
        """
        if self._closing or self._pid != os.getpid():
            return
        before, self._queued = self._queued, len(self._producer)
        if self._queued and self._queued >= before:
            self._guarded(self._producer.flush, STEP)

    def take(self) -> tuple[list[tuple[int, int, Receipt]], list[Failure]]:
        """The reports since the last call."""
        self._told = (
            False  # before the lists are looked at: who appends after that look tells again
        )
        return _cut(self.acks), _cut(self.failures)

    def close(self, seconds: float) -> int:
        """Let go of everything within that time; returns how many messages had no report.

        Never librdkafka's own `close`, which waits for as long as a message may take.
        """
        self._closing = True
        if self._pid != os.getpid():
            return 0
        self._thread.join(seconds)
        left = len(self._producer)
        try:
            self._producer.purge()
            self._producer.flush(seconds)
        except BaseException as error:
            log.debug("closing a producer: %r", error)
        del self.produce
        del self._producer  # on this thread, because it waits for the library's own
        return left

    def _poll(self) -> None:
        poll = self._producer.poll
        while not self._closing and not self._failed:
            self._guarded(poll, POLL)

    def _guarded(self, serve: Callable[[float], int], seconds: float) -> None:
        """Serve reports; what is raised here is fatal to the producer, not to the thread that
        happens to serve.
        """
        try:
            serve(seconds)
        except (
            KeyboardInterrupt,
            SystemExit,
        ):  # a signal, on the main thread: not the producer's fault
            raise
        except BaseException as error:
            if not self._closing:
                self._fail(error)
        if (self.acks or self.failures) and not self._told:
            self._told = True
            self._on_reports()

    def _fail(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            log.error("the producer failed", exc_info=error)
            reason = error_of(error) or repr(error)
            self._on_failure(
                f"the Kafka producer has failed ({reason}): check the brokers, then start the "
                "flow again"
            )

    def _on_error(self, error: KafkaError) -> None:
        self.last_error = error


def _report_type(
    stored: Callable[[tuple[int, int, Receipt]], None], failed: Callable[[Failure], None]
) -> "Callable[[int], DeliveryCallback]":
    """A type whose reports go to these two, so that a report needs to know no more than its place."""

    class Report(int):
        """Waits with librdkafka for one message's report, and is that message's place: see
        `place_of`.

        A number, because tens of thousands of them wait at a time: any other object, a bound method
        or a partial too, would be looked at by each collection of garbage (measured: half of all
        the time).
        """

        __slots__ = ()

        def __call__(self, error: KafkaError | None, message: Message) -> None:
            """Called by librdkafka, on whichever thread serves reports; must not raise, and must
            not serve.
            """
            if error is None:
                # A bare tuple of numbers is no work for the garbage collector, as a named one would
                # be.
                receipt = cast(Receipt, (None, message.partition(), message.offset(), None))
                stored((self >> INDEX_BITS, self & INDEX_MASK, receipt))
            else:
                failed((self >> INDEX_BITS, self & INDEX_MASK, error.code(), error.str()))

    return Report


def _cut(items: list[Any]) -> list[Any]:
    """Take what is in a list that another thread appends to."""
    count = len(items)
    taken = items[:count]
    del items[:count]
    return taken
