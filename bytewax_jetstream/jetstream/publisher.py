"""Publishes flights to JetStream, one PubAck for each message.

Every message carries a reply subject below one private inbox that names its flight and its place in it,
so an answer finds its attempt without a future or a task a message. Deadlines and retries are the
dispatch's; this module knows the wire and what the server's answers mean.
"""

import asyncio
import base64
import json
import logging
import re
import time
from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

from ..dispatch import Flight, Policy, Receipt, Refusal, Verdict
from ..envelope import Envelope
from ..errors import ConnectError, EnvelopeError, StreamError
from ..publisher import PublisherEvents
from ..settings import JetStreamSettings
from .connection import DENIED_PUBLISH, Connection, JetStreamApiError
from .streams import REMEDY, Coverage, ensure_streams, read_coverage
from .wire import Wire, check_topic, encode, message_id

__all__ = ["JetStreamPublisher", "classify"]

log = logging.getLogger(__name__)

WINDOW = 8_192
"""Messages out at once: several round trips' worth at any rate, and settled well within an ack timeout."""
WINDOW_BYTES = 8 * 1024 * 1024
FLIGHT = 512
"""Messages a lane sends in its turn, in one write."""
KNOWN_TOPICS = 100_000
"""Topics remembered as checked; beyond it the memory is emptied and they are checked again."""
REFRESH_SECONDS = 1.0
"""The coverage is read again at most this often, and only when a topic turns out not to be covered."""

PUB_ACK = rb'(\{"stream":\s?"([^"\\]+)",\s?"seq":\s?(\d+)(,\s?"duplicate":\s?true)?\})'

NEVER = re.compile(rb"(?!)").match

RETRY_CODES = frozenset(
    {
        10002,  # account limits, 10023 insufficient resources, 10028 and 10047 memory and storage exceeded:
        10023,  # these may pass; at the delivery timeout they stop the run
        10028,
        10047,
        10008,  # JetStream temporarily unavailable
        10009,  # not the leader
        10063,  # sequence mismatch inside the cluster
        10118,  # stream offline
        10194,
        10158,  # this id is in process
        10163,  # last sequence by subject not ready
        10167,  # too many requests
        10210,  # too many batches in flight
        10211,
    }
)
STOP_CODES = frozenset(
    {
        10039,  # JetStream not enabled for the account
        10076,  # JetStream not enabled
        10060,  # not the expected stream
        10109,  # stream sealed
        10185,  # API level
    }
)
STORE_FAILED = 10077
"""A catch-all of the server that has to be told apart by its text."""
UNMET_CODES = frozenset({10071, 10164})
"""The expected last sequence is another. The server looks at that before it looks at the event id, so after an
attempt whose ack was lost, or on a replay, the message that is in the way may be this very one."""
NO_MESSAGE = 10037


_new = tuple.__new__
"""As in `dispatch`: this runs once a message."""


def classify(code: int, status: int, description: str) -> Refusal:
    """What an error reply means for its message.

    Source: nats-server `server/errors.json`, tried against 2.15.1 where a test names the code.

    :arg code: The server's `err_code`.
    :arg status: Its HTTP-like `code`.
    """
    reason = f"the server refused it: {description} ({code})"
    if code in STOP_CODES:
        return Refusal(Verdict.STOP, f"{reason}: mend the stream or the account, then run again", code)
    if code == STORE_FAILED:
        passing = "exceeded" in description or "closed" in description
        verdict = Verdict.RETRY if passing and "message size" not in description else Verdict.REJECT
        return Refusal(verdict, f"{reason}: make room in the stream or raise its limits", code)
    if code in RETRY_CODES or status == 429 or (status >= 500 and code not in RETRY_CODES):
        return Refusal(Verdict.RETRY, reason, code)
    return Refusal(Verdict.REJECT, reason, code)


class _Doubt(NamedTuple):
    """A refusal that may be owed to the envelope's own earlier success."""

    flight: int
    place: int
    stream: str
    refusal: Refusal


class JetStreamPublisher:
    """Stores envelopes in JetStream streams, at least once, and never twice within the duplicate window.

    One connection for all lanes with equal settings. Stored means that the stream's leader has written
    it (with replicas: that a quorum has); whether it survives a power cut depends on the server's
    `sync_interval`.
    """

    broker = "jetstream"

    def __init__(self, settings: JetStreamSettings) -> None:
        self._settings = settings
        self._events: PublisherEvents
        self._connection: Connection
        self._started = False
        self._inbox = b""
        self._ack = NEVER
        """Matches a PubAck with its message line, as the server writes it."""
        self._coverage: Coverage | None = None
        self._heads: dict[str, bytes] = {}
        """For each topic that was checked, how its frames begin."""
        self._streams: dict[bytes, str] = {}
        """Names of streams that acknowledged, as they stand in acks."""
        self._uncovered_since: dict[str, float] = {}
        self._refresh: asyncio.Task[None] | None = None
        self._refreshed = 0.0
        self._denied_topics: set[str] = set()
        """Topics that the server refused in the current read."""
        self._doubts: deque[_Doubt] = deque()
        self._look_up: asyncio.Task[None] | None = None

    @property
    def identity(self) -> Hashable:
        """Lanes with equal settings share one connection."""
        return self._settings

    @property
    def policy(self) -> Policy:
        """One envelope of an aggregate out at a time; see `dispatch`."""
        pool = self._settings.pool
        return Policy(
            delivery_timeout=pool.delivery_timeout,
            ack_timeout=pool.ack_timeout,
            one_per_aggregate=True,
            window=WINDOW,
            window_bytes=WINDOW_BYTES,
            flight=FLIGHT,
        )

    async def start(self, events: PublisherEvents) -> None:
        """Connect, subscribe to the inbox, make or check the streams.

        :raises ConnectError: when there is no usable connection within the connect timeout.
        :raises StreamError: when a declared stream or topic is missing or too weak.
        """
        self._events = events
        self._connection = Connection(
            self._settings,
            on_up=self._up,
            on_down=events.disconnected,
            on_read=self._read,
            on_denied=self._denied,
            take_bulk=self._take_acks,
        )
        await self._connection.open()
        inbox = self._connection.new_inbox()
        self._inbox = inbox.encode() + b"."
        self._ack = re.compile(rb"MSG %s(\d+)\.(\d+) \d+ (\d+)\r\n%s\r\n" % (re.escape(self._inbox), PUB_ACK)).match
        await self._connection.subscribe(f"{inbox}.*.*", self._answered)
        try:
            self._coverage = await ensure_streams(self._connection, self._settings)
        except JetStreamApiError as error:
            raise StreamError(f"the JetStream API answered: {error}") from None
        self._started = True
        if self._connection.is_up:
            events.connected()

    def prepare(self, envelope: Envelope) -> Wire:
        """Check an envelope against the topics known and the server's limits, and encode it."""
        topic = envelope.topic
        try:
            head = self._heads[topic]
        except (KeyError, TypeError):
            head = self._check(topic)
        return encode(envelope, head, self._connection.max_payload)

    def send(self, flight: Flight) -> None:
        """Write a flight in one piece."""
        inbox, number = self._inbox, flight.number
        frames = []
        for index, entry in enumerate(flight.entries):
            assert entry is not None, "a new flight has no answered entries"
            head, tail = entry.wire
            frames.append(b"%s%s%d.%d%s" % (head, inbox, number, index, tail))
        self._connection.write(b"".join(frames))

    def hurry(self) -> float:
        """Nothing ever lingers here."""
        return float("inf")

    async def close(self) -> None:
        """Let go of the connection within a bounded time."""
        for task in (self._refresh, self._look_up):
            if task is not None:
                task.cancel()
        await self._connection.close()

    def statistics(self) -> dict[str, int]:
        """Counters of the connection."""
        connection = self._connection
        return {
            "reconnects": connection.reconnects,
            "management_requests": connection.requests,
            "socket_writes": connection.writes,
            "bytes_written": connection.bytes_written,
        }

    # What the connection reports

    def _up(self) -> None:
        if self._started:
            self._read_coverage_again()
            self._events.connected()

    def _take_acks(self, data: bytes, at: int) -> int:
        """PubAcks come one behind the other, one a message: read in one go, each with one match."""
        acks: list[tuple[int, int, Receipt]] = []
        match, streams = self._ack, self._streams
        while (ack := match(data, at)) is not None:
            flight, index, size, payload, name, sequence, duplicate = ack.groups()
            stream = streams.get(name)
            if stream is None or len(payload) != int(size):
                break  # seldom: it is looked at as any other answer
            acks.append((int(flight), int(index), _new(Receipt, (stream, None, int(sequence), duplicate is not None))))
            at = ack.end()
        if acks:
            self._events.acked_all(acks)
        return at

    def _answered(self, subject: bytes, reply: bytes, header: bytes | None, payload: bytes) -> None:
        """A PubAck, an error, or the server's word that nobody listens on that subject."""
        try:
            flight, index = map(int, subject[len(self._inbox) :].split(b"."))
        except ValueError:
            log.warning("ignored an answer on %r: not one of ours", subject[:80])
            return
        if not payload and header is not None and header.startswith(b"NATS/1.0 503"):
            self._nobody_there(flight, index)
        else:
            self._answered_at_length(flight, index, payload)

    def _answered_at_length(self, flight: int, index: int, payload: bytes) -> None:
        """The rarer answers; whatever is not the server's form is not believed, and the deadline decides."""
        try:
            answer = json.loads(payload)
            if error := answer.get("error"):
                refusal = classify(error.get("err_code", 0), error.get("code", 0), str(error.get("description")))
                if refusal.code in UNMET_CODES and isinstance(answer.get("stream"), str):
                    self._doubt(_Doubt(flight, index, answer["stream"], refusal))
                else:
                    self._events.refused(flight, index, refusal)
                return
            stream, sequence = answer["stream"], answer["seq"]
            if not isinstance(stream, str) or type(sequence) is not int:
                raise ValueError("no stream or no sequence")
        except (ValueError, KeyError, TypeError, AttributeError) as error_in_answer:
            log.warning("ignored an answer that is no PubAck (%s): %r", error_in_answer, payload[:200])
            return
        if self._stream(stream) is not None:
            self._events.acked(flight, index, Receipt(stream, None, sequence, bool(answer.get("duplicate"))))

    def _stream(self, name: str) -> str | None:
        """The stream of an ack, if there is one by that name: anybody who listens on a topic could answer."""
        if self._coverage is not None and name not in self._coverage.streams:
            log.warning("ignored an ack of stream %r, which was not there when last looked", name[:80])
            self._read_coverage_again()
            return None
        return self._streams.setdefault(name.encode(), name)

    def _nobody_there(self, flight: int, index: int) -> None:
        """No stream listens on the topic, or its leader is being elected: only a look at the streams can tell."""
        envelope = self._events.envelope(flight, index)
        if envelope is None:
            return
        topic, now = envelope.topic, time.monotonic()
        since = self._uncovered_since.setdefault(topic, now)
        self._read_coverage_again()
        gone = self._coverage is not None and self._coverage.of(topic) is None
        if gone and now - since > self._settings.pool.ack_timeout:
            refusal = Refusal(Verdict.STOP, f"no stream covers topic {topic} any more: {REMEDY}, and run again", 503)
        else:
            refusal = Refusal(
                Verdict.RETRY, f"nobody listens on topic {topic}: no stream covers it, or it has no leader", 503
            )
        self._events.refused(flight, index, refusal)

    def _doubt(self, doubt: _Doubt) -> None:
        self._doubts.append(doubt)
        if self._look_up is None or self._look_up.done():
            self._look_up = asyncio.get_running_loop().create_task(self._resolve_doubts())

    async def _resolve_doubts(self) -> None:
        """Read the messages that are in the way, one after the other."""
        while self._doubts:
            doubt = self._doubts.popleft()
            envelope = self._events.envelope(doubt.flight, doubt.place)
            if envelope is None:
                continue  # answered otherwise, or tried again by now
            try:
                sequence = await self._own_message(envelope, doubt.stream)
            except (ConnectError, JetStreamApiError) as error:
                reason = f"{doubt.refusal.reason}; whether it was stored before could not be looked up: {error}"
                self._events.refused(doubt.flight, doubt.place, Refusal(Verdict.GIVE_UP, reason, doubt.refusal.code))
            else:
                if sequence is None:
                    self._events.refused(doubt.flight, doubt.place, doubt.refusal)
                else:
                    self._events.acked(doubt.flight, doubt.place, Receipt(doubt.stream, None, sequence, True))
            self._events.turn()

    async def _own_message(self, envelope: Envelope, stream: str) -> int | None:
        """The sequence of the message behind the expected last one, if it has this envelope's event id."""
        options = envelope.options
        assert options is not None, "only an expectation can be unmet"
        if options.expected_last_sequence is not None:
            body: dict[str, object] = {"seq": options.expected_last_sequence + 1}
        else:
            body = {"seq": (options.expected_last_subject_sequence or 0) + 1, "next_by_subj": envelope.topic}
        try:
            # Answered before the attempt is given up, or the next one would start the doubt anew.
            seconds = self._settings.pool.ack_timeout / 2
            answer = await self._connection.request(f"STREAM.MSG.GET.{stream}", body, seconds)
        except JetStreamApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        headers = base64.b64decode(message.get("hdrs", ""))
        return int(message["seq"]) if b"\r\n" + message_id(envelope.event_id) in headers else None

    def _denied(self, message: str) -> None:
        """The server drops messages it does not let us publish and names only the subject."""
        denied = DENIED_PUBLISH(message)
        if denied is not None and self._started:
            self._denied_topics.add(denied.group(1))

    def _read(self) -> None:
        """All that came in one read is taken in: a thousand denials of one topic are one look at what is out."""
        while self._denied_topics:
            topic = self._denied_topics.pop()
            reason = f"this user may not publish on {topic}: grant it, then publish again"
            self._events.refused_topic(topic, Refusal(Verdict.REJECT, reason))
        self._events.turn()

    # Topics and streams

    def _check(self, topic: str) -> bytes:
        """The first look at a topic: its form, and the stream that covers it."""
        check_topic(topic)
        if self._coverage is not None:
            covered = self._coverage.of(topic)
            if covered is None:
                self._read_coverage_again()
                raise EnvelopeError(f"no stream covers topic {topic}: {REMEDY}")
            if covered.weakness is not None:
                raise EnvelopeError(f"topic {topic}: {covered.weakness}")
        if len(self._heads) >= KNOWN_TOPICS:
            self._heads.clear()
        head = self._heads[topic] = b"HPUB %s " % topic.encode()
        return head

    def _read_coverage_again(self) -> None:
        if self._coverage is None or time.monotonic() - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = time.monotonic()
        self._refresh = asyncio.get_running_loop().create_task(self._refresh_coverage())

    async def _refresh_coverage(self) -> None:
        try:
            coverage = await read_coverage(self._connection)
        except (ConnectError, JetStreamApiError) as error:
            log.warning("the streams could not be listed again: %s", error)
            return
        self._coverage = coverage
        self._uncovered_since = {t: at for t, at in self._uncovered_since.items() if coverage.of(t) is None}
        self._streams.clear()
