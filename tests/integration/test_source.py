"""Reading by sequence from a real server: whole, in order, from where it stopped, through every
kind of loss.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSink

import bytewax_jetstream.jetstream.source.reader
from bytewax_jetstream.errors import ConnectError, JetStreamPipelineError, SourceError, StreamError
from bytewax_jetstream.jetstream.message import JetStreamError, JetStreamMessage
from bytewax_jetstream.jetstream.source.source import JetStreamSource
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import recovery_store, root_cause, run
from tests.support.proxy import Proxy
from tests.support.reading import Driver, feed_of, numbered, put, settings, write
from tests.support.streams import api, make_stream
from tests.support.waiting import until

Names = Callable[[], str]
AMY: dict[str, Any] = {"user": "amy", "password": "a"}


@pytest.fixture
def url(nats_server: NatsServer) -> str:
    return nats_server.url


def source(url: str, *streams: str, tail: bool = False, **more: Any) -> JetStreamSource:
    return JetStreamSource(settings(url), streams=streams, tail=tail, **more)


def read(made: JetStreamSource, *, workers: int = 1, store: Path | None = None) -> list[Any]:
    """Everything a source yields in a dataflow."""
    flow, items = Dataflow("flow"), list[Any]()
    op.output("out", op.input("in", flow, made), TestingSink(items))
    run(flow, workers=workers, store=store)
    return items


def consumers(url: str, stream: str) -> list[str]:
    return list(api(url, f"CONSUMER.NAMES.{stream}")["consumers"] or ())


# What comes out


def test_a_stream_is_read_in_order_with_all_that_a_message_has(url: str, names: Names) -> None:
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


def test_every_batch_is_within_its_size(url: str, names: Names) -> None:
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


def test_without_tail_reading_ends_at_what_was_the_end_at_its_start(url: str, names: Names) -> None:
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


def test_without_tail_reading_ends_though_the_last_message_is_removed_before(
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


def test_with_tail_new_messages_come_and_an_idle_source_is_soon_awake(
    url: str, names: Names
) -> None:
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


def test_reading_starts_at_a_time(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))
    times = [item.time for item in read(source(url, stream))]

    assert [
        item.sequence
        for item in read(source(url, stream, start=times[1] + timedelta(microseconds=1)))
    ] == [3]


def test_a_place_nothing_was_read_from_yet_is_kept(url: str, names: Names) -> None:
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


def test_a_start_that_lies_ahead_is_waited_for_and_resumed(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    with Driver(source(url, stream, tail=True, start=3)) as driver:
        driver.step()
        state = driver.part.snapshot()
    assert state == ("sequence", 1, 3)

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


def test_partitions_with_the_same_settings_share_one_connection_that_ends_with_the_last(
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


def test_streams_that_the_settings_declare_are_made(url: str, names: Names) -> None:
    stream = names()
    declared = settings(url, streams=(StreamSettings(name=stream, subjects=(stream,)),))

    assert not read(JetStreamSource(declared, streams=stream, tail=False))

    assert api(url, f"STREAM.INFO.{stream}")["config"]["subjects"] == [stream]


# Going on


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crashed_run_goes_on_from_the_last_epoch(
    url: str, names: Names, tmp_path: Path, workers: int
) -> None:
    streams = [names(), names()]
    for stream in streams:
        make_stream(url, stream, stream)
        put(url, stream, numbered(stream, 600))
    store = recovery_store(tmp_path / "store", 2)
    seen: list[tuple[str, int]] = []
    limit = 500

    def look(_: str, item: JetStreamMessage | JetStreamError) -> None:
        if len(seen) >= limit:
            raise RuntimeError("crash")
        seen.append((item.stream, item.sequence))

    def flow() -> Dataflow:
        made = Dataflow("flow")
        items = op.input("in", made, source(url, *streams, batch_size=20))
        op.output("out", op.inspect("look", items, look), TestingSink([]))
        return made

    with pytest.raises(BytewaxRuntimeError) as caught:
        run(flow(), workers=workers, store=store, epoch=timedelta(0))
    assert str(root_cause(caught.value)) == "crash"
    crashed_at = Counter(seen)
    limit = 10_000
    run(flow(), workers=workers, store=store, epoch=timedelta(0))

    counts = Counter(seen)
    assert set(counts) == {(stream, number) for stream in streams for number in range(1, 601)}
    repeated = sum(counts.values()) - len(counts)
    assert repeated < len(crashed_at)
    seen.clear()
    run(flow(), workers=workers, store=store, epoch=timedelta(0))
    assert not seen


def test_purged_sequences_are_passed_over_and_said(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 10))
    api(url, f"STREAM.PURGE.{stream}", {"seq": 6})

    with caplog.at_level(logging.WARNING), Driver(source(url, stream), state=3) as driver:
        driver.to_end()

    assert driver.numbers == [6, 7, 8, 9, 10]
    assert caplog.messages == [
        f"stream {stream}: sequences 3 to 5 were removed before they were read"
    ]


def test_a_purge_while_reading_leaves_out_what_is_purged(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 2000))

    with Driver(source(url, stream, tail=True, batch_size=10)) as driver:
        driver.until(lambda: driver.items)
        api(url, f"STREAM.PURGE.{stream}", {"seq": 1500})
        driver.until(lambda: driver.numbers[-1] == 2000)
        api(url, f"STREAM.PURGE.{stream}")
        put(url, stream, numbered(stream, 5, first=2001))
        driver.until(lambda: driver.numbers[-1] == 2005)

    numbers = driver.numbers
    assert numbers == sorted(set(numbers))
    assert set(range(1500, 2006)) <= set(numbers)
    assert driver.sequences == numbers


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_server_that_is_restarted_while_reading_costs_and_repeats_nothing(
    own_nats_server: NatsServer, how: str
) -> None:
    server = own_nats_server
    make_stream(server.url, "S", "s")
    put(server.url, "S", numbered("s", 5000))

    with Driver(source(server.url, "S", tail=True, batch_size=100)) as driver:
        for round_ in (1, 2, 3):
            driver.until(lambda: len(driver.items) >= 500 * round_)  # noqa: B023  # called before the next round
            getattr(server, how)()
            driver.step()
            server.start()
        driver.until(lambda: len(driver.items) >= 5000)
        put(server.url, "S", numbered("s", 1, first=5001))
        driver.until(lambda: driver.numbers[-1] == 5001)

    assert driver.numbers == list(range(1, 5002))


def test_a_cut_connection_costs_and_repeats_nothing(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3000))

    with Proxy(url) as proxy, Driver(source(proxy.url, stream, batch_size=50)) as driver:
        for round_ in range(1, 6):
            driver.until(lambda: len(driver.items) >= 400 * round_)  # noqa: B023  # called before the next round
            proxy.cut_all()
        driver.to_end()
        assert proxy.connections > 1

    assert driver.numbers == list(range(1, 3001))


@pytest.mark.parametrize("lost", [b"\r\n40\r\n", b"\r\n60\r\n"], ids=["in between", "at the end"])
def test_a_message_that_does_not_arrive_is_noticed_and_read(
    url: str, names: Names, lost: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.feed, "HEARTBEAT_SECONDS", 0.2)
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 60))

    with Proxy(url) as proxy:
        proxy.answers.loses = lambda frame: proxy.answers.lost == 0 and frame.endswith(lost)
        with Driver(source(proxy.url, stream, tail=True)) as driver:
            driver.until(lambda: len(driver.items) == 60)
        assert proxy.answers.lost == 1

    assert driver.numbers == list(range(1, 61))


def test_a_consumer_that_is_deleted_is_made_again_where_it_was(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 2000))

    with Driver(source(url, stream, tail=True, batch_size=10)) as driver:
        for last in (500, 1000, 2000):
            driver.until(lambda: len(driver.items) >= last)  # noqa: B023  # called before the next round
            for name in consumers(url, stream):
                api(url, f"CONSUMER.DELETE.{stream}.{name}")
        put(url, stream, numbered(stream, 1, first=2001))
        driver.until(lambda: driver.numbers[-1] == 2001)

    assert driver.numbers == list(range(1, 2002))


def test_a_server_that_falls_silent_is_noticed(
    url: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.feed, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.feed, "SILENCE_SECONDS", 0.3)
    stream = names()
    make_stream(url, stream, stream)

    with Proxy(url) as proxy, Driver(source(proxy.url, stream, tail=True)) as driver:
        proxy.answers.loses = lambda frame: b"Heartbeat" in frame or b"$JS.ACK" in frame
        put(url, stream, numbered(stream, 3))
        driver.until(lambda: proxy.answers.messages_to(b"_INBOX") and proxy.answers.lost > 3)
        proxy.answers.loses = lambda frame: False
        driver.until(lambda: len(driver.items) == 3)

    assert driver.numbers == [1, 2, 3]


# Poison


def poison(stream: str) -> Iterator[tuple[bytes, str]]:
    """Messages that stop nats-py for good, each as a frame, with what is wrong."""
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
    yield frame, "its header block has a line that is no header: 'no header'"


def test_poison_is_kept_out_and_the_messages_after_it_come(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>")
    frames, reasons = zip(*poison(stream), strict=True)
    put(url, stream, [frame for each in frames for frame in (each, *numbered(f"{stream}.good", 1))])

    with caplog.at_level(logging.WARNING):
        items = read(source(url, stream))

    assert [item.sequence for item in items] == list(range(1, 2 * len(frames) + 1))
    errors = [item for item in items if isinstance(item, JetStreamError)]
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


def test_no_more_than_so_many_bytes_are_read_ahead(
    url: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.feed, "PREFETCH_BYTES", 4 * 1024 * 1024)
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


def test_a_message_as_large_as_the_server_takes_is_read(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    body = bytes(1024 * 1024)
    put(url, stream, [b"PUB %s %d\r\n%s\r\n" % (stream.encode(), len(body), body)])

    (message,) = read(source(url, stream))

    assert message.payload == body


# What stands in the way


def failure(made: JetStreamSource, state: Any = None) -> JetStreamPipelineError:
    with pytest.raises(JetStreamPipelineError) as caught:
        Driver(made, state=state)
    return caught.value


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
def test_a_stream_that_removes_what_is_acknowledged_needs_a_durable_consumer(
    url: str, names: Names, retention: str
) -> None:
    stream = names()
    make_stream(url, stream, stream, retention=retention)

    assert str(failure(source(url, stream))) == (
        f"stream {stream} has {retention} retention, which removes what its consumers acknowledge, and reading by "
        "sequence acknowledges nothing: name a consumer with durable="
    )


def test_a_missing_stream_is_one_sentence(url: str, names: Names) -> None:
    error = failure(source(url, "NOWHERE"))

    assert isinstance(error, StreamError)
    assert str(error) == "stream NOWHERE is missing: create it, then run again"


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with NatsServer() as server:
        url = server.url
    error = failure(JetStreamSource(settings(url, connect_timeout=0.3), streams="S"))

    assert isinstance(error, ConnectError)
    assert str(error).endswith("see whether the server runs there")


def test_a_server_without_jetstream_is_one_sentence() -> None:
    with NatsServer(jetstream=False) as server:
        error = failure(source(server.url, "S"))

    assert str(error).startswith("nobody answers $JS.API.STREAM.INFO.S: JetStream is off")


@pytest.mark.parametrize(
    ("denied", "what"),
    [
        ("$JS.API.CONSUMER.MSG.NEXT.>", "CONSUMER.MSG.NEXT.S."),
        ("$JS.API.CONSUMER.CREATE.>", "CONSUMER.CREATE.S."),
    ],
)
def test_a_permission_that_is_lacking_is_named(denied: str, what: str) -> None:
    config = f"""
        authorization {{ users: [
            {{ user: amy, password: a }},
            {{ user: bob, password: b, permissions: {{ publish: {{ deny: ["{denied}"] }} }} }}
        ] }}
    """
    with NatsServer(config=config) as server:
        api(server.url, "STREAM.CREATE.S", {"name": "S", "subjects": ["s"]}, **AMY)
        error = failure(
            JetStreamSource(settings(server.url, user="bob", password="b"), streams="S")
        )

    assert what in str(error)
    assert "ermission" in str(error)


def test_a_stream_made_anew_since_the_last_run_is_refused(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    assert isinstance(failure(source(url, stream), state=10), SourceError)
    with Driver(source(url, stream), state=4) as driver:
        driver.to_end()
    assert not driver.items


def test_a_stream_made_anew_while_it_is_read_ends_the_run(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    with Driver(source(url, stream, tail=True)) as driver:
        driver.until(lambda: len(driver.items) == 3)
        api(url, f"STREAM.DELETE.{stream}")
        make_stream(url, stream, stream)
        put(url, stream, numbered(stream, 5))
        with pytest.raises(
            SourceError, match="was read to sequence 3 and ends at 5, or was made anew"
        ):
            driver.until(lambda: False)
    assert driver.numbers == [1, 2, 3]


def test_a_stream_deleted_while_it_is_read_ends_the_run_within_a_deadline(
    url: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.reader, "GONE_SECONDS", 0.3)
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    with Driver(source(url, stream, tail=True)) as driver:
        driver.until(lambda: len(driver.items) == 3)
        api(url, f"STREAM.DELETE.{stream}")
        with pytest.raises(
            SourceError, match=f"stream {stream} is missing: create it, then run again"
        ):
            driver.until(lambda: False)


def test_a_server_that_stays_away_ends_the_run_within_a_deadline(
    own_nats_server: NatsServer,
) -> None:
    server = own_nats_server
    make_stream(server.url, "S", "s")
    put(server.url, "S", numbered("s", 3))

    with Driver(JetStreamSource(settings(server.url, outage=0.5), streams="S")) as driver:
        driver.until(lambda: len(driver.items) == 3)
        server.kill()
        with pytest.raises(SourceError, match="stream S could not be read for"):
            driver.until(lambda: False)
        started = time.monotonic()
    assert time.monotonic() - started < 5  # and is let go of soon


def test_a_source_without_a_server_is_closed_without_an_error(own_nats_server: NatsServer) -> None:
    server = own_nats_server
    make_stream(server.url, "S", "s")
    driver = Driver(JetStreamSource(settings(server.url), streams="S"))
    server.kill()

    driver.part.close()


def test_state_of_the_other_way_to_read_is_refused(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)

    assert "was read with a durable consumer by step flow.in" in str(
        failure(source(url, stream), state=())
    )
    assert "was read by sequence by step flow.in" in str(
        failure(source(url, stream, durable="d"), state=3)
    )


def test_state_of_a_newer_version_is_refused(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)

    error = failure(source(url, stream), state=("sequence", 2, 3))

    assert isinstance(error, SourceError)
    assert "step flow.in found recovery state of version 2" in str(error)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"streams": ()}, "at least one"),
        ({"streams": ("S", "S")}, "each once"),
        ({"streams": "a.b"}, "no name"),
        ({"durable": "a b"}, "no name"),
        ({"subjects": "a..b"}, "no subject"),
        ({"subjects": "a.>.b"}, "no subject"),
        ({"subjects": ["a.*", "a.b"]}, "overlap"),
        ({"subjects": ["a.*", "*.b"]}, "overlap"),
        ({"subjects": ["a.>", "a.b.c"]}, "overlap"),
        ({"start": 0}, "not possible"),
        ({"start": True}, "not possible"),
        ({"start": "last"}, "not possible"),
        ({"start": datetime(2026, 1, 1)}, "no time zone"),  # noqa: DTZ001  # that is what is wrong with it
        ({"batch_size": 0}, "positive"),
        ({"ack_wait": timedelta(0)}, "positive"),
    ],
)
def test_impossible_arguments_are_refused_at_once(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        JetStreamSource(settings("nats://127.0.0.1:1"), **{"streams": "S", **arguments})


def test_forged_messages_are_ignored(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    with caplog.at_level(logging.WARNING), Driver(source(url, stream, tail=True)) as driver:
        inbox = feed_of(driver)._pulls[0].reply
        write(url, [b"PUB %s reply 3\r\nabc\r\n" % inbox, b"PUB %s.x reply 3\r\nabc\r\n" % inbox])
        put(url, stream, numbered(stream, 1))
        driver.until(lambda: driver.items)

    assert driver.numbers == [1]
    assert "ignored what is no message of it" in caplog.text
