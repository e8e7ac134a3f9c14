"""Publishes flights to JetStream: whole ones by its batch protocol, others with one PubAck for each
message.

Every message carries a reply subject below one private inbox that names its flight and its place in
it, so an answer finds its attempt without a future or a task a message. Deadlines and retries are
the dispatch's; this module knows the wire and what the server's answers mean.

A whole flight is one fast-ingest batch in gap mode `fail`: the server stores its messages in order
and, from the first that is missing or refused, none. A short one is written in one burst with its
commit; one that goes on is written leg by leg, as far ahead of the server's flow acks as the window
allows.
Source: ADR-50; nats-server 2.15 `server/stream.go`, `server/jetstream_batching.go`.
"""

import json
import logging
import re
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import chain, count, repeat
from typing import Any, cast

from ...dispatch.flight import Flight, Leg, Policy, Route, prepare_each
from ...dispatch.segment import Group
from ...envelope import Envelope
from ...errors import StreamError
from ...publishing.answers import Receipt, Refusal, Verdict
from ...publishing.publisher import PublisherEvents
from ...settings import JetStreamSettings
from ..connection import DENIED_PUBLISH, Connection, JetStreamApiError
from ..streams import REMEDY
from .encoding import encode, encode_all
from .error_codes import NO_FLIGHTS, TOO_MANY_FLIGHTS, UNKNOWN_FLIGHT, classify
from .groups import group_frames, reject_impossible
from .look_ups import LookUps
from .topics import Topics

__all__ = ["JetStreamPublisher"]

log = logging.getLogger(__name__)

WINDOW = 8_192
"""Messages out at once: several round trips' worth at any rate, and settled well within an ack
timeout.
"""
WINDOW_BYTES = 8 * 1024 * 1024
FLIGHT = 512
"""Messages a lane sends in its turn, in one write."""
FLOW = 500
"""The server says how far it is after so many messages; it allows no more."""

PUB_ACK = rb'(\{"stream":\s?"([^"\\]+)",\s?"seq":\s?(\d+)(,\s?"duplicate":\s?true)?\})'
NEVER = re.compile(rb"(?!)").match

START, APPEND, END = 0, 1, 3
"""Operations of the batch protocol: the first message, another, and the commit, which is no message
itself.
"""
BEGUN = b"1.%d.$FI" % START
"""How the reply subject of a whole flight's first message ends."""
APPENDED = (b"%%d.%d.$FI" % APPEND).__mod__
"""And that of another, by its number."""


class JetStreamPublisher:
    """Stores envelopes in JetStream streams, at least once, and never twice within the duplicate
    window.

    One connection for all lanes with equal settings. Stored means that the stream's leader has
    written it (with replicas: that a quorum has); whether it survives a power cut depends on the
    server's `sync_interval`.
    """

    broker = "jetstream"

    def __init__(self, settings: JetStreamSettings) -> None:
        self._settings = settings
        self._events: PublisherEvents
        self._connection: Connection
        self._topics: Topics
        self._started = False
        self._inbox = b""
        self._ack = NEVER
        """Matches a PubAck with its message line, as the server writes it."""
        self._batch = b""
        """How the batch ids of whole flights begin: the server knows them by nothing else."""
        self._denied_topics: set[str] = set()
        """Topics that the server refused in the current read."""
        self._forbidden: set[str] = set()
        """Those that it refused on this connection: they would end every flight."""
        self._look_ups: LookUps

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
            atomic=self._settings.atomic,
            flow=FLOW,
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
        self._topics = Topics(self._connection, self._settings)
        self._look_ups = LookUps(self._connection, self._settings, events)
        await self._connection.open()
        inbox = self._connection.new_inbox()
        self._inbox = inbox.encode() + b"."
        self._batch = inbox.rpartition(".")[2].encode()[-40:] + b"-"
        self._ack = re.compile(
            rb"MSG %s(\d+)\.(\d+) \d+ (\d+)\r\n%s\r\n" % (re.escape(self._inbox), PUB_ACK)
        ).match
        await self._connection.subscribe(f"{inbox}.>", self._answered)
        if self._settings.atomic and not self._connection.takes_groups:
            raise StreamError(
                "this server cannot store groups all or none: use nats-server 2.12 or later, or "
                "atomic=False"
            )
        try:
            await self._topics.ensure()
        except JetStreamApiError as error:
            raise StreamError(
                f"the streams cannot be listed: {error}; check the server's log", code=error.code
            ) from None
        self._started = True
        if self._connection.is_up:
            events.connected()

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Any]:
        """Check envelopes against the topics known and the server's limits, and encode them."""
        wires: list[Any] | None
        wires = encode_all(
            envelopes,
            self._topics.checked,
            self._connection.max_payload,
            dedupe=self._settings.dedupe,
        )
        if wires is None:
            wires = prepare_each(self._prepare, envelopes)
        if self._settings.atomic:
            reject_impossible(
                envelopes, wires, self._topics.stream_of, self._connection.max_payload
            )
        return wires

    def route(self, topic: str) -> Route | None:
        """The stream that takes messages of a topic in whole flights."""
        return self._topics.route(topic) if topic not in self._forbidden else None

    def send(self, flight: Flight | Leg) -> None:
        """Write it in one piece."""
        if isinstance(flight, Leg):
            self._send_leg(flight)
            return
        inbox, number = self._inbox, flight.number
        frames: list[bytes] = []
        for index, entry in enumerate(flight.entries):
            assert entry is not None, "a new flight has no answered entries"
            if isinstance(entry, Group):
                topics, reply = (
                    [each.topic for each in entry.envelopes],
                    b"%s%d.%d" % (inbox, number, index),
                )
                frames += group_frames(
                    topics, entry.wire, reply, b"%s%d-%d" % (self._batch, number, index)
                )
                continue
            frames.append(
                b"HPUB %s %s%d.%d%s"
                % (entry.envelope.topic.encode(), inbox, number, index, entry.wire)
            )
        self._connection.write(b"".join(frames))

    def hurry(self) -> float:
        """Nothing ever lingers here."""
        return float("inf")

    async def close(self) -> None:
        """Let go of the connection within a bounded time."""
        if self._started:
            self._topics.close()
            self._look_ups.close()
        await self._connection.close()

    def statistics(self) -> dict[str, int]:
        """Counters of the connection."""
        connection = self._connection
        return {
            "reconnects": connection.reconnects,
            "management_requests": connection.requests,
            "socket_writes": connection.writes,
            "bytes_written": connection.bytes_written,
            "streams_without_flights": self._topics.without_flights,
        }

    # What the connection reports

    def _up(self) -> None:
        self._forbidden.clear()
        if self._started:
            self._topics.connected()
            self._events.connected()

    def _take_acks(self, data: bytes, at: int) -> int:
        """PubAcks come one behind the other, one a message: read in one go, each with one match."""
        acks: list[tuple[int, int, Receipt]] = []
        match, streams = self._ack, self._topics
        while (ack := match(data, at)) is not None:
            flight, index, size, payload, name, sequence, duplicate = ack.groups()
            stream = streams.stream(name)
            if stream is None or len(payload) != int(size):
                break  # seldom: it is looked at as any other answer
            # A bare tuple is no work for the garbage collector, as a named one would be.
            receipt = cast(Receipt, (stream, None, int(sequence), duplicate is not None))
            acks.append((int(flight), int(index), receipt))
            at = ack.end()
        if acks:
            self._events.acked_all(acks)
        return at

    def _answered(self, subject: bytes, reply: bytes, header: bytes | None, payload: bytes) -> None:
        """A PubAck, an error, or the server's word that nobody listens on that subject."""
        if not payload and header is None:
            return  # it has one more of a group, and waits for the last
        tokens = subject[len(self._inbox) :].split(b".")
        whole = tokens[-1] == b"$FI"
        nobody = not payload and header is not None and header.startswith(b"NATS/1.0 503")
        if whole:
            self._refuse_denied()  # what was denied came before, and may be why a flight ended
        tell: Callable[[], None] | None
        try:
            if whole:
                flight, place = int(tokens[0][len(self._batch) :]), int(tokens[3]) - 1
            else:
                flight, place = map(int, tokens)
            if nobody:
                tell = (
                    partial(self._events.ended, flight, 0)
                    if whole
                    else partial(self._nobody_there, flight, place)
                )
            else:
                tell = (self._word_on_flight if whole else self._word_on_one)(
                    flight, place, json.loads(payload)
                )
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            OverflowError,
            RecursionError,
        ) as error:
            # Whatever is not the server's form is not believed, and the deadline decides.
            log.warning(
                "ignored an answer on %r that is none (%s): %r", subject[:80], error, payload[:200]
            )
        else:
            if tell is not None:
                tell()

    def _word_on_one(
        self, flight: int, place: int, answer: dict[str, Any]
    ) -> Callable[[], None] | None:
        """What the server says of an envelope, or a group, that went by itself, as what there is to
        tell.
        """
        events = self._events
        if error := answer.get("error"):
            return partial(self._refused, flight, place, answer.get("stream"), classify(error))
        sequence, stream = answer["seq"], self._topics.stream(answer["stream"].encode())
        if type(sequence) is not int:
            raise ValueError("no sequence")
        envelopes = events.envelopes(flight, place)
        if envelopes and answer.get("count", 1) != len(envelopes):
            raise ValueError("not the number of messages that were sent")
        if stream is None:
            return None
        return partial(
            events.acked,
            flight,
            place,
            Receipt(stream, None, sequence, bool(answer.get("duplicate"))),
        )

    def _word_on_flight(
        self, flight: int, place: int, answer: dict[str, Any]
    ) -> Callable[[], None] | None:
        """What the server says of a whole flight, likewise; the dispatch knows what that is to its
        envelopes.
        """
        events, kind, error = self._events, answer.get("type"), answer.get("error")
        if kind == "ack":
            return partial(events.stored_through, flight, int(answer["seq"]))
        if kind == "gap":
            return None  # the end that follows says how far it came
        if error is None:
            if self._topics.stream(answer["stream"].encode()) is None:
                return None
            if answer.get("duplicate"):
                # It ends at once when its first message is known: probably all are, so each is
                # asked for.
                return partial(events.returned, flight, int(answer["count"]), duplicate=True)
            return partial(events.ended, flight, int(answer["count"]))
        code, refusal = error.get("err_code", 0), classify(error)
        if kind == "err":
            return partial(events.refused, flight, int(answer["seq"]) - 1, refusal)
        if code == UNKNOWN_FLIGHT:
            return partial(events.ended, flight, 0)
        if code in NO_FLIGHTS:
            return partial(
                self._takes_no_flights,
                flight,
                answer.get("stream") or "of this account",
                refusal.reason,
            )
        if code == TOO_MANY_FLIGHTS:
            return partial(events.returned, flight, 0)
        return partial(events.refused, flight, place, refusal)

    def _send_leg(self, leg: Leg) -> None:
        flight, parcels, first, last = leg
        topics = [envelope[0] for parcel in parcels for envelope in parcel.envelopes]
        starts = {topic: b"HPUB %s " % topic.encode() for topic in set(topics)}
        reply = b"%s%s%d.%d.fail." % (self._inbox, self._batch, flight.number, FLOW)
        places = (
            chain([BEGUN], map(APPENDED, count(2)))
            if not first
            else map(APPENDED, count(first + 1))
        )
        wires = chain.from_iterable(parcel.wires for parcel in parcels)
        frames = zip(map(starts.__getitem__, topics), repeat(reply), places, wires, strict=False)
        number = first + len(topics) + 1
        end = (
            b"PUB %s %s%d.%d.$FI 0\r\n\r\n" % (flight.topic.encode(), reply, number, END)
            if last
            else b""
        )
        self._connection.write(b"".join(chain(chain.from_iterable(frames), (end,))))

    def _takes_no_flights(self, flight: int, stream: str, reason: str) -> None:
        self._topics.takes_no_flights(stream, reason)
        self._events.returned(flight, 0)

    def _refused(self, flight: int, place: int, stream: object, refusal: Refusal) -> None:
        if not self._look_ups.take(flight, place, stream, refusal):
            self._events.refused(flight, place, refusal)

    def _nobody_there(self, flight: int, place: int) -> None:
        """No stream listens on the topic, or its leader is being elected: only a look at the
        streams can tell.
        """
        envelopes = self._events.envelopes(flight, place)
        if not envelopes:
            return
        topic = envelopes[0].topic
        if self._topics.is_gone(topic):
            refusal = Refusal(
                Verdict.STOP,
                f"no stream covers topic {topic} any more: {REMEDY}, then start the flow again",
                503,
            )
        else:
            refusal = Refusal(
                Verdict.RETRY,
                f"no stream answers on topic {topic}: none covers it, or its stream has no leader",
                503,
            )
        self._events.refused(flight, place, refusal)

    def _denied(self, message: str) -> None:
        """The server drops messages it does not let us publish and names only the subject."""
        denied = DENIED_PUBLISH(message)
        if denied is not None and self._started:
            self._denied_topics.add(denied.group(1))

    def _read(self) -> None:
        """All that came in one read is taken in."""
        self._refuse_denied()
        self._events.turn()

    def _refuse_denied(self) -> None:
        """A thousand denials of one topic are one look at what is out."""
        while self._denied_topics:
            topic = self._denied_topics.pop()
            self._forbidden.add(topic)
            reason = f"this user may not publish on {topic}: allow it, then publish again"
            self._events.refused_topic(topic, Refusal(Verdict.REJECT, reason))

    def _prepare(self, envelope: Envelope) -> bytes:
        self._topics.check(envelope.topic)
        return encode(envelope, self._connection.max_payload, dedupe=self._settings.dedupe)
