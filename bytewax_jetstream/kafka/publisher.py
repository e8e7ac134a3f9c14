"""`KafkaPublisher`: reaches a broker, hands envelopes to librdkafka, takes its delivery reports.

librdkafka alone retries. It does so idempotently: a partition keeps its order with many messages in
flight, and no message is stored twice within a run. A message that librdkafka gives up on may be
stored, so its outcome is unknown. The library and its threads are in `producer`, the topics in
`known_topics`.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Hashable, Sequence
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
    FINAL_AT_START,
    GONE_CODES,
    STOP_CODES,
    UNKNOWN_PARTITION,
    classify,
)
from .known_topics import NEVER_SENT, KnownTopics
from .producer import INDEX_BITS, PAUSE, Client, error_of, place_of

__all__ = ["KafkaPublisher"]

log = logging.getLogger(__name__)

WINDOW_BYTES = 64 * 1024 * 1024
MAX_SEND = 1 << INDEX_BITS
"""How many messages a lane may send at a time, before reports are served."""
RETRY_SECONDS = 0.01
"""After how long messages that librdkafka had no room for are offered again."""
CLOSE_SECONDS = 2.0
FIRST = 0
"""The partition of the empty key, where librdkafka would choose one at random: its CRC-32 is 0."""
ATTEMPT = 1.0
"""Seconds of one attempt to reach a broker at the start; short, so that a refused password is
reported at once.
"""


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
            send=self._send_found,
            refresh=self._refresh,
            on_looked_up=self._reported,
        )
        self._backlog: deque[tuple[int, int, Record]] = deque()
        """Messages that librdkafka had no room for, in order."""
        self._retry: asyncio.TimerHandle | None = None
        self._first: dict[str, tuple[int, int]] = {}
        """Number and index of the first message on each topic that is not refused, as far as is
        known."""
        self._has_failed = False
        self._spreads_empty_keys = settings.partitioner == "consistent_random"
        """Whether librdkafka would put the empty key into any partition."""
        self._counts = dict.fromkeys(("queue_full", "hand_overs"), 0)

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
        self._events = events
        loop = asyncio.get_running_loop()

        def on_loop(callback: Any, *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the publisher with it
                loop.call_soon_threadsafe(callback, *arguments)

        self._client = client = Client(
            self._settings,
            on_reports=lambda: on_loop(self._reported),
            on_failure=lambda reason: on_loop(events.failed, reason),
        )
        deadline = time.monotonic() + self._settings.connect_timeout
        await asyncio.to_thread(self._reach, client, deadline)
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
        wires = cast(list[Record | None], outgoing.wires)
        if not self._first.keys() >= {envelope.topic for envelope in outgoing.envelopes}:
            for index, envelope in enumerate(outgoing.envelopes):
                self._first.setdefault(envelope.topic, (number, index))
        for index, (envelope, wire) in enumerate(zip(outgoing.envelopes, wires, strict=True)):
            if wire is not None or envelope.topic not in topics or self._backlog:
                self._send_one(number, index, wire or encode(envelope))
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
                self._not_taken(number, index, encode(envelope), error)
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
        if self._retry is not None:
            self._retry.cancel()
        if self._client is not None:
            try:
                left = await asyncio.to_thread(self._let_go, self._client)
            except RuntimeError:  # the interpreter is ending, and starts no more threads
                left = self._let_go(self._client)
            if left:
                log.warning(
                    "closed while %d messages had no report: whether they are stored is unknown",
                    left,
                )
            self._client = None

    def statistics(self) -> dict[str, int]:
        """Counters of the producer."""
        queued = len(self._client) if self._client is not None else 0
        return {
            **self._counts,
            "topic_look_ups": self._topics.look_ups,
            "queued": queued,
            "topics": len(self._topics.found),
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

    def _let_go(self, client: Client) -> int:
        """End the library's threads; returns how many messages had no report. Blocks."""
        self._topics.release_admin()
        return client.close(CLOSE_SECONDS)

    # Starting

    def _reach(self, client: Client, deadline: float) -> None:
        """Try until a broker answers. Blocks.

        :raises ConnectError: at the deadline, or at once when waiting does not help.
        """
        while True:
            try:
                client.list_topics(min(ATTEMPT, max(0.1, deadline - time.monotonic())))
                return
            except KafkaException as error:
                last, found = client.last_error, error_of(error)
                brokers = self._settings.brokers
                shown = ",".join(brokers)
                if last is not None and last.code() in FINAL_AT_START:
                    raise ConnectError(
                        f"no connection to Kafka at {shown} ({last.str()}): "
                        f"{STOP_CODES[last.code()]}",
                        broker="kafka",
                        servers=brokers,
                        reason=last.str(),
                    ) from None
                if time.monotonic() > deadline:
                    told = last or found
                    why = told.str() if told is not None else str(error)
                    seconds = self._settings.connect_timeout
                    raise ConnectError(
                        f"no connection to Kafka at {shown} within {seconds:g} s ({why}): check "
                        "that the brokers are running, and whether they require TLS or a password",
                        broker="kafka",
                        servers=brokers,
                        seconds=seconds,
                        reason=why,
                    ) from None

    # Sending a message that needs encoding, or has to wait for its topic or for room

    def _send_one(self, number: int, index: int, wire: Record) -> None:
        topic = self._topics.found.get(wire.topic)
        client = self._client
        if topic is None:
            self._topics.park(wire.topic, number, index)
        elif self._backlog:
            self._backlog.append((number, index, wire))
        elif topic.partitions is not None and wire.partition >= topic.partitions:
            self._topics.park_for_partition(wire.topic, number, index)
        elif reason := misdated(wire, topic.config, time.time()):
            self._events.refused(number, index, Refusal(Verdict.REJECT, reason))
        elif client is not None:
            try:
                client.produce(
                    wire.topic, wire.payload, wire.key, wire.partition,
                    client.report(place_of(number, index)), None, wire.timestamp, wire.headers,
                )  # fmt: skip
            except (BufferError, KafkaException) as error:
                self._not_taken(number, index, wire, error)

    def _send_found(self, number: int, index: int, envelope: Envelope) -> None:
        reason = self._topics.refusal_of(envelope)
        if reason is None:
            self._send_one(number, index, self._encode(envelope))
        else:
            self._events.refused(number, index, Refusal(Verdict.REJECT, reason))

    def _not_taken(self, number: int, index: int, wire: Record, error: Exception) -> None:
        """Librdkafka has refused a message, or has no room for it."""
        found = error_of(error)
        if found is None or found.code() == KafkaError._QUEUE_FULL:  # noqa: SLF001
            self._counts["queue_full"] += 1
            self._backlog.append((number, index, wire))
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(
                    RETRY_SECONDS, self._send_backlog
                )
        elif found.fatal():
            if not self._has_failed:  # once, not for each message
                self._has_failed = True
                self._events.failed(
                    f"the Kafka producer has failed ({found.str()}): check the brokers, then start "
                    "the flow again"
                )
        else:
            self._failed(number, index, found.code(), found.str())

    def _send_backlog(self) -> None:
        self._retry = None
        waiting, self._backlog = self._backlog, deque()
        for number, index, wire in waiting:
            if self._events.in_flight(number, index):  # its delivery timeout has not passed
                self._send_one(number, index, wire)
            else:
                self._events.refused(number, index, NEVER_SENT)
        self._reported()

    def _refresh(self, topic: str, deadline: float) -> int | None:
        """Have the producer look at a topic again; blocks."""
        client = self._client
        return client.partitions(topic, deadline) if client is not None else None

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
        for number, index, code, text, seconds in failures:
            self._failed(number, index, code, text, seconds)

    def _failed(self, number: int, index: int, code: int, text: str, seconds: float = 0.0) -> None:
        """A message is refused; if its topic seems to be gone, the topic is looked up first."""
        envelope = next(iter(self._events.in_flight(number, index)), None)
        if code in GONE_CODES and envelope is not None:
            # Even where librdkafka's own words are about its removed partition object.
            words = "Unknown topic or partition" if code == KafkaError._DESTROY else text  # noqa: SLF001
            gone = classify(UNKNOWN_PARTITION, words, None, checked=self._topics.are_checked)
            self._topics.park_failed(envelope.topic, number, index, gone)
        else:
            refusal = self._classify(code, text, number, index)
            # An answer of a broker (codes from 0) is that to the last attempt.
            client = self._client
            retried = code >= 0 and client is not None and client.may_have_retried(seconds)
            if retried and refusal.verdict is not Verdict.GIVE_UP:
                refusal = _in_doubt(refusal, "an earlier attempt was not answered")
            self._events.refused(number, index, refusal)

    def _classify(self, code: int, text: str, number: int, index: int) -> Refusal:
        envelope = next(iter(self._events.in_flight(number, index)), None)
        refusal = classify(code, text, envelope, checked=self._topics.are_checked)
        if envelope is None:
            return refusal
        if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            return self._denied(envelope.topic, (number, index), refusal)
        if code == KafkaError.INVALID_RECORD and envelope.aggregate_id is None:
            self._topics.compacted.add(envelope.topic)  # its configuration could not be read
        return refusal

    def _denied(self, topic: str, at: tuple[int, int], refusal: Refusal) -> Refusal:
        """This user may not write to a topic. If it could before, a dataflow must not dead-letter
        the rest of its input: then the message is unknown.
        """
        first = self._first.get(topic)
        if first is None or first == at or self._events.in_flight(*first):
            if first == at:
                del self._first[topic]
            return refusal
        return _in_doubt(refusal, "this user could write to the topic before")


def _in_doubt(refusal: Refusal, why: str) -> Refusal:
    reason = f"{refusal.reason}; but {why}, so it may be stored"
    return Refusal(Verdict.GIVE_UP, reason, refusal.code)
