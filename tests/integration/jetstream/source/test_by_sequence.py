"""Reading by sequence from a real server: complete, in order, within its bounds, without
unreadable messages.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import bytewax_jetstream.jetstream.source.prefetch
from bytewax_jetstream.jetstream.message import JetStreamMessage, UnreadableMessage
from bytewax_jetstream.jetstream.source.source import JetStreamSource
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.proxy import Proxy
from tests.support.reading import Driver, consumers, feed_of, numbered, put, read, settings, source
from tests.support.streams import Names, api, make_stream
from tests.support.waiting import until

# What comes out


def test_stream_is_read_in_order_with_every_field_of_its_messages(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>")
    before = datetime.now(UTC)
    headers = b"NATS/1.0\r\nNats-Msg-Id: a\r\nKind:  new \r\n\r\n"
    with_headers = b"HPUB %s.b %d %d\r\n%s\x00\xff\r\n" % (
        stream.encode(),
        len(headers),
        len(headers) + 2,
        headers,
    )
    put(url, stream, [*numbered(f"{stream}.a", 1), with_headers])

    first, second = read(source(url, stream))

    assert first == JetStreamMessage(f"{stream}.a", b"1", {}, stream, 1, first.time)
    assert second == JetStreamMessage(
        f"{stream}.b", b"\x00\xff", {"Nats-Msg-Id": "a", "Kind": "new"}, stream, 2, second.time
    )
    assert (
        before - timedelta(seconds=1)
        < first.time
        <= second.time
        < datetime.now(UTC) + timedelta(seconds=1)
    )
    assert not consumers(url, stream)


def test_no_batch_exceeds_its_size(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 25))

    with Driver(source(url, stream, batch_size=10)) as driver:
        sizes = []
        while not driver.ended:
            before = len(driver.items)
            driver.step()
            sizes.append(len(driver.items) - before)

    assert max(sizes) == 10
    assert driver.numbers == list(range(1, 26))


def test_an_empty_stream_and_a_filter_that_nothing_matches_end_at_once(
    url: str, names: Names
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>")
    assert not read(source(url, stream))

    put(url, stream, numbered(f"{stream}.a", 3))

    assert not read(source(url, stream, subjects=f"{stream}.b"))


def test_reading_without_tail_ends_where_the_stream_ended_at_the_start(
    url: str, names: Names
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    with Driver(source(url, stream)) as driver:
        put(url, stream, numbered(stream, 3, first=4))
        driver.to_end()
        state = driver.part.snapshot()
    assert driver.numbers == [1, 2, 3]

    with Driver(source(url, stream), state=state) as driver:
        driver.to_end()
    assert driver.numbers == [4, 5, 6]


def test_reading_without_tail_ends_although_the_last_message_was_removed(
    url: str, names: Names
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    with Driver(source(url, stream, batch_size=1)) as driver:
        until(lambda: feed_of(driver).found.last == 3)
        api(url, f"STREAM.PURGE.{stream}")
        put(url, stream, [])
        driver.to_end()

    assert driver.numbers in ([1, 2, 3], [])  # what was on its way came


def test_reading_with_tail_wakes_soon_and_yields_new_messages(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)

    with Driver(source(url, stream, tail=True)) as driver:
        driver.step()
        awake = driver.part.next_awake()
        assert awake is not None
        assert (
            timedelta(0)
            < awake - datetime.now(UTC) + timedelta(seconds=0.02)
            < timedelta(seconds=0.04)
        )
        put(url, stream, numbered(stream, 3))
        driver.until(lambda: len(driver.items) == 3)

    assert driver.numbers == [1, 2, 3]


@pytest.mark.parametrize(
    ("start", "expected"), [("first", [1, 2, 3, 4]), ("new", [4]), (2, [2, 3, 4])]
)
def test_reading_starts_where_it_is_told_to(
    url: str, names: Names, start: Any, expected: list[int]
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    with Driver(source(url, stream, tail=True, start=start)) as driver:
        put(url, stream, numbered(stream, 1, first=4))
        driver.until(lambda: driver.items and driver.numbers[-1] == 4)

    assert driver.numbers == expected


def test_reading_starts_at_a_given_time(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))
    times = [item.time for item in read(source(url, stream))]

    assert [
        item.sequence
        for item in read(source(url, stream, start=times[1] + timedelta(microseconds=1)))
    ] == [3]


def test_start_position_is_kept_before_anything_was_read(url: str, names: Names) -> None:
    """Otherwise what comes between a crash and the next start would be skipped."""
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))
    with Driver(source(url, stream, tail=True, start="new")) as driver:
        driver.step()
        state = driver.part.snapshot()
    put(url, stream, numbered(stream, 2, first=4))

    with Driver(source(url, stream, start="new"), state=state) as driver:
        driver.to_end()

    assert driver.numbers == [4, 5]


def test_start_beyond_the_end_is_waited_for_and_resumed(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    with Driver(source(url, stream, tail=True, start=3)) as driver:
        driver.step()
        state = driver.part.snapshot()
    created = api(url, f"STREAM.INFO.{stream}")["created"]
    assert state == ("sequence", 2, 3, created, 0)

    with Driver(source(url, stream, tail=True, start=3), state=state) as driver:
        put(url, stream, numbered(stream, 4))
        driver.until(lambda: len(driver.items) == 2)

    assert driver.numbers == [3, 4]


@pytest.mark.parametrize("workers", [1, 2])
def test_streams_and_subjects_are_partitions(url: str, names: Names, workers: int) -> None:
    streams = [names(), names()]
    for stream in streams:
        make_stream(url, stream, f"{stream}.*.*")
        for kind in ("a", "b", "c"):
            put(url, stream, numbered(f"{stream}.{kind}.x", 10))

    made = source(url, *streams, subjects=["*.a.*", "*.b.x"])

    assert made.list_parts() == [
        f"{stream}/{subject}" for stream in streams for subject in ("*.a.*", "*.b.x")
    ]
    counts = Counter(item.subject for item in read(made, workers=workers))
    assert counts == {f"{stream}.{kind}.x": 10 for stream in streams for kind in ("a", "b")}


@pytest.mark.alone
def test_partitions_of_equal_settings_share_a_connection_until_the_last_closes(
    own_nats_server: NatsServer,
) -> None:
    url = own_nats_server.url
    for stream in ("A", "B"):
        make_stream(url, stream, stream)
    with Proxy(url) as proxy:
        made = JetStreamSource(settings(proxy.url), streams=("A", "B"))
        with Driver(made, part="A"), Driver(made, part="B"):
            assert proxy.connections == 1
        assert not [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith("bytewax_jetstream-source")
        ]
        with Driver(made, part="A"):
            assert proxy.connections == 2


def test_newer_reply_subjects_are_understood() -> None:
    with NatsServer(config="feature_flags { js_ack_fc_v2: true }") as server:
        make_stream(server.url, "S", "s")
        put(server.url, "S", numbered("s", 3))
        assert [int(item.payload) for item in read(source(server.url, "S"))] == [1, 2, 3]


def test_a_domain_is_reached_through_its_prefix() -> None:
    with NatsServer(config="jetstream { domain: hub }") as server:
        make_stream(server.url, "S", "s")
        put(server.url, "S", numbered("s", 3))
        made = JetStreamSource(settings(server.url, domain="hub"), streams="S", tail=False)
        assert [int(item.payload) for item in read(made)] == [1, 2, 3]


def test_declared_streams_are_created(url: str, names: Names) -> None:
    stream = names()
    declared = settings(url, streams=(StreamSettings(name=stream, subjects=(stream,)),))

    assert not read(JetStreamSource(declared, streams=stream, tail=False))

    assert api(url, f"STREAM.INFO.{stream}")["config"]["subjects"] == [stream]


# Unreadable messages


def unreadable(stream: str) -> Iterator[tuple[bytes, str]]:
    """Messages that stop nats-py for good, each as a frame, with the reason we give."""
    name = stream.encode()
    yield b"HPUB %s.a 8 11\r\nNATS/1.0abc\r\n" % name, "its header block has no end"
    yield b"PUB %s.\xff\xfe 3\r\nabc\r\n" % name, "its subject is not UTF-8"
    yield b"PUB %s.\x0b 3\r\nabc\r\n" % name, "its subject has control characters"
    yield b"PUB %s.\x0c 3\r\nabc\r\n" % name, "its subject has control characters"
    broken = b"NATS/1.0\r\nA: \xff\r\n\r\n"
    yield (
        b"HPUB %s.a %d %d\r\n%sabc\r\n" % (name, len(broken), len(broken) + 3, broken),
        "its header block is not UTF-8",
    )
    broken = b"NATS/1.0\r\nno header\r\n\r\n"
    frame = b"HPUB %s.a %d %d\r\n%sabc\r\n" % (name, len(broken), len(broken) + 3, broken)
    yield frame, "its header block has a malformed line: 'no header'"


def test_unreadable_message_goes_to_the_errors_and_the_next_messages_are_read(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>")
    frames, reasons = zip(*unreadable(stream), strict=True)
    put(url, stream, [frame for each in frames for frame in (each, *numbered(f"{stream}.good", 1))])

    with caplog.at_level(logging.WARNING):
        items = read(source(url, stream))

    assert [item.sequence for item in items] == list(range(1, 2 * len(frames) + 1))
    errors = [item for item in items if isinstance(item, UnreadableMessage)]
    assert [error.reason for error in errors] == list(reasons)
    assert {error.payload for error in errors} == {b"abc"}
    assert [item.payload for item in items if isinstance(item, JetStreamMessage)] == [b"1"] * len(
        frames
    )
    assert caplog.messages[-1] == f"stream {stream}: {len(frames)} messages could not be read"


# Bounds


def test_no_more_than_four_batches_are_read_ahead(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 5000))

    with Driver(source(url, stream, batch_size=100)) as driver:
        feed = feed_of(driver)
        until(lambda: len(feed.left()) == 300)  # so many are asked for at first
        while len(driver.items) < 5000:
            driver.step()
            until(lambda: len(driver.items) > 4500 or len(feed.left()) >= 200)
            assert len(feed.left()) <= 400

    assert driver.numbers == list(range(1, 5001))


def test_read_ahead_is_limited_in_bytes(
    url: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bytewax_jetstream.jetstream.source.prefetch, "PREFETCH_BYTES", 4 * 1024 * 1024
    )
    stream = names()
    make_stream(url, stream, stream)
    body = bytes(512 * 1024)
    put(url, stream, [b"PUB %s %d\r\n%s\r\n" % (stream.encode(), len(body), body)] * 40)

    with Driver(source(url, stream, batch_size=1)) as driver:
        feed = feed_of(driver)
        while len(driver.items) < 40:
            until(lambda: feed.left())
            driver.step()
            assert len(feed.left()) <= 8

    assert driver.sequences == list(range(1, 41))


def test_message_of_the_servers_maximum_size_is_read(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    body = bytes(1024 * 1024)
    put(url, stream, [b"PUB %s %d\r\n%s\r\n" % (stream.encode(), len(body), body)])

    (message,) = read(source(url, stream))

    assert message.payload == body
