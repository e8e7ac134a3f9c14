"""`JetStreamPublisher`: writes batches, singles and groups; reads what the server answers to them.

Every message carries a reply subject below one private inbox that names its send and its index, so
an answer finds its attempt without a future or a task per message. Deadlines and retries are the
dispatch's; this module knows what is written and what the server's answers mean.

A batch is a fast-ingest batch in gap mode `fail`: the server stores its messages in order and, from
the first one that is missing or refused, none. A short batch is one append, written together with
its commit. A longer one is written append by append, as far ahead of the server's flow acks as the
window allows.
Source: ADR-50; nats-server 2.15 `server/stream.go`, `server/jetstream_batching.go`.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, count, repeat
from typing import Any, cast

from ...envelope import Envelope
from ...errors import EnvelopeError, StreamError
from ...publishing import (
    Alone,
    Append,
    Ask,
    AskFirst,
    Groups,
    Outgoing,
    Policy,
    PublisherEvents,
    Receipt,
    Refusal,
    Route,
    Verdict,
    Wire,
    prepare_each,
    refuse_conflicts,
)
from ...settings import JetStreamSettings
from ..connection import DENIED_PUBLISH, Connection, JetStreamApiError
from ..streams import REMEDY
from .denials import Denials
from .encoding import encode, encode_all
from .error_codes import NO_BATCH_PUBLISH, TOO_MANY_BATCHES, UNKNOWN_BATCH, classify, error_in
from .fitting import Fitting
from .groups import check_group, group_frames, reject_impossible
from .held import Held, Item
from .look_ups import LookUps, known_sequence
from .questions import NO_ANSWER, UNKNOWN_ID, Known, Questions
from .replays import Replays
from .topics import Topics

__all__ = ["JetStreamPublisher"]

log = logging.getLogger(__name__)

WINDOW = 8_192
"""Messages in flight: several round trips' worth at any rate, and settled well within an ack
timeout."""
FIRST_GROUPS = 16
"""Messages in flight at first, where they go in groups. A server works off all groups that it has
read before it answers, and a group on disk takes it up to 15 ms: thousands would not be answered
within an ack timeout, and would be sent again and again."""
WINDOW_BYTES = 8 * 1024 * 1024
MAX_SEND = 512
"""Messages a lane sends in one turn, in one write."""
FLOW_INTERVAL = 500
"""Messages after which the server sends a flow ack; it allows no more."""

PUB_ACK = rb'(\{"stream":\s?"([^"\\]+)",%s\s?"seq":\s?(\d+)(,\s?"duplicate":\s?true)?\})'
ANY_DOMAIN = rb'(?:\s?"domain":\s?"[^"\\]*",)?'
NEVER = re.compile(rb"(?!)").match

DENIALS_PAUSE = 0.02
"""Seconds between two looks at what was denied."""

START, APPEND, COMMIT = 0, 1, 3
"""Operations of the batch protocol: the first message, another one, and the commit without a
message of its own."""
QUESTION = b"q"
"""The token of a reply subject by which answers to questions are told from others."""
BATCH_SUFFIX = b"$FI"
"""The last token of a reply subject of the batch protocol."""
STARTED = b"1.%d.%s" % (START, BATCH_SUFFIX)
"""How the reply subject of a batch's first message ends."""
APPENDED = (b"%%d.%d.%s" % (APPEND, BATCH_SUFFIX)).__mod__
"""How that of another message ends, by its sequence in the batch, from 2."""


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
        self._look_ups: LookUps
        self._fitting: Fitting
        self._held: Held
        self._started = False
        self._inbox = b""
        self._ack = NEVER
        """Matches a PubAck with its message line, as the server writes it."""
        self._batch_prefix = b""
        """How the batch ids of this publisher begin; the server knows a batch by nothing else."""
        self._questions: Questions
        self._replays: Replays
        self._denials: Denials
        self._look_at_denials: asyncio.TimerHandle | None = None
        self._refused_in_batch: dict[int, int | None] = {}
        """Batches with a refused message whose id is asked for: how many messages were stored when
        the batch ended, None while it has not."""
        self._has_rival = False
        """Whether a stream of another JetStream domain answers on our topics, too."""

    @property
    def identity(self) -> Hashable:
        """Lanes with equal settings share one connection."""
        return self._settings

    @property
    def policy(self) -> Policy:
        """One single of an aggregate in flight at a time; see `dispatch`."""
        pool = self._settings.pool
        return Policy(
            delivery_timeout=pool.delivery_timeout,
            ack_timeout=pool.ack_timeout,
            one_per_aggregate=True,
            window=WINDOW,
            first_window=FIRST_GROUPS if self._settings.atomic else 0,
            window_bytes=WINDOW_BYTES,
            max_send=MAX_SEND,
            atomic=self._settings.atomic,
            flow_interval=FLOW_INTERVAL,
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
            on_down=self._down,
            on_read=self._read,
            on_denied=self._denied,
            take_bulk=self._take_acks,
        )
        self._topics = Topics(self._connection, self._settings, events.process)
        self._held = Held(
            self._topics, events, self._write, patience=self._settings.pool.ack_timeout / 4
        )
        self._questions = Questions(
            self._write_questions, self._settings.pool.ack_timeout / 2, events.process
        )
        self._look_ups = LookUps(self._connection, self._settings, events, self._questions)
        self._replays = Replays(events, self._questions, self._write_append, self._topics.stream_of)
        self._denials = Denials(events)
        self._fitting = Fitting(self._connection, events, self._refuse_misfit)
        deadline = time.monotonic() + self._settings.connect_timeout
        await self._connection.open()
        inbox = self._connection.new_inbox()
        self._inbox = inbox.encode() + b"."
        self._questions.inbox = self._inbox + QUESTION + b"."
        self._fitting.inbox = len(self._inbox)
        self._batch_prefix = inbox.rpartition(".")[2].encode()[-40:] + b"-"
        domain = self._settings.domain
        expected = ANY_DOMAIN if domain is None else rb'\s?"domain":\s?%s,' % _json(domain)
        self._ack = re.compile(
            rb"MSG %s(\d+)\.(\d+) \d+ (\d+)\r\n%s\r\n"
            % (re.escape(self._inbox), PUB_ACK % expected)
        ).match
        subscribe = partial(self._connection.subscribe, f"{inbox}.>", self._answered)
        await self._connection.repeat_until_answered(subscribe, deadline)
        if self._settings.atomic and not self._connection.takes_groups:
            raise StreamError(
                "this server cannot store groups all or none: use nats-server 2.12 or later, "
                "or atomic=False"
            )
        try:
            await self._connection.repeat_until_answered(self._topics.ensure, deadline)
        except JetStreamApiError as error:
            raise StreamError(
                f"the streams cannot be listed: {error}; check the server's log", code=error.code
            ) from None
        self._started = True
        if self._connection.is_up:
            events.connected()

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Wire | EnvelopeError]:
        """Check envelopes against the known topics and the server's limits, and encode them."""
        limit, dedupe = self._fitting.max_payload, self._settings.dedupe
        encoded = encode_all(envelopes, self._topics.checked, limit, dedupe=dedupe)
        wires: list[Wire | EnvelopeError]
        if encoded is not None:
            wires = list(encoded)
        else:
            wires = prepare_each(self._prepare, envelopes)
            if dedupe:
                for index in refuse_conflicts(envelopes, wires, self._topics.stream_of):
                    wires[index] = Alone(cast(bytes, wires[index]))
        if self._settings.atomic:
            reject_impossible(envelopes, wires, self._topics.stream_of, limit, self._may_be_known)
        return wires

    def route(self, topic: str) -> Route | None:
        """The stream that takes batches of a topic."""
        if topic in self._denials.forbidden or self._is_elsewhere():
            return None
        if not self._fitting.takes_batches(topic):
            return None
        return self._topics.route(topic)

    def duplicate_window(self, topic: str) -> float | None:
        """For how many seconds the stream of a topic remembers event ids."""
        return self._topics.duplicate_window(topic) if self._settings.dedupe else None

    def send(self, outgoing: Outgoing) -> None:
        """Write it in one piece, except for what does not fit the limits any more."""
        if isinstance(outgoing, Ask):
            answer = partial(self._known, outgoing)
            self._questions.ask(outgoing.envelopes, answer)
            return
        if self._fitting.is_needed:
            fitting = self._fitting.sift(outgoing)
            if fitting is None:
                return
            outgoing = fitting
        if isinstance(outgoing, Append):
            if outgoing.topics:
                self._denials.sent(outgoing.number, outgoing.first, outgoing.topics)
            route = self.route(outgoing.topic) if self._settings.dedupe else None
            if route is not None and not outgoing.again and self._topics.was_empty(route.name):
                route = None  # no earlier run has stored anything there
            if not self._replays.take(outgoing, route):
                self._write_append(outgoing)
            return
        number, checked = outgoing.number, self._topics.checked
        if isinstance(outgoing, Groups):
            self._write_or_hold(
                Item(number, index, group, cast(list[bytes], wires), grouped=True)
                for index, (group, wires) in enumerate(
                    zip(outgoing.envelopes, outgoing.wires, strict=True)
                )
                if group and not self._ask_group_first(number, index, group, wires)
            )
        elif checked.issuperset([envelope[0] for envelope in outgoing.envelopes]):
            inbox, frames = self._inbox, []
            topics = [envelope.topic for envelope in outgoing.envelopes]
            all_open = self._denials.sent(number, 0, topics) and not self._denials
            for index, (envelope, wire) in enumerate(
                zip(outgoing.envelopes, outgoing.wires, strict=True)
            ):
                if wire is None:
                    continue
                if type(wire) is AskFirst:
                    self._ask_first(number, index, envelope.topic, wire)
                    continue
                topic = envelope.topic.encode()
                frame = b"HPUB %s %s%d.%d%s" % (topic, inbox, number, index, wire)
                if all_open or self._denials.lets_out(envelope.topic, number, index, frame):
                    frames.append(frame)
            self._connection.write(b"".join(frames))
        else:
            for index, (envelope, wire) in enumerate(
                zip(outgoing.envelopes, outgoing.wires, strict=True)
            ):
                if type(wire) is AskFirst:
                    self._ask_first(number, index, envelope.topic, wire)
            self._write_or_hold(
                Item(number, index, [envelope], [wire], grouped=False)
                for index, (envelope, wire) in enumerate(
                    zip(outgoing.envelopes, outgoing.wires, strict=True)
                )
                if isinstance(wire, bytes)
            )

    def flush_hint(self) -> float:
        """Nothing ever lingers here."""
        return float("inf")

    def transit(self) -> tuple[int, int]:
        """By the connection's count."""
        return self._connection.bytes_written, self._connection.unsent_bytes

    async def close(self) -> None:
        """Let go of the connection within a bounded time."""
        if self._started:
            self._topics.close()
            self._held.close()
            self._look_ups.close()
            self._questions.forget()
            if self._look_at_denials is not None:
                self._look_at_denials.cancel()
        await self._connection.close()

    def statistics(self) -> dict[str, int]:
        """Counters of the connection."""
        connection = self._connection
        return {
            "reconnects": connection.reconnects,
            "management_requests": connection.requests,
            "socket_writes": connection.writes,
            "bytes_written": connection.bytes_written,
            "streams_without_batches": self._topics.without_batches,
        }

    def _prepare(self, envelope: Envelope) -> bytes | AskFirst:
        settings, limit = self._settings, self._fitting.max_payload
        is_open = self._topics.check(envelope.topic)
        check_group(envelope.options, atomic=settings.atomic)
        scheduled = getattr(envelope.options, "schedule", None) is not None
        if scheduled and not self._connection.takes_groups:  # an older server would ignore it
            raise EnvelopeError("a schedule needs nats-server 2.12 or later", field="options")
        try:
            wire = encode(
                envelope, limit, dedupe=settings.dedupe, takes_ttl=self._connection.takes_ttl
            )
        except EnvelopeError as error:
            # An earlier run may have stored it, if the limit was higher then.
            empty = self._topics.was_empty(self._topics.stream_of(envelope.topic))
            if error.limit == limit and not empty and self._may_be_known([envelope]):
                return AskFirst(error)
            raise
        return wire if is_open else self._held.stamped(wire)

    def _may_be_known(self, envelopes: Iterable[Envelope]) -> bool:
        """Whether the servers of all of these can say if they are stored."""
        topics = {envelope.topic for envelope in envelopes}
        return self._settings.dedupe and all(map(self._topics.is_open, topics))

    def _write_or_hold(self, items: Iterable[Item]) -> None:
        to_send = []
        for item in items:
            if all(self._topics.is_open(envelope.topic) for envelope in item.envelopes):
                to_send.append(item)
            else:
                self._held.hold(item)
        self._write(to_send)

    def _write(self, items: Iterable[Item]) -> None:
        """Write singles and groups in one piece."""
        frames: list[bytes] = []
        for number, index, envelopes, wires, grouped in items:
            topics = [envelope.topic for envelope in envelopes]
            if grouped:
                self._denials.sent_as_group(number, index, topics)
                frames += group_frames(
                    topics,
                    wires,
                    reply=b"%s%d.%d" % (self._inbox, number, index),
                    batch=b"%s%d-%d" % (self._batch_prefix, number, index),
                )
            else:
                self._denials.sent(number, index, topics)
                frame = b"HPUB %s %s%d.%d%s" % (
                    topics[0].encode(), self._inbox, number, index, wires[0],
                )  # fmt: skip
                if self._denials.lets_out(topics[0], number, index, frame):
                    frames.append(frame)
        if frames:
            self._connection.write(b"".join(frames))

    def _write_questions(self, frames: bytes, topics: list[str]) -> None:
        self._denials.written(topics)
        self._connection.write(frames)

    def _known(self, ask: Ask, known: Sequence[Known]) -> None:
        """Which event ids the server knows."""
        receipts = [
            None
            if (sequence := known_sequence(each)) is None
            else Receipt(self._topics.stream_of(envelope.topic), None, sequence, duplicate=True)
            for envelope, each in zip(ask.envelopes, known, strict=True)
        ]
        self._events.known(ask.number, receipts)

    def _ask_first(self, number: int, index: int, topic: str, wire: AskFirst) -> None:
        """Look up a single or a group that cannot be sent as it is."""
        stream = self._topics.stream_of(topic) or ""
        refusal = Refusal(Verdict.REJECT, str(wire.error))
        self._look_ups.take(number, index, stream, refusal)

    def _ask_group_first(
        self, number: int, index: int, group: Sequence[Envelope], wires: Sequence[Wire]
    ) -> bool:
        """Look a group up, if it cannot be sent as it is; returns whether that is so."""
        for wire in wires:
            if type(wire) is AskFirst:
                self._ask_first(number, index, group[0].topic, wire)
                return True
        return False

    def _is_elsewhere(self) -> bool:
        """Whether the streams are in another JetStream domain than the server. Then a stream there
        may answer as well, and a flow ack does not say which one it is of: no batches.
        """
        asked, here = self._settings.domain, self._connection.domain
        return asked is not None and asked != here

    def _write_append(self, append: Append, unsent: int = 0) -> None:
        """Write messages of a batch, and its commit where the append is the last.

        :arg unsent: How many messages of the batch the server is not sent, before all others.

        A message is `HPUB <topic> <inbox><batch id>.<flow>.fail.<sequence>.<operation>.$FI` and its
        wire form. Its sequence in the batch counts from 1, one more than its index.
        """
        number, topic, first, topics, wires, last, flow, _ = append
        first -= unsent
        starts = {each: b"HPUB %s " % each.encode() for each in set(topics)}
        if not self._denials.all_open((*starts, topic)):
            # The commit has a topic, too.
            self._denials.written([*topics, topic] if last else topics)
        reply = b"%s%s%d.%d.fail." % (self._inbox, self._batch_prefix, number, flow)
        ends = (
            chain([STARTED], map(APPENDED, count(2)))
            if not first
            else map(APPENDED, count(first + 1))
        )
        frames = zip(
            map(starts.__getitem__, topics), repeat(reply), ends, cast(list[bytes], wires),
            strict=False,
        )  # fmt: skip
        commit = b""
        if last:
            sequence = first + len(topics) + 1
            commit = b"PUB %s %s%d.%d.%s 0\r\n\r\n" % (
                topic.encode(), reply, sequence, COMMIT, BATCH_SUFFIX,
            )  # fmt: skip
        self._connection.write(b"".join(chain(chain.from_iterable(frames), (commit,))))

    # What the connection reports

    def _up(self) -> None:
        self._denials.connected()
        if self._started:
            self._topics.connected()
            self._events.connected()

    def _read(self) -> None:
        """All messages of one read were handled."""
        if self._denials and self._look_at_denials is None:
            self._act_on_denials()
        self._events.process()

    def _act_on_denials(self) -> None:
        self._connection.write(self._denials.act())
        if self._denials:  # not all is clear; it costs too much to look after each read
            loop = asyncio.get_running_loop()
            self._look_at_denials = loop.call_later(DENIALS_PAUSE, self._look_again)

    def _look_again(self) -> None:
        self._look_at_denials = None
        self._act_on_denials()
        self._events.process()

    def _down(self, reason: str) -> None:
        if self._started:
            self._forget()
            self._held.withdraw(reason)
        self._events.disconnected(reason)

    def _forget(self) -> None:
        """Nothing that was asked is answered."""
        self._questions.forget()
        self._look_ups.disconnected()
        self._replays.disconnected()
        self._refused_in_batch.clear()

    def _denied(self, message: str) -> None:
        """The server drops messages it does not let us publish, and names only the subject."""
        denied = DENIED_PUBLISH(message)
        if denied is None or not self._started:
            return
        topic = denied.group(1)
        self._denials.dropped(topic)
        if self._held.denied(topic):  # what waits behind the trial was not sent
            self._denials.all_denied(topic)
        elif not self._questions.denied(topic):
            self._denials.denied(topic)

    # Answers

    def _take_acks(self, data: bytes, at: int) -> int:
        """PubAcks come one after the other, one per message: read all in one go, one match each."""
        if self._held.is_trying:
            return at  # each ack by itself: one of them may be that of a trial
        acks: list[tuple[int, int, Receipt]] = []
        match, streams = self._ack, self._topics
        while (ack := match(data, at)) is not None:
            number, index, size, payload, name, sequence, duplicate = ack.groups()
            stream = streams.stream(name)
            if stream is None or len(payload) != int(size):
                break  # rare: it is handled like any other answer
            # The garbage collector does not track a bare tuple of these; it would a NamedTuple.
            receipt = cast(Receipt, (stream, None, int(sequence), duplicate is not None))
            acks.append((int(number), int(index), receipt))
            at = ack.end()
        if acks:
            self._connection.proved_useful = True
            if self._denials.tried:
                for number, index, _ in acks:
                    self._denials.acked(number, index)
            self._events.acked_many(acks)
        return at

    def _answered(self, subject: bytes, reply: bytes, header: bytes | None, payload: bytes) -> None:
        """A PubAck, an error, or the server's word that nobody listens on that subject."""
        if not payload and header is None:
            return  # the server has one more message of a group, and waits for the last
        tokens = subject[len(self._inbox) :].split(b".")
        if payload and b'"error"' not in payload:
            self._connection.proved_useful = True
        is_batch = tokens[-1] == BATCH_SUFFIX
        nobody = not payload and header is not None and header.startswith(b"NATS/1.0 503")
        report: Callable[[], None] | None
        try:
            if is_batch:
                number = int(tokens[0][len(self._batch_prefix) :])
                index = int(tokens[3]) - 1
                report = (
                    partial(self._batch_ended, number, 0)
                    if nobody
                    else self._answer_to_batch(number, index, json.loads(payload))
                )
            elif tokens[0] == QUESTION:
                number, index = map(int, tokens[1:])
                report = None if nobody else self._answer_to_question(number, index, payload)
            else:
                number, index = map(int, tokens)
                report = (
                    partial(self._nobody_listens, number, index)
                    if nobody
                    else self._answer_to_single(number, index, json.loads(payload))
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
            # What does not have the server's form is not believed, and the deadline decides.
            log.warning(
                "ignored a malformed reply on %r (%s): %r", subject[:80], error, payload[:200]
            )
        else:
            if report is not None:
                report()

    def _answer_to_single(
        self, number: int, index: int, answer: dict[str, Any]
    ) -> Callable[[], None] | None:
        """What the server says of a single, or a group, as the report to make."""
        events, name = self._events, str(answer["stream"])
        if error := error_in(answer):
            return None if self._has_rival else partial(self._refused, number, index, name, error)
        sequence, stream = answer["seq"], self._topics.stream(name.encode())
        if type(sequence) is not int:
            raise ValueError("the sequence is missing")
        envelopes = events.in_flight(number, index)
        if envelopes and answer.get("count", 1) != len(envelopes):
            raise ValueError("it counts another number of messages than was sent")
        if not self._is_ours(answer):
            return None
        receipt = Receipt(name, None, sequence, bool(answer.get("duplicate")))
        report = partial(self._acked, number, index, receipt)
        if stream is None:
            topic = envelopes[0].topic if envelopes else None
            return partial(self._topics.when_listed, name, topic, report)
        return report

    def _answer_to_question(
        self, number: int, index: int, payload: bytes
    ) -> Callable[[], None] | None:
        """Whether the server knows an event id."""
        answer = json.loads(payload)
        if error_in(answer) is None:
            if type(answer["seq"]) is not int:
                raise ValueError("the sequence is missing")
            if self._topics.stream(str(answer["stream"]).encode()) is None:
                return None
            if not self._is_ours(answer):
                return None
        elif self._has_rival:
            return None
        topic = self._questions.topic(number, index)
        if topic is not None:
            self._topics.stored_in(topic, str(answer["stream"]))
        return partial(self._questions.answered, number, index, answer)

    def _is_ours(self, answer: dict[str, Any]) -> bool:
        """Whether an ack is of the JetStream domain of the settings. An error does not name its
        domain: once another domain has answered, errors are not believed, and the ack decides.
        """
        domain = self._settings.domain
        if domain is None or answer.get("domain") == domain:
            return True
        if not self._has_rival:
            self._has_rival = True
            log.warning(
                "ignored an ack of stream %r in JetStream domain %r, and any later one: the "
                "settings name domain %r. Give one of the streams other subjects",
                answer.get("stream"), answer.get("domain"), domain,
            )  # fmt: skip
        return False

    def _answer_to_batch(
        self, number: int, index: int, answer: dict[str, Any]
    ) -> Callable[[], None] | None:
        """What the server says of a batch, as the report to make.

        It counts from 1, and only what it was sent.
        """
        events, unsent = self._events, self._replays.offset(number)
        kind, error = answer.get("type"), error_in(answer)
        if kind == "ack":
            return partial(self._batch_stored, number, int(answer["seq"]) + unsent)
        if kind == "gap":
            return None  # the end that follows says how many were stored
        if error is None:
            name = str(answer["stream"])
            if not self._is_ours(answer):
                return None
            stored = int(answer["count"]) + unsent
            # With `duplicate` the batch has one message, which is known.
            report = (
                partial(self._batch_returned, number, stored, duplicate=True)
                if answer.get("duplicate")
                else partial(self._batch_ended, number, stored, name)
            )
            if self._topics.stream(name.encode()) is None:
                return partial(self._topics.when_listed, name, None, report)
            first = events.in_flight(number, self._replays.offset(number))
            if first:
                self._topics.stored_in(first[0].topic, name)
            if answer["seq"] == 0:
                self._replays.known_at_end(name)
            return report
        code, name = error["err_code"], "" if kind == "err" else str(answer["stream"])
        if kind == "err":
            return partial(self._refused_of_batch, number, int(answer["seq"]) - 1 + unsent, error)
        if code == UNKNOWN_BATCH:
            return partial(self._batch_ended, number, unsent)
        if code in NO_BATCH_PUBLISH:
            return partial(self._takes_no_batches, number, name, classify(error).reason)
        if code == TOO_MANY_BATCHES:
            return partial(self._batch_returned, number, unsent)
        return partial(self._refused_of_batch, number, index + unsent, error)

    def _batch_stored(self, number: int, count: int) -> None:
        self._denials.stored_in_batch(number, count)
        self._replays.stored(number, count)

    def _batch_ended(self, number: int, count: int, stream: str | None = None) -> None:
        if number in self._refused_in_batch:
            # First it is asked for what was refused. Messages behind it say less: unknown batch.
            self._refused_in_batch[number] = max(count, self._refused_in_batch[number] or 0)
            return
        self._replays.ended(number, count)
        self._denials.batch_ends(number, count)
        self._events.batch_ended(number, count, stream)

    def _batch_returned(self, number: int, count: int, *, duplicate: bool | None = None) -> None:
        self._replays.ended(number, count)
        self._denials.batch_ends(number, count)
        self._events.batch_returned(number, count, duplicate=duplicate)

    def _takes_no_batches(self, number: int, stream: str, reason: str) -> None:
        self._topics.takes_no_batches(stream, reason)
        self._batch_returned(number, self._replays.offset(number))

    def _refuse_misfit(self, number: int, index: int, envelope: Envelope, refusal: Refusal) -> None:
        stream = self._topics.stream_of(envelope.topic) or ""
        if not self._look_ups.take(number, index, stream, refusal):
            self._events.refused(number, index, refusal)

    def _acked(self, number: int, index: int, receipt: Receipt) -> None:
        self._held.answered(number, index)
        self._denials.acked(number, index)
        self._events.acked(number, index, receipt)

    def _refused(self, number: int, index: int, stream: str, error: Mapping[str, Any]) -> None:
        self._held.answered(number, index)
        refusal = classify(error, stream, self._topics.config(stream))
        if not self._look_ups.take(number, index, stream, refusal):
            self._events.refused(number, index, refusal)

    def _refused_of_batch(self, number: int, index: int, error: Mapping[str, Any]) -> None:
        """A message of a batch is refused. Before it is rejected, its id is asked for: a server may
        look at a limit, which was lowered since, before it looks at the id.
        """
        envelopes = self._events.in_flight(number, index)
        stream = self._topics.stream_of(envelopes[0].topic) if envelopes else None
        refusal = classify(error, stream, self._topics.config(stream))
        if refusal.verdict is not Verdict.REJECT or not envelopes or not self._settings.dedupe:
            self._events.refused(number, index, refusal)
        elif number not in self._refused_in_batch:
            self._refused_in_batch[number] = None
            self._questions.ask(envelopes, partial(self._looked_up, number, index, refusal))

    def _looked_up(self, number: int, index: int, refusal: Refusal, known: Sequence[Known]) -> None:
        """The id of a refused message of a batch was asked for."""
        if known[0] == UNKNOWN_ID:
            refusal = refusal._replace(no_attempt_stored=True)
        elif known[0] == NO_ANSWER or known_sequence(known[0]) is not None:
            refusal = refusal._replace(verdict=Verdict.RETRY)  # as a single it gets its own answer
        self._events.refused(number, index, refusal)
        count = self._refused_in_batch.pop(number, None)
        if count is not None:
            self._batch_ended(number, count)

    def _nobody_listens(self, number: int, index: int) -> None:
        """No stream covers the topic, or its leader is being elected: only a look at the streams
        can tell.
        """
        envelopes = self._events.in_flight(number, index)
        if not envelopes or self._held.nobody_listens(number, index):
            return
        topic = envelopes[0].topic
        if self._topics.is_gone(topic):
            reason = f"no stream covers topic {topic} any more: {REMEDY}, then start the flow again"
            refusal = Refusal(Verdict.STOP, reason, 503)
        else:
            reason = (
                f"no stream answers on topic {topic}: none covers it, or its stream has no leader"
            )
            refusal = Refusal(Verdict.RETRY, reason, 503)
        self._events.refused(number, index, refusal)


def _json(value: str) -> bytes:
    """A value as it stands in the server's JSON, for a pattern."""
    return re.escape(json.dumps(value).encode())
