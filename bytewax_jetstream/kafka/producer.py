"""`Client`: librdkafka's producer, its polling thread, delivery reports, and its failures.

Three callers serve reports, that is, let librdkafka call back with the reports it has:

- A polling thread, so that reports come while the dataflow is idle.
- The pool's thread after each send, because the polling thread alone starves on the GIL.
- The thread that waits for the end of an epoch, in short flushes, because only a flush makes
  librdkafka send at once instead of waiting for `linger`.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ..publishing import Receipt
from ..settings import KafkaSettings
from .config import accepted, producer
from .credentials import Credentials
from .encoding import Record
from .library_log import library_log

__all__ = ["INDEX_BITS", "Client", "Failure", "error_of", "hand_over", "place_of"]

log = logging.getLogger(__name__)

CHECK = "check the brokers"
POLL = 0.05
"""Seconds a poll waits for a report; a stopping thread waits for its last poll that long."""
STEP = 0.001
"""Seconds of one flush. It returns late rather than early while another thread serves the reports.
"""
PAUSE = 0.0002
"""Seconds between two flushes."""

INDEX_BITS = 10
INDEX_MASK = (1 << INDEX_BITS) - 1

DeliveryCallback = Callable[[KafkaError | None, Message], None]
RETRY_BACKOFF = 0.1
"""Seconds after which librdkafka tries a request again at the earliest, by its default."""
SUPPRESSED = 30.0
"""Seconds for which librdkafka does not repeat the same line about a connection."""
CUTS = frozenset({"FAIL", "REQTMOUT"})
"""Kinds of librdkafka's log lines about requests whose answers are lost. Only a part of them comes
as errors, too: not that one of several brokers closed its connection.
"""
NOT_YET_CONNECTED = re.compile(
    r"in state (INIT|DOWN|CONNECT|TRY_CONNECT|SSL_HANDSHAKE|APIVERSION_QUERY|AUTH_HANDSHAKE"
    r"|AUTH_LEGACY|AUTH_REQ)\b"
).search
"""In such a line: nothing was sent on that connection. The first address of `localhost` may be
refused at each start, for example.
"""

Failure = tuple[int, int, int, str, float]
"""What librdkafka says of a message it gave up on: number of its send, index in it, error code and
description, and the seconds since it was handed over.
"""


def place_of(number: int, index: int) -> int:
    """One number for a message: the number of its send, and its index in it (below 1,024).

    For example message 5 of send 3: `3 << 10 | 5`, that is 3077.
    """
    return number << INDEX_BITS | index


def hand_over(client: "Client", record: Record, number: int, index: int) -> None:
    """Give a record to librdkafka.

    :raises BufferError, KafkaException: when it has no room, or refuses the record.
    """
    client.produce(
        record.topic, record.payload, record.key, record.partition,
        client.report(place_of(number, index)), None, record.timestamp, record.headers,
    )  # fmt: skip


def error_of(error: BaseException) -> KafkaError | None:
    """The `KafkaError` in an exception, if any; a fatal one can be the cause of a `SystemError`."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KafkaException) and seen.args and isinstance(seen.args[0], KafkaError):
            return seen.args[0]
        seen = seen.__cause__ or seen.__context__
    return None


class Client:
    """One producer with its polling thread; its methods may be called on any thread.

    :arg on_reports: Called when reports arrive and there were none, on the thread that served them.
    :arg on_failure: Called once when the producer has failed for good, on the thread that noticed.
    :arg on_stop: Called when the brokers have refused a request for good, so that nothing more
        is sent, on the thread that noticed. The reports of all messages come.
    :arg on_cut: Called when a connection broke whose requests may not be answered, on the thread
        that serves reports.
    :arg alone: Each message goes in a request of its own. Such a producer does not stop.
    :raises ConnectError: when librdkafka rejects the settings.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        on_reports: Callable[[], None],
        on_failure: Callable[[str], None],
        on_stop: Callable[[], None] = lambda: None,
        on_cut: Callable[[], None] = lambda: None,
        *,
        alone: bool = False,
    ) -> None:
        self.acks: list[tuple[int, int, Receipt]] = []
        self.failures: list[Failure] = []
        self.last_error: KafkaError | None = None
        """The last error of a connection; librdkafka reconnects by itself."""
        self.report = _report_type(self.acks.append, self.failures.append)
        """Makes the callback for one message's report, from its `place_of`."""
        self._cut_at = float("-inf")
        """When librdkafka said last that requests may not be answered."""
        self._on_reports, self._on_failure, self._on_stop = on_reports, on_failure, on_stop
        self._on_cut = on_cut
        self._told = False
        self._queued = 0
        """Messages with librdkafka when `flush_hint` was last called."""
        self._failed = False
        self._closing = False
        self._pid = os.getpid()
        self._credentials = Credentials(settings)
        with accepted(settings):
            self._producer = Producer(
                {
                    **producer(settings, alone=alone),
                    "error_cb": self._on_error,
                    "logger": _Noting(self._on_line),
                }
            )
        self.produce = self._producer.produce
        self._thread = threading.Thread(
            target=self._poll, name="bytewax_jetstream-kafka", daemon=True
        )
        self._thread.start()

    def __len__(self) -> int:
        """Messages and reports that librdkafka holds."""
        return len(self._producer)

    def list_topics(self, seconds: float) -> Any:
        """The cluster's metadata, from a broker.

        :raises KafkaException: when no broker answers in time.
        """
        return self._producer.list_topics(timeout=seconds)

    def partitions(self, topic: str, deadline: float) -> int | None:
        """Have librdkafka look at a topic now, and not within five minutes; returns how many
        partitions it has, 0 without the topic, None if no broker answers by the deadline. Blocks.
        """
        try:
            found = self._producer.list_topics(topic, max(0.1, deadline - time.monotonic()))
        except KafkaException as error:
            log.debug("looking at topic %s: %r", topic, error)
            return None
        seen = found.topics.get(topic)
        return len(seen.partitions) if seen is not None and seen.error is None else 0

    def serve(self) -> None:
        """Serve the reports that have arrived, without waiting."""
        self._guarded(self._producer.poll, 0)

    def flush_hint(self) -> None:
        """Make librdkafka send what lingers, for a millisecond.

        Only if it holds no fewer messages than at the last call: while it makes progress, a flush
        would only slow it down.
        """
        if self._closing or self._pid != os.getpid():
            return
        before, self._queued = self._queued, len(self._producer)
        if self._queued and self._queued >= before:
            self._guarded(self._producer.flush, STEP)

    def take(self) -> tuple[list[tuple[int, int, Receipt]], list[Failure]]:
        """The reports since the last call."""
        # First, so that reports which arrive while the lists are cut are announced again.
        self._told = False
        return _cut(self.acks), _cut(self.failures)

    def may_have_retried(self, seconds: float) -> bool:
        """Whether a message that was handed over so many seconds ago may have been sent more than
        once, so that an attempt before the last may have stored it.

        librdkafka does not say. It sends a message again when the connection broke, which it
        logs, and after a pause.
        """
        return seconds >= RETRY_BACKOFF and self.may_have_been_sent(seconds)

    def may_have_been_sent(self, seconds: float) -> bool:
        """Whether a message that the library still had after so many seconds may have been sent."""
        return time.monotonic() - self._cut_at < seconds + SUPPRESSED

    def give_back(self, *, in_flight: bool = False) -> None:
        """Have the library report what it has not sent, and, if asked for, what is not answered."""
        self._producer.purge(in_queue=True, in_flight=in_flight, blocking=False)

    def close(self, seconds: float) -> int:
        """End the threads within that time, and drop every message without a report: it may be
        stored or not. Returns how many those were.

        Not with librdkafka's own `close`, which waits as long as a message may take.
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
        del self._producer  # this thread waits here for the library's threads
        return left

    def _poll(self) -> None:
        poll = self._producer.poll
        while not self._closing and not self._failed:
            self._guarded(poll, POLL)

    def _guarded(self, serve: Callable[[float], int], seconds: float) -> None:
        """Serve reports. An error raised here means that the producer has failed; the thread that
        happens to serve goes on.
        """
        try:
            serve(seconds)
            if not self._closing:
                self._credentials.renew(self._producer)
        except (KeyboardInterrupt, SystemExit):  # a signal on the main thread
            raise
        except BaseException as error:
            if not self._closing:
                self._fail(error)
        if (self.acks or self.failures) and not self._told:
            self._told = True
            self._on_reports()

    def _fail(self, error: BaseException) -> None:
        found = error_of(error)
        if found is not None and found.code() == KafkaError._GAPLESS_GUARANTEE:  # noqa: SLF001
            self._on_stop()
        elif not self._failed:
            self._failed = True
            # What librdkafka says is an answer, not a defect: a traceback would only hide it.
            log.error("the producer failed: %r", error, exc_info=error if found is None else None)
            denied = found and found.code() == KafkaError.CLUSTER_AUTHORIZATION_FAILED
            remedy = "grant this user IDEMPOTENT_WRITE on the cluster" if denied else CHECK
            self._on_failure(
                f"the Kafka producer has failed ({found or repr(error)}): {remedy}, then start the "
                "flow again"
            )

    def _on_error(self, error: KafkaError) -> None:
        self.last_error = error
        self._credentials.note(error)

    def _on_line(self, kind: str, line: str) -> None:
        if kind in CUTS and not NOT_YET_CONNECTED(line):
            self._cut_at = time.monotonic()
            self._on_cut()


class _Noting(logging.LoggerAdapter[logging.Logger]):
    """Passes on the library's log lines, and has them looked at.

    :arg look: Called with kind and text of each line, on the thread that serves reports.
    """

    def __init__(self, look: Callable[[str, str], None]) -> None:
        super().__init__(library_log)
        self._look = look

    def log(self, level: int, msg: object, *args: object, **more: Any) -> None:
        """Called by the library: kind of the line, name of the client, and text are arguments."""
        if len(args) == 3:
            self._look(str(args[0]), str(args[2]))
        super().log(level, msg, *args, **more)


def _report_type(
    stored: Callable[[tuple[int, int, Receipt]], None], failed: Callable[[Failure], None]
) -> "Callable[[int], DeliveryCallback]":
    """A callback type bound to these two functions, so that each callback is only a number."""

    class Report(int):
        """The callback for one message's report; its value is the message's `place_of`.

        An int, because tens of thousands of callbacks wait at a time, and the garbage collector
        does not visit ints. Bound methods or partials instead took half of all time, measured.
        """

        __slots__ = ()

        def __call__(self, error: KafkaError | None, message: Message) -> None:
            """Called by librdkafka on the thread that serves reports; must not raise or serve."""
            if error is None:
                # The garbage collector stops tracking a plain tuple of numbers at its first visit;
                # a named tuple it would visit every time.
                receipt = cast(Receipt, (None, message.partition(), message.offset(), None))
                stored((self >> INDEX_BITS, self & INDEX_MASK, receipt))
            else:
                seconds = message.latency() or 0.0
                failed((self >> INDEX_BITS, self & INDEX_MASK, error.code(), error.str(), seconds))

    return Report


def _cut(items: list[Any]) -> list[Any]:
    """Empty a list that another thread appends to, and return its items."""
    count = len(items)
    taken = items[:count]
    del items[:count]
    return taken
