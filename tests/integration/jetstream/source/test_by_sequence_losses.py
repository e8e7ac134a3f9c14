"""Reading by sequence goes on where it stopped, through every kind of loss."""

import logging
from collections import Counter
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSink

import bytewax_jetstream.jetstream.source.reader
from bytewax_jetstream.jetstream.message import JetStreamMessage, UnreadableMessage
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import recovery_store, root_cause, run
from tests.support.proxy import Proxy
from tests.support.reading import Driver, consumers, numbered, put, source
from tests.support.streams import Names, api, make_stream


@pytest.mark.parametrize("workers", [1, 2])
def test_crashed_run_resumes_from_the_last_committed_epoch(
    url: str, names: Names, tmp_path: Path, workers: int
) -> None:
    streams = [names(), names()]
    for stream in streams:
        make_stream(url, stream, stream)
        put(url, stream, numbered(stream, 600))
    store = recovery_store(tmp_path / "store", 2)
    seen: list[tuple[str, int]] = []
    limit = 500

    def look(_: str, item: JetStreamMessage | UnreadableMessage) -> None:
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


def test_purged_sequences_are_skipped_and_logged(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 10))
    api(url, f"STREAM.PURGE.{stream}", {"seq": 6})

    state = ("sequence", 2, 3, api(url, f"STREAM.INFO.{stream}")["created"], 0)
    made = source(url, stream)

    with caplog.at_level(logging.WARNING), Driver(made, state=state) as driver:
        driver.to_end()

    assert driver.numbers == [6, 7, 8, 9, 10]
    assert made.skipped == 3
    expected = (
        f"stream {stream}: sequences 3 to 5 were removed before they were read: 3 messages, 3 "
        "since the start: raise the stream's limits, or read faster"
    )
    assert caplog.messages == [expected]


def test_purge_while_reading_skips_the_purged_messages(url: str, names: Names) -> None:
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
def test_server_restart_while_reading_loses_and_repeats_nothing(
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


def test_cut_connection_loses_and_repeats_nothing(url: str, names: Names) -> None:
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
def test_lost_delivery_is_noticed_and_read_again(
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


def test_deleted_consumer_is_recreated_at_its_position(url: str, names: Names) -> None:
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


def test_silent_server_is_noticed_and_read_again(
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
