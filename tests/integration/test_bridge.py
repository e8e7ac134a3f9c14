"""What a bridge carries from one broker to the other, and back: every byte of it."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

import bytewax_jetstream.operators as jop
from bytewax_jetstream.bridge import from_jetstream, from_kafka
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.jetstream.message import JetStreamMessage
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import run
from tests.support.kafka import make_topic, new_topic, ordered_producer
from tests.support.lanes import jetstream, kafka, publish
from tests.support.streams import Names, api, envelopes, make_stream, stored
from tests.support.waiting import until

SECONDS = 30.0
RawHeaders = list[tuple[str, str | bytes | None]]


class Raw(NamedTuple):
    """A record with every byte of it."""

    key: bytes | None
    value: bytes | None
    headers: RawHeaders
    time: tuple[int, int]


HEADER_SETS: dict[str, RawHeaders] = {
    "none": [],
    "plain": [("trace", b"1"), ("Trace", b"2")],
    "a trace": [
        ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", b"congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
    ],
    "repeated": [("a", b"1"), ("b", b"2"), ("a", b"3"), ("a", b"1")],
    "repeated and binary": [("a", b"%41"), ("a", b"\xff"), ("a", None)],
    "null": [("a", None), ("b", b"")],
    "binary": [("retries", b"\x00\x00\x00\x03"), ("schema", bytes(range(256)))],
    "line ends": [("a", b"x\r\ny: z\n\n"), ("b", b"\r"), ("c", b"\n")],
    "blanks": [("a", b" x"), ("b", b"x "), ("c", b" "), ("d", b"\tx\t")],
    "blanks of other languages": [("a", "\u00a0x\u3000".encode()), ("b", "\u200b".encode())],
    "names for the client": [("status", b"404"), ("Status", b""), ("Description", b"no")],
    "odd names": [("a b", b"1"), ("a:b", b"2"), ("größe", b"3"), (" a ", b"4"), ("a\r\nb", b"5")],
    "percent signs": [("%61", b"%41"), ("a%", b"%"), ("a", b"%zz")],
    "our own names": [("Envelope-Encoded", b"a"), ("a", b"%41"), ("envelope-payload", b"null")],
    "an empty value": [("a", b"")],
    "text": [("a", "größe 👩‍🚀 \u0645\u06cc\u200c\u062e".encode())],
}
KEYS = [b"k", None, b"", b"\x00\x00\x00\x07", b"\xff\xfe", b" k ", b"k\r\nk", "k\u200dk".encode()]


def _produce(address: str, topic: str, messages: Sequence[Raw]) -> None:
    """Put records into partition 0, in order."""
    producer = ordered_producer(address)
    for key, value, headers, (_, milliseconds) in messages:
        producer.produce(topic, value, key, 0, None, None, milliseconds, headers)
    assert producer.flush(SECONDS) == 0


def _consume(address: str, topic: str) -> list[Raw]:
    """All records of a topic with one partition."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "bridge"})
    try:
        place = TopicPartition(topic, 0, 0)
        _, end = consumer.get_watermark_offsets(place, timeout=SECONDS)
        consumer.assign([place])
        found: list[Raw] = []
        deadline = time.monotonic() + SECONDS
        while len(found) < end:
            assert time.monotonic() < deadline, f"{len(found)} of {end} records were read"
            for message in consumer.consume(1_000, 0.2):
                assert message.error() is None, message.error()
                found.append(
                    Raw(
                        message.key(),
                        message.value(),
                        cast(RawHeaders, message.headers() or []),
                        message.timestamp(),
                    )
                )
        return found
    finally:
        consumer.close()


def _copy(
    settings: Any, made: Callable[[Any], Envelope], to: Any, *, tail: bool = False, **source: Any
) -> list[Any]:
    """Run a bridge to the end of its source; returns what could not be read."""
    bad: list[Any] = []
    flow = Dataflow("copy")
    read = jop.input("in", flow, settings, tail=tail, **source)
    jop.output("out", op.map("made", read.oks, made), to)
    op.output("bad", read.errs, TestingSink(bad))
    run(flow)
    return bad


def _read(server: NatsServer, stream: str, *subjects: str) -> list[JetStreamMessage]:
    """All messages of a stream, or of these subjects, as our source reads them."""
    found: list[Any] = []
    flow = Dataflow("read")
    read = jop.input(
        "in", flow, jetstream(server.url), stream=stream, subjects=subjects, tail=False
    )
    op.output("out", read.oks, TestingSink(found))
    run(flow)
    return found


def _read_topic(address: str, topic: str) -> Any:
    """The one record of a topic, as our source reads it."""
    found: list[Any] = []
    flow = Dataflow("read")
    read = jop.input("in", flow, kafka(address), topics=topic, tail=False)
    op.output("out", read.oks, TestingSink(found))
    run(flow)
    (record,) = found
    return record


def _offset(record: Raw) -> int:
    event_id = dict(record.headers)["Event-Id"]
    assert isinstance(event_id, bytes)
    return int(event_id.rpartition(b"-")[2])


def _ours(headers: RawHeaders) -> RawHeaders:
    return [pair for pair in headers if pair[0] != "Event-Id"]


@pytest.mark.parametrize("batched", [False, True], ids=["singles", "batches"])
def test_kafka_records_arrive_on_jetstream_and_come_back_as_they_were(
    kafka_address: str, nats_server: NatsServer, names: Names, batched: bool
) -> None:
    source, target = (new_topic(kafka_address, partitions=1) for _ in range(2))
    stream = f"{names()}-{batched}"
    make_stream(nats_server.url, stream, stream, allow_batched=batched)
    began = 1_600_000_000_123
    records = [
        Raw(b"k", None if at % 2 else b"\x00\r\n\xff", headers, (1, began + at))
        for at, headers in enumerate(HEADER_SETS.values())
    ] + [Raw(key, b"", [], (1, began)) for key in KEYS]
    _produce(kafka_address, source, records)

    bad = _copy(
        kafka(kafka_address),
        lambda record: from_kafka(record, stream, own_id=True),
        jetstream(nats_server.url),
        topics=source,
    )
    bad += _copy(
        jetstream(nats_server.url),
        lambda message: from_jetstream(message, target, own_id=True),
        kafka(kafka_address),
        stream=stream,
    )

    assert bad == []
    # Only each aggregate keeps its order; the event id names the record's place.
    came = sorted(_consume(kafka_address, target), key=_offset)
    wanted = [
        # A message without a key is kept in order by its partition.
        record._replace(key=f"{source}-0".encode() if record.key is None else record.key)
        for record in records
    ]
    assert [each._replace(headers=_ours(each.headers)) for each in came] == wanted


@pytest.mark.parametrize("dedupe", [True, False])
def test_what_is_published_on_jetstream_is_read_back_as_it_was(
    nats_server: NatsServer, names: Names, dedupe: bool
) -> None:
    stream = names() + str(dedupe)
    make_stream(nats_server.url, stream, stream)
    at = datetime(2026, 11, 30, 12, 0, 0, 123456, UTC)
    batch = [
        Envelope(stream, None, "tombstone"),
        Envelope(stream, b"", "empty"),
        Envelope(stream, b"x", "timed", timestamp=at),
        Envelope(stream, b"x", "pairs", headers=[("a", "1"), ("b", None), ("a", b"\xff")]),
        Envelope(stream, None, "all", "\x00", "a\nb", {"Status": "404"}, timestamp=at),
    ]

    results = publish(jetstream(nats_server.url, dedupe=dedupe), *batch)

    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    read = {message.sequence: message for message in _read(nats_server, stream)}
    by_id = {event_id: read[result.sequence or 0] for event_id, result in results.items()}
    assert [by_id[each.event_id].payload for each in batch] == [None, b"", b"x", b"x", None]
    assert [by_id[each.event_id].timestamp for each in batch] == [None, None, at, None, at]
    own = [
        [pair for pair in by_id[each.event_id].header_pairs if pair[1] != each.event_id]
        for each in batch
    ]
    assert own == [
        [],
        [],
        [],
        [("a", "1"), ("b", None), ("a", b"\xff")],
        [("Aggregate-Id", "\x00"), ("Event-Type", "a\nb"), ("Status", "404")],
    ]
    assert by_id["pairs"].headers["a"] == "1"


def test_what_is_published_on_kafka_is_stored_as_it_was(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    at = datetime(2026, 11, 30, 12, 0, 0, 123456, UTC)
    batch = [
        Envelope(topic, None, "plain tombstone", "k"),
        Envelope(topic, None, "tombstone", "k", headers={"a": None}),
        Envelope(topic, b"x", "timed", timestamp=at),
        Envelope(topic, b"x", "1970", timestamp=datetime(1970, 1, 1, tzinfo=UTC)),
        Envelope(topic, b"x", "1960", timestamp=datetime(1960, 1, 1, tzinfo=UTC)),
        Envelope(topic, b"x", "pairs", headers=[("a", "1"), ("b", None), ("a", b"\xff")]),
        Envelope(topic, b"x", "n\x00l", "\x00\x01", "t\x00"),
    ]
    before = time.time() * 1000

    results = publish(kafka(kafka_address), *batch)

    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    found = _consume(kafka_address, topic)
    assert [each.value for each in found] == [None, None, b"x", b"x", b"x", b"x", b"x"]
    assert [each.key for each in found] == [b"k", b"k", None, None, None, None, b"\x00\x01"]
    assert [_ours(each.headers) for each in found] == [
        [],
        [("a", None)],
        [],
        [],
        [],
        [("a", b"1"), ("b", None), ("a", b"\xff")],
        [("Event-Type", b"t\x00")],
    ]
    assert dict(found[-1].headers)["Event-Id"] == b"n\x00l"
    times = [each.time[1] for each in found]
    assert times[2:5] == [int(at.timestamp() * 1000), 1, -315_619_200_000]
    assert min(times[:2] + times[5:]) >= before - 1_000


def test_topic_that_is_made_again_gets_other_event_ids(kafka_address: str) -> None:
    topic, ids = new_topic(kafka_address, partitions=1), []
    admin = AdminClient({"bootstrap.servers": kafka_address})
    for again in (False, True):
        if again:
            admin.delete_topics([topic])[topic].result(SECONDS)
            until(lambda: topic not in admin.list_topics(timeout=SECONDS).topics)
            make_topic(kafka_address, topic, partitions=1)
        _produce(kafka_address, topic, [Raw(b"k", b"1", [], (1, 1_600_000_000_000))])
        ids += [from_kafka(_read_topic(kafka_address, topic), "x").event_id for _ in range(2)]

    assert ids[0] == ids[1] != ids[2] == ids[3], "each is stable"
    assert all(event_id.endswith(f":{topic}-0-0") for event_id in ids)


def test_stream_that_is_made_again_gets_other_event_ids(
    nats_server: NatsServer, names: Names
) -> None:
    stream, ids = names(), []
    for _ in range(2):
        make_stream(nats_server.url, stream, stream)
        publish(jetstream(nats_server.url), Envelope(stream, b"1", "e-1"))
        (message,) = _read(nats_server, stream)
        (again,) = _read(nats_server, stream)
        ids.append(from_jetstream(message, "t").event_id)
        assert from_jetstream(again, "t").event_id == ids[-1], "it is stable"
        api(nats_server.url, f"STREAM.DELETE.{stream}")

    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    "each", list("\u00a0\u00ad\u200b\u200c\u200d\u2028\u3000\ufeff"), ids=ascii
)
def test_invisible_character_is_stored_in_subject_ids_and_headers(
    nats_server: NatsServer, names: Names, each: str
) -> None:
    stream, text = names(), f"a{each}b{each}"
    subject = f"{stream}.{text}"
    declared = StreamSettings(name=stream, subjects=(subject,))
    settings = jetstream(nats_server.url, streams=(declared,), stream_strategy="create")
    envelope = Envelope(subject, b"1", text, text, text, {"a": text, text: "a"})

    result = publish(settings, envelope)[text]

    assert (result.outcome, result.reason) == (Outcome.STORED, None)
    (message,) = _read(nats_server, stream, subject)
    copy = from_jetstream(message, message.subject, own_id=True)
    assert copy == envelope
    (raw,) = stored(nats_server.url, stream)
    assert (raw.subject, raw.headers["a"], raw.headers["Event-Id"]) == (envelope.topic, text, text)


def test_time_that_the_topic_refuses_rejects_only_its_own_envelope(kafka_address: str) -> None:
    topic = new_topic(kafka_address, message_timestamp_before_max_ms="86400000")
    now = datetime.now(UTC)
    wrong = {
        "late": Envelope(topic, b"0", "late", timestamp=now + timedelta(days=1)),
        "early": Envelope(topic, b"0", "early", timestamp=now - timedelta(days=2)),
    }
    right = [
        each._replace(timestamp=now - timedelta(minutes=number))
        for number, each in enumerate(envelopes(40, topic))
    ]

    results = publish(kafka(kafka_address), *right[:20], *wrong.values(), *right[20:])

    for event_id, where in (("late", "in the future"), ("early", "in the past")):
        result = results.pop(event_id)
        assert result.outcome is Outcome.REJECTED
        assert where in str(result.reason)
        assert ": correct it, or raise the topic's message.timestamp." in str(result.reason)
    assert {result.outcome for result in results.values()} == {Outcome.STORED}


def test_topic_with_its_own_clock_takes_any_time(kafka_address: str) -> None:
    topic = new_topic(kafka_address, message_timestamp_type="LogAppendTime")
    late = Envelope(topic, b"0", "late", timestamp=datetime.now(UTC) + timedelta(days=1))

    assert publish(kafka(kafka_address), late)["late"].outcome is Outcome.STORED
