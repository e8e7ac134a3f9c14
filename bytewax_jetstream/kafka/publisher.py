"""Publishes flights to Kafka; every message's delivery report becomes its result.

librdkafka alone retries, idempotently: so order is kept per partition with many messages in flight,
and nothing is doubled within a run. What it gives up on may be stored, and is unknown. This module
knows what Kafka's errors mean and which topics there are; the library and its threads are
`client`'s.
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
from ..errors import ConnectError, EnvelopeError, TopicError
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
    check_topic,
    encode,
    is_plain,
)
from .error_codes import FINAL_AT_START, STOP_CODES, classify
from .producer import INDEX_BITS, PAUSE, Client, error_of, place_of
from .topics import REMEDY, Topic, TopicAdmin, ensure_topics

__all__ = ["KafkaPublisher"]

log = logging.getLogger(__name__)

WINDOW_BYTES = 64 * 1024 * 1024
MAX_SEND = 1 << INDEX_BITS
"""Messages a lane sends in its turn, before reports are served."""
FORGET_SECONDS = 1.0
"""How long a topic that is not there is believed not to be."""
LOOK_UP_SECONDS = 2.0
"""For a broker's answer about a topic; without one it is asked again."""
RETRY_SECONDS = 0.01
"""Until messages that librdkafka had no room for are offered again."""
CLOSE_SECONDS = 2.0
ATTEMPT = 1.0
"""Seconds of one attempt to reach a broker at the start, so that a refused password is said at
once.
"""


class KafkaPublisher:
    """Stores envelopes in Kafka topics, at least once, and once within a run.

    One producer for all lanes with equal settings. Stored means that all in-sync replicas have it
    (`acks=all`); how many those are is the topic's `min.insync.replicas`.
    """

    broker = "kafka"

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._events: PublisherEvents
        self._client: Client | None = None
        self._admin: TopicAdmin | None = None
        self._topics: dict[str, Topic] = {}
        """Those that may be published to."""
        self._refused: dict[str, tuple[float, str]] = {}
        """Those that may not: until when that is believed, and why."""
        self._parked: dict[str, list[tuple[int, int]]] = {}
        """Flight and index of what waits until its topic is looked up, in order."""
        self._look_up: asyncio.Task[None] | None = None
        self._backlog: deque[tuple[int, int, Record]] = deque()
        """What librdkafka had no room for, in order."""
        self._retry: asyncio.TimerHandle | None = None
        self._counts = dict.fromkeys(("queue_full", "topic_look_ups", "hand_overs"), 0)

    @property
    def identity(self) -> Hashable:
        """Lanes with equal settings share one producer."""
        settings = self._settings
        return settings.model_copy(
            update={"add_config": tuple(sorted(settings.add_config.items()))}
        )

    @property
    def policy(self) -> Policy:
        """Many messages of an aggregate out at a time: an idempotent producer keeps their order
        through retries.
        """
        return Policy(
            delivery_timeout=self._settings.pool.delivery_timeout,
            ack_timeout=None,
            one_per_aggregate=False,
            window=WINDOW,
            window_bytes=WINDOW_BYTES,
            max_send=MAX_SEND,
        )

    async def start(self, events: PublisherEvents) -> None:
        """Reach a broker, make or check the topics.

        :raises ConnectError: when no broker answers within the connect timeout.
        :raises TopicError: when a declared topic is missing or too weak.
        """
        self._events = events
        loop = asyncio.get_running_loop()

        def on_loop(callback: Any, *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to tell
                loop.call_soon_threadsafe(callback, *arguments)

        self._client = client = Client(
            self._settings,
            on_reports=lambda: on_loop(self._reported),
            on_failure=lambda reason: on_loop(events.failed, reason),
        )
        deadline = time.monotonic() + self._settings.connect_timeout
        await asyncio.to_thread(self._reach, client, deadline)
        if self._settings.topic_strategy != "skip":
            self._admin = admin = await asyncio.to_thread(TopicAdmin, self._settings)
            self._topics.update(
                await asyncio.to_thread(ensure_topics, admin, self._settings, deadline)
            )
        events.connected()

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Wire | EnvelopeError]:
        """Check envelopes, and encode those that cannot go as they stand; for the others it is
        None.
        """
        if are_plain(envelopes, self._topics.keys()):
            return [None] * len(envelopes)
        return prepare_each(self._prepare, envelopes)

    def route(self, topic: str) -> Route | None:
        """Kafka's library forms batches of its own."""
        return None

    def send(self, outgoing: Outgoing) -> None:
        """Hand singles to librdkafka, and take what reports there are."""
        assert isinstance(outgoing, Singles), "there are no routes, and no groups"
        client = self._client
        assert client is not None, "nothing is sent before the start"
        topics, produce, report, number = (
            self._topics,
            client.produce,
            client.report,
            outgoing.number,
        )
        first = place_of(number, 0)
        wires = cast(list[Record | None], outgoing.wires)
        for index, (envelope, wire) in enumerate(zip(outgoing.envelopes, wires, strict=True)):
            if wire is not None or envelope.topic not in topics or self._backlog:
                self._send_one(number, index, wire or encode(envelope))
                continue
            headers: Headers = [(EVENT_ID, envelope.event_id)]
            if envelope.event_type is not None:
                headers.append((EVENT_TYPE, envelope.event_type))
            try:
                # By position, and strings as they are: it is the library that encodes them.
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
        """Let nothing linger, for a moment."""
        if self._client is not None:
            self._client.flush_hint()
        return PAUSE

    async def close(self) -> None:
        """Let go of the producer within a bounded time; nothing is waited for."""
        if self._look_up is not None:
            self._look_up.cancel()
        if self._retry is not None:
            self._retry.cancel()
        if self._client is not None:
            try:
                left = await asyncio.to_thread(self._let_go, self._client)
            except RuntimeError:  # the interpreter ends, and starts no thread any more
                left = self._let_go(self._client)
            if left:
                log.warning(
                    "closed with %d messages that had no report: whether they are stored is unknown",
                    left,
                )
            self._client = None

    def statistics(self) -> dict[str, int]:
        """Counters of the producer."""
        queued = len(self._client) if self._client is not None else 0
        return {**self._counts, "queued": queued, "topics": len(self._topics)}

    def _prepare(self, envelope: Envelope) -> Record | None:
        try:
            known = envelope.topic in self._topics
        except TypeError:
            known = False
        if not known:
            self._check(envelope.topic)
        return None if is_plain(envelope) else encode(envelope)

    def _let_go(self, client: Client) -> int:
        """End the library's threads, and wait for that; returns how many messages had no report.
        Blocks.
        """
        self._admin = None  # nor may its threads wait for the garbage collector
        return client.close(CLOSE_SECONDS)

    # Starting

    def _reach(self, client: Client, deadline: float) -> None:
        """Wait for a broker's first answer, in attempts. Blocks."""
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

    # Sending what is not plain

    def _send_one(self, number: int, index: int, wire: Record) -> None:
        topic = self._topics.get(wire.topic)
        client = self._client
        if topic is None:
            self._park(wire.topic, number, index)
        elif self._backlog:
            self._backlog.append((number, index, wire))
        elif topic.partitions is not None and wire.partition >= topic.partitions:
            self._refuse_partition(number, index, wire, topic.partitions)
        elif client is not None:
            try:
                client.produce(
                    wire.topic, wire.payload, wire.key, wire.partition,
                    client.report(place_of(number, index)), None, 0, wire.headers,
                )  # fmt: skip
            except (BufferError, KafkaException) as error:
                self._not_taken(number, index, wire, error)

    def _not_taken(self, number: int, index: int, wire: Record, error: Exception) -> None:
        """Librdkafka says at once that it will not send a message, or has no room for it."""
        found = error_of(error)
        if found is None or found.code() == KafkaError._QUEUE_FULL:  # noqa: SLF001
            self._counts["queue_full"] += 1
            self._backlog.append((number, index, wire))
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(
                    RETRY_SECONDS, self._send_backlog
                )
        elif found.fatal():
            self._events.failed(
                f"the Kafka producer has failed ({found.str()}): check the brokers, then start the "
                "flow again"
            )
        else:
            self._events.refused(
                number, index, self._classify(found.code(), found.str(), number, index)
            )

    def _send_backlog(self) -> None:
        self._retry = None
        waiting, self._backlog = self._backlog, deque()
        for number, index, wire in waiting:
            if self._events.in_flight(number, index):  # whose time is not up
                self._send_one(number, index, wire)
        self._reported()

    def _refuse_partition(self, number: int, index: int, wire: Record, partitions: int) -> None:
        reason = (
            f"topic {wire.topic} has no partition {wire.partition}: "
            f"give 0 to {partitions - 1}, or None"
        )
        self._events.refused(number, index, Refusal(Verdict.REJECT, reason))
        since, _ = self._refused.get(wire.topic, (0.0, ""))
        if since < time.monotonic():  # it may have grown since it was looked up
            self._refused[wire.topic] = (time.monotonic() + FORGET_SECONDS, "")
            del self._topics[wire.topic]

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
        for number, index, code, text in failures:
            self._events.refused(number, index, self._classify(code, text, number, index))

    def _classify(self, code: int, text: str, number: int, index: int) -> Refusal:
        envelope = next(iter(self._events.in_flight(number, index)), None)
        return classify(code, text, envelope, checked=self._admin is not None)

    # Topics first seen after the start

    def _check(self, topic: str) -> None:
        """The first look at a topic: its form, and what is believed of it."""
        check_topic(topic)
        if self._admin is None:
            self._topics[topic] = Topic(None)
            return
        until, reason = self._refused.get(topic, (0.0, ""))
        if reason and time.monotonic() < until:
            raise EnvelopeError(reason, field="topic", topic=topic)

    def _park(self, topic: str, number: int, index: int) -> None:
        """Keep a message until its topic is looked up, away from the pool's thread."""
        self._parked.setdefault(topic, []).append((number, index))
        if self._look_up is None or self._look_up.done():
            self._look_up = asyncio.get_running_loop().create_task(self._look_up_parked())

    async def _look_up_parked(self) -> None:
        while self._parked and self._admin is not None:
            names = list(self._parked)
            self._counts["topic_look_ups"] += 1
            deadline = time.monotonic() + min(LOOK_UP_SECONDS, self._settings.connect_timeout)
            reasons: dict[str, str] = {}
            found: dict[str, Topic] = {}
            for (
                name
            ) in names:  # one by one, so that what one of them may not be asked harms no other
                try:
                    found |= await asyncio.to_thread(self._admin.describe, [name], deadline)
                    reasons[name] = f"there is no topic {name}: {REMEDY}"
                except TopicError as error:
                    reasons[name] = str(error)
                except ConnectError as error:
                    log.warning("a topic could not be looked up, and is again: %s", error)
                    self._forget_settled(name)
            for name in names:
                topic = found.get(name)
                weakness = (
                    topic.weakness(name, self._settings.batch_bytes) if topic is not None else None
                )
                if topic is not None and weakness is None:
                    self._topics[name] = topic
                    self._unpark(name)
                elif name in reasons:
                    self._reject_parked(name, weakness or reasons[name])
            self._reported()

    def _unpark(self, name: str) -> None:
        for number, index in self._parked.pop(name):
            for envelope in self._events.in_flight(number, index):
                self._send_one(number, index, encode(envelope))

    def _reject_parked(self, name: str, reason: str) -> None:
        self._refused[name] = (time.monotonic() + FORGET_SECONDS, reason)
        for number, index in self._parked.pop(name):
            self._events.refused(number, index, Refusal(Verdict.REJECT, reason))

    def _forget_settled(self, name: str) -> None:
        """Let go of messages whose time was up before a broker answered."""
        self._parked[name] = [
            place for place in self._parked[name] if self._events.in_flight(*place)
        ]
        if not self._parked[name]:
            del self._parked[name]
