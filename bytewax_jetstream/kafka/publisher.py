"""`KafkaPublisher`: reaches a broker, hands envelopes to librdkafka, takes its delivery reports.

librdkafka alone retries. It does so idempotently: a partition keeps its order with many messages in
flight, and no message is stored twice within a run. A message that librdkafka gives up on may be
stored, so its outcome is unknown. When the brokers refuse a whole request for good, the producer
stops, so that nothing overtakes what was in it; another one takes its place, and the topic's
messages go alone for a time (`careful`). The library and its threads are in `producer`, the topics
in `known_topics`.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Hashable, Sequence
from math import inf
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException

from ..envelope import Envelope
from ..errors import ConnectError, EnvelopeError
from ..publishing import (
    Outgoing,
    Policy,
    PublisherEvents,
    Refusal,
    Route,
    Singles,
    Verdict,
    Wire,
    prepare_each,
)
from ..settings import KafkaSettings
from .careful import Careful
from .config import WINDOW
from .encoding import (
    ANY,
    EVENT_ID,
    EVENT_TYPE,
    Headers,
    Record,
    are_plain,
    encode,
    is_plain,
    misdated,
)
from .error_codes import (
    GONE_CODES,
    SIZE_CODES,
    UNKNOWN_PARTITION,
    classify,
    is_answer,
)
from .known_topics import KnownTopics
from .producer import INDEX_BITS, PAUSE, Client, Failure, error_of, hand_over, place_of
from .reaching import reach
from .waiting import Waiting, still_awaited

__all__ = ["KafkaPublisher"]

log = logging.getLogger(__name__)

WINDOW_BYTES = 64 * 1024 * 1024
MAX_SEND = 1 << INDEX_BITS
"""How many messages a lane may send at a time, before reports are served."""
RETRY_SECONDS = 0.01
"""After how long messages that librdkafka had no room for are offered again."""
LOOK_AGAIN_SECONDS = 0.005
"""After how long to look whether a producer that has stopped has reported all messages."""
STOPPED_SECONDS = 2.0
"""How long after its request timeout such a producer is waited for."""
FATAL_SECONDS = 2.0
"""How long a producer may refuse messages without saying why."""
CLOSE_SECONDS = 2.0
FIRST = 0
"""The partition of the empty key, where librdkafka would choose one at random: its CRC-32 is 0."""


class KafkaPublisher:
    """Stores envelopes in Kafka topics, at least once, and once within a run.

    A message is stored when all in-sync replicas have it (`acks=all`), at least the topic's
    `min.insync.replicas`. All lanes with equal settings share one producer.
    """

    broker = "kafka"

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._events: PublisherEvents
        self._client: Client | None = None
        self._topics = KnownTopics(
            settings,
            send=self._send_one,
            refresh=self._refresh,
            on_looked_up=self._reported,
        )
        self._careful = Careful(connect=self._connect_alone, encode=self._encode, judge=self._judge)
        self._backlog: deque[Waiting] = deque()
        """Messages that librdkafka had no room for, or that wait for another producer, in order."""
        self._is_closing = False
        self._stopped: _Stopped | None = None
        self._closing: set[asyncio.Task[int]] = set()
        """The ends of producers that have stopped."""
        self._fatal_since = inf
        self._retry: asyncio.TimerHandle | None = None
        self._first: dict[str, tuple[int, int]] = {}
        """Number and index of the first message on each topic that is not refused, as far as is
        known."""
        self._has_failed = False
        self._spreads_empty_keys = settings.partitioner == "consistent_random"
        """Whether librdkafka would put the empty key into any partition."""
        self._counts = dict.fromkeys(
            ("queue_full", "hand_overs", "producers_stopped", "reconnects"), 0
        )

    @property
    def identity(self) -> Hashable:
        """Lanes with equal settings share one producer."""
        settings = self._settings
        return settings.model_copy(
            update={"add_config": tuple(sorted(settings.add_config.items()))}
        )

    @property
    def policy(self) -> Policy:
        """Many messages of an aggregate may be in flight: an idempotent producer keeps their order
        through retries.
        """
        return Policy(
            delivery_timeout=self._settings.pool.delivery_timeout,
            ack_timeout=None,
            one_per_aggregate=False,
            window=WINDOW,
            window_bytes=WINDOW_BYTES,
            first_window_bytes=self._settings.batch_bytes,
            max_send=MAX_SEND,
        )

    async def start(self, events: PublisherEvents) -> None:
        """Reach a broker, and make or check the topics.

        :raises ConnectError: when no broker answers within the connect timeout.
        :raises TopicError: when a declared topic is missing, or keeps less than declared.
        """
        self._events = self._careful.events = events
        self._client = client = self._connect()
        deadline = time.monotonic() + self._settings.connect_timeout
        await asyncio.to_thread(reach, client, self._settings, deadline)
        await self._topics.open(events, deadline)
        events.connected()

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Wire | EnvelopeError]:
        """Check envelopes; encode those that cannot be sent as they are, None for the others."""
        topics = self._topics
        if are_plain(envelopes, topics.found.keys()) and not (
            topics.compacted
            or (self._spreads_empty_keys and any(each.aggregate_id == "" for each in envelopes))
        ):
            return [None] * len(envelopes)
        return prepare_each(self._prepare, envelopes)

    def duplicate_window(self, topic: str) -> float | None:
        """None: Kafka remembers no event ids."""
        return None

    def route(self, topic: str) -> Route | None:
        """None: librdkafka forms its own batches."""
        return None

    def send(self, outgoing: Outgoing) -> None:
        """Hand singles to librdkafka, and take the reports that have arrived."""
        assert isinstance(outgoing, Singles), "this publisher has no routes and no groups"
        client = self._client
        assert client is not None, "nothing is sent before the start"
        topics, produce, report, number = (
            self._topics.found,
            client.produce,
            client.report,
            outgoing.number,
        )
        first = place_of(number, 0)
        careful, compacted = self._careful.topics, self._topics.compacted
        wires = cast(list[Record | None], outgoing.wires)
        if not self._first.keys() >= {envelope.topic for envelope in outgoing.envelopes}:
            for index, envelope in enumerate(outgoing.envelopes):
                self._first.setdefault(envelope.topic, (number, index))
        for index, (envelope, wire) in enumerate(zip(outgoing.envelopes, wires, strict=True)):
            if (
                wire is not None
                or envelope.topic not in topics
                or self._backlog
                or self._stopped is not None
                or envelope.topic in careful
                or (compacted and envelope.aggregate_id is None)
            ):
                self._send_one(Waiting(number, index, envelope), wire)
                continue
            headers: Headers = [(EVENT_ID, envelope.event_id)]
            if envelope.event_type is not None:
                headers.append((EVENT_TYPE, envelope.event_type))
            try:
                # Arguments by position and strings not encoded: the library does that faster.
                produce(
                    envelope.topic,
                    envelope.payload,
                    envelope.aggregate_id,
                    ANY,
                    report(first + index),
                    None,
                    0,
                    headers,
                )
            except (BufferError, KafkaException) as error:
                self._not_taken(Waiting(number, index, envelope), error)
        client.serve()
        self._take_reports()

    def flush_hint(self) -> float:
        """Send lingering messages now."""
        if self._client is not None:
            self._client.flush_hint()
        return PAUSE

    def transit(self) -> tuple[int, int]:
        """Not known: the library writes."""
        return 0, 0

    async def close(self) -> None:
        """End the producer within a bounded time, without waiting for reports."""
        self._topics.close()
        self._careful.close()
        self._is_closing = True
        if self._retry is not None:
            self._retry.cancel()
        if self._stopped is not None:
            self._stopped.timer.cancel()
        clients = [each for each in (self._client, self._careful.client) if each is not None]
        if clients:
            try:
                left = await asyncio.to_thread(self._let_go, clients)
                await asyncio.gather(*self._closing, return_exceptions=True)
            except RuntimeError:  # the interpreter is ending, and starts no more threads
                left = self._let_go(clients)
            if left:
                log.warning(
                    "closed while %d messages had no report: whether they are stored is unknown",
                    left,
                )
            self._client = self._careful.client = None

    def statistics(self) -> dict[str, int]:
        """Counters of the producer."""
        clients = [each for each in (self._client, self._careful.client) if each is not None]
        queued = sum(len(each) for each in clients)
        return {
            **self._counts,
            "topic_look_ups": self._topics.look_ups,
            "queued": queued,
            "topics": len(self._topics.found),
            "topics_one_by_one": len(self._careful.topics),
        }

    def _prepare(self, envelope: Envelope) -> Record | None:
        try:
            known = envelope.topic in self._topics.found
        except TypeError:
            known = False
        if not known:
            self._topics.check(envelope.topic)
        plain = is_plain(envelope) and not (
            self._spreads_empty_keys and envelope.aggregate_id == ""
        )
        wire = None if plain else self._encode(envelope)
        reason = self._topics.refusal_of(envelope)
        if reason is not None:
            raise EnvelopeError(reason, field="aggregate_id", topic=envelope.topic)
        return wire

    def _encode(self, envelope: Envelope) -> Record:
        record = encode(envelope)
        if self._spreads_empty_keys and record.key == b"" and record.partition == ANY:
            return record._replace(partition=FIRST)
        return record

    def _let_go(self, clients: Sequence[Client]) -> int:
        """End the library's threads; returns how many messages had no report. Blocks."""
        self._topics.release_admin()
        return sum(client.close(CLOSE_SECONDS) for client in clients)

    # Starting

    def _connect(self, *, alone: bool = False) -> Client:
        loop, events = asyncio.get_running_loop(), self._events

        def on_loop(callback: Any, *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the publisher with it
                loop.call_soon_threadsafe(callback, *arguments)

        client = Client(
            self._settings,
            on_reports=lambda: on_loop(self._reported),
            on_failure=lambda reason: on_loop(events.failed, reason),
            on_stop=lambda: on_loop(self._stopped_by_itself, client),
            on_cut=lambda: on_loop(self._was_cut),
            alone=alone,
        )
        return client

    def _connect_again(self, *, alone: bool = False) -> Client | None:
        """Another producer, while the flow runs; None if there can be none, which ends the flow."""
        try:
            return self._connect(alone=alone)
        except ConnectError as error:  # a file with a certificate is gone, for example
            self._events.failed(f"another Kafka producer was needed, and there is none: {error}")
            return None

    def _connect_alone(self) -> Client | None:
        return self._connect_again(alone=True)

    # Sending a message that needs encoding, or has to wait for its topic or for room

    def _send_one(self, waiting: Waiting, wire: Record | None = None) -> None:
        number, index, envelope = waiting
        topic = self._topics.found.get(envelope.topic)
        client = self._client
        wire = wire or self._encode(envelope)
        if topic is None:
            self._topics.park(waiting)
        elif self._backlog or self._stopped is not None:
            self._backlog.append(waiting)
        elif topic.partitions is not None and wire.partition >= topic.partitions:
            self._topics.park_for_partition(waiting)
        elif reason := (
            misdated(wire, topic.config, time.time()) or self._topics.refusal_of(envelope)
        ):
            self._events.refused(number, index, Refusal(Verdict.REJECT, reason))
        elif wire.topic in self._careful.topics:
            self._careful.add(waiting)
        elif client is not None:
            try:
                hand_over(client, wire, number, index)
            except (BufferError, KafkaException) as error:
                self._not_taken(waiting, error)

    def _not_taken(self, waiting: Waiting, error: Exception) -> None:
        """Librdkafka has refused a message, or has no room for it."""
        number, index, _ = waiting
        found = error_of(error)
        if found is None or found.code() == KafkaError._QUEUE_FULL:  # noqa: SLF001
            self._counts["queue_full"] += 1
            self._send_later(waiting)
        elif found.fatal() or found.code() == KafkaError._FATAL:  # noqa: SLF001
            # It has stopped, or has failed: the thread that serves its reports is told which.
            self._fatal_since = min(self._fatal_since, time.monotonic())
            if time.monotonic() < self._fatal_since + FATAL_SECONDS:
                self._send_later(waiting)
            elif not self._has_failed:  # once, not for each message
                self._has_failed = True
                self._events.failed(
                    f"the Kafka producer has failed ({found.str()}): check the brokers, then start "
                    "the flow again"
                )
        elif found.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            refusal = classify(found.code(), found.str(), waiting.envelope)
            self._events.refused(number, index, refusal)
        else:
            self._failed((number, index, found.code(), found.str(), 0.0))

    def _send_later(self, waiting: Waiting) -> None:
        self._backlog.append(waiting)
        if self._retry is None:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(RETRY_SECONDS, self._send_backlog)

    def _send_backlog(self) -> None:
        self._retry = None
        if self._stopped is None:
            waiting, self._backlog = self._backlog, deque()
            for each in still_awaited(self._events, waiting, set()):
                self._send_one(each)
            self._reported()

    # Reports

    def _reported(self) -> None:
        self._take_reports()
        self._events.process()

    def _take_reports(self) -> None:
        if self._client is None:
            return
        acks, failures = self._client.take()
        if acks:
            self._counts["hand_overs"] += 1
            self._events.acked_many(acks)
        for failure in failures:
            self._failed(failure)
        self._careful.take_reports()

    def _failed(self, failure: Failure) -> None:
        """The producer for whole requests has not stored a message."""
        number, index, code, text, _ = failure
        envelope = next(iter(self._events.in_flight(number, index)), None)
        if envelope is None:
            refusal = classify(code, text, None, checked=self._topics.are_checked)
            self._events.refused(number, index, refusal)
            return
        waiting = Waiting(number, index, envelope)
        meaning = self._meaning(self._client, waiting, failure)
        if meaning is not None:
            self._refuse_or_send_again(waiting, failure, meaning)

    def _refuse_or_send_again(self, waiting: Waiting, failure: Failure, refusal: Refusal) -> None:
        number, index, code, _, seconds = failure
        client, envelope = self._client, waiting.envelope
        if code == KafkaError._PURGE_QUEUE and not self._is_closing:  # noqa: SLF001
            stopped = self._stop()
            if client is not None and not client.may_have_been_sent(seconds):
                stopped.returned.append(waiting)
                return
            refusal = _in_doubt(refusal, "an attempt of it may not have been answered")
        elif is_answer(code):
            stopped = self._stop()
            self._careful.begin(envelope.topic, refusal.reason, stays=code in SIZE_CODES)
            never_allowed = (
                code == KafkaError.TOPIC_AUTHORIZATION_FAILED and refusal.verdict is Verdict.REJECT
            )
            if refusal.verdict is not Verdict.GIVE_UP and not never_allowed:
                stopped.returned.append(waiting)
                return
        if (
            self._stopped is not None
            and refusal.verdict is Verdict.GIVE_UP
            and envelope.aggregate_id is not None
        ):
            self._stopped.broken.add(envelope.aggregate_id)
        self._events.refused(number, index, refusal)

    def _judge(self, waiting: Waiting, failure: Failure) -> Refusal | None:
        """What it means that a message was not stored which went alone."""
        _, _, code, _, _ = failure
        refusal = self._meaning(self._careful.client, waiting, failure)
        if refusal is None:
            for each in self._careful.take_all(waiting.envelope.topic):
                if each.place != waiting.place:
                    self._topics.park(each)
        elif code == KafkaError.INVALID_RECORD and waiting.envelope.aggregate_id is None:
            self._topics.needs_keys(waiting.envelope.topic)
        return refusal

    def _meaning(self, client: Client | None, waiting: Waiting, failure: Failure) -> Refusal | None:
        """What becomes of a message that a producer has not stored; None if its topic seems to be
        gone, which is looked up first.
        """
        _, _, code, text, seconds = failure
        envelope = waiting.envelope
        if code in GONE_CODES:
            # Even where librdkafka's own words are about its removed partition object.
            words = "Unknown topic or partition" if code == KafkaError._DESTROY else text  # noqa: SLF001
            gone = classify(UNKNOWN_PARTITION, words, None, checked=self._topics.are_checked)
            self._topics.park_failed(waiting, gone)
            return None
        refusal = classify(code, text, envelope, checked=self._topics.are_checked)
        if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            refusal = self._denied(envelope.topic, waiting.place, refusal)
        # An answer of a broker is that to the last attempt.
        retried = is_answer(code) and client is not None and client.may_have_retried(seconds)
        if retried and refusal.verdict is not Verdict.GIVE_UP:
            return _in_doubt(refusal, "an earlier attempt was not answered")
        return refusal

    def _denied(self, topic: str, at: tuple[int, int], refusal: Refusal) -> Refusal:
        """This user may not write to a topic. If it could before, a dataflow must not dead-letter
        the rest of its input: then the message is tried again.
        """
        first = self._first.get(topic)
        if first is None or first == at or self._events.in_flight(*first):
            if first == at:
                del self._first[topic]
            return refusal
        reason = f"{refusal.reason} (it could write to topic {topic} before)"
        return Refusal(Verdict.RETRY, reason, refusal.code)

    # A producer that has stopped

    def _was_cut(self) -> None:
        self._counts["reconnects"] += 1

    def _stopped_by_itself(self, client: Client) -> None:
        if client is self._client and not self._is_closing:
            self._stop()

    def _stop(self) -> "_Stopped":
        """Hand the producer nothing more, and replace it as soon as it has reported everything."""
        if self._stopped is None:
            self._counts["producers_stopped"] += 1
            wait = self._settings.pool.ack_timeout + STOPPED_SECONDS
            # Not at once: this may be in the middle of taking reports.
            timer = asyncio.get_running_loop().call_later(0, self._look_at_stopped)
            self._stopped = _Stopped(timer, time.monotonic() + wait)
        return self._stopped

    def _look_at_stopped(self) -> None:
        stopped, client = self._stopped, self._client
        assert stopped is not None, "it is looked at until it is replaced"
        if client is None or self._is_closing:
            return
        left = len(client)  # before the reports are taken, or some would be missed
        self._reported()
        if left:
            client.give_back(in_flight=time.monotonic() > stopped.until)
            stopped.timer = asyncio.get_running_loop().call_later(
                LOOK_AGAIN_SECONDS, self._look_at_stopped
            )
        else:
            self._replace(stopped, client)

    def _replace(self, stopped: "_Stopped", client: Client) -> None:
        """Send again, in order, what the producer has not stored."""
        another = self._connect_again()
        if another is None:
            return
        closing = asyncio.get_running_loop().create_task(
            asyncio.to_thread(client.close, CLOSE_SECONDS)
        )
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._client, self._stopped, self._fatal_since = another, None, inf
        backlog, self._backlog = self._backlog, deque()
        again = sorted(stopped.returned, key=lambda each: each.place)
        for each in still_awaited(self._events, [*again, *backlog], stopped.broken):
            self._send_one(each)
        self._reported()

    def _refresh(self, topic: str, deadline: float) -> int | None:
        """Have the producer look at a topic again; blocks."""
        client = self._client
        return client.partitions(topic, deadline) if client is not None else None


class _Stopped:
    """What comes back from a producer that has stopped.

    :arg timer: When to look at it.
    :arg until: Until when to wait for answers.
    """

    def __init__(self, timer: asyncio.TimerHandle, until: float) -> None:
        self.timer = timer
        self.until = until
        self.returned: list[Waiting] = []
        """What it has not stored, and is to be sent again."""
        self.broken: set[str] = set()
        """Aggregates with a message that it may have stored."""


def _in_doubt(refusal: Refusal, why: str) -> Refusal:
    reason = f"{refusal.reason}; but {why}, so it may be stored"
    return Refusal(Verdict.GIVE_UP, reason, refusal.code)
