"""Sources stay within what a server and a stream allow, and say so where that costs something."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import bytewax_jetstream.jetstream.source.by_durable
import bytewax_jetstream.jetstream.source.leftovers
from bytewax_jetstream.errors import SourceError
from bytewax_jetstream.jetstream.source.reader import Reader
from bytewax_jetstream.jetstream.source.source import JetStreamSource
from bytewax_jetstream.testing import NatsServer
from tests.support.reading import Driver, consumers, feed_of, numbered, put, settings, source
from tests.support.streams import Names, api, make_stream
from tests.support.waiting import until

LIMITS = {"inactive_threshold": 30 * 10**9, "max_ack_pending": 50}


def reading_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.name.startswith("bytewax_jetstream")]


# What a stream allows its consumers


@pytest.mark.parametrize("threshold", [10**9, 30 * 10**9, 3600 * 10**9], ids="{} ns".format)
def test_stream_with_consumer_limits_is_read_by_sequence(
    url: str, names: Names, threshold: int
) -> None:
    stream = names()
    limits = {**LIMITS, "inactive_threshold": threshold}
    make_stream(url, stream, stream, consumer_limits=limits)
    put(url, stream, numbered(stream, 200))

    with Driver(source(url, stream)) as driver:
        asked = feed_of(driver).found.config["inactive_threshold"]
        driver.to_end()

    assert asked == min(threshold, 60 * 10**9)
    assert driver.numbers == list(range(1, 201))


def test_stream_with_consumer_limits_is_read_with_a_durable_consumer_and_says_so(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    make_stream(url, stream, stream, consumer_limits=LIMITS)
    put(url, stream, numbered(stream, 200))

    for _ in range(2):  # the consumer is made, and then it is there
        with caplog.at_level(logging.WARNING), Driver(source(url, stream, durable="d")) as driver:
            driver.to_end(epochs=True)

    assert api(url, f"CONSUMER.INFO.{stream}.d")["config"]["max_ack_pending"] == 50
    assert "max_ack_pending of 50 instead of 100000" in caplog.text
    assert "deleted by the server when nobody reads through it for 30 s" in caplog.text


def test_max_ack_pending_beyond_the_servers_limit_is_one_clear_error() -> None:
    with NatsServer(config="jetstream { limits { max_ack_pending: 77 } }") as server:
        make_stream(server.url, "S", "s")
        with pytest.raises(SourceError) as caught:
            Driver(source(server.url, "S", durable="d"))
        assert "limit of 77" in str(caught.value)
        assert "lower the source's max_ack_pending" in str(caught.value)
        with Driver(source(server.url, "S", durable="d", max_ack_pending=77)) as driver:
            driver.to_end()


# Consumers that crashes leave behind


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A partition that is closed meanwhile leaves its consumer behind, as a killed process does."""
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "close", lambda *_: None)
        yield


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("subjects", [(), ("*.a",)], ids=["all subjects", "one subject"])
def test_crash_loop_needs_no_more_consumers_than_the_stream_allows(
    url: str, names: Names, monkeypatch: pytest.MonkeyPatch, most: int, subjects: tuple[str, ...]
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>", max_consumers=most)
    put(url, stream, numbered(f"{stream}.a", 5))

    for _ in range(4):
        with (
            crashing(monkeypatch),
            Driver(source(url, stream, tail=True, subjects=subjects)) as driver,
        ):
            driver.until(lambda: len(driver.items) == 5)  # called in this round
        assert len(consumers(url, stream)) <= most


def test_lost_connections_need_no_more_consumers_than_the_stream_allows(
    url: str, names: Names
) -> None:
    stream = names()
    make_stream(url, stream, stream, max_consumers=1)
    put(url, stream, numbered(stream, 5))

    with Driver(source(url, stream, tail=True)) as driver:
        for round_ in range(1, 4):
            driver.until(lambda: len(driver.items) == 5 * round_)  # noqa: B023  # called in this round
            driver.part._part._shared.connection.lose("for a test")
            put(url, stream, numbered(stream, 5, first=5 * round_ + 1))
        driver.until(lambda: len(driver.items) == 20)

    assert driver.numbers == list(range(1, 21))


@pytest.mark.parametrize("step", ["flow.in", "other.in"], ids=["same step", "another step"])
def test_consumer_that_somebody_reads_through_is_never_deleted(
    url: str, names: Names, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.leftovers, "PATIENCE_SECONDS", 0.3)
    stream = names()
    make_stream(url, stream, stream, max_consumers=1)

    with Driver(source(url, stream, tail=True)) as driver:
        with pytest.raises(SourceError, match="allows no more consumers") as caught:
            source(url, stream).build_part(step, stream, None)
        assert caught.value.code == 10026
        put(url, stream, numbered(stream, 5))
        driver.until(lambda: len(driver.items) == 5)
        assert driver.part._part._reader.reopened == 0


def test_leftover_of_another_step_is_not_deleted(
    url: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = names()
    make_stream(url, stream, stream, max_consumers=1)
    with crashing(monkeypatch), Driver(source(url, stream)):
        pass
    left = consumers(url, stream)

    with pytest.raises(SourceError, match="allows no more consumers"):
        source(url, stream).build_part("other.in", stream, None)

    assert consumers(url, stream) == left


def test_durable_consumer_for_which_there_is_no_room_is_one_clear_error(
    url: str, names: Names
) -> None:
    stream = names()
    make_stream(url, stream, stream, max_consumers=1)

    with (
        Driver(source(url, stream, tail=True)),
        pytest.raises(SourceError, match="allows no more consumers"),
    ):
        Driver(source(url, stream, durable="d"))


# Read ahead, within what a server holds for a client


def fill(url: str, stream: str, size: int, count: int) -> None:
    make_stream(url, stream, stream)
    body = bytes(size)
    frame = b"PUB %s %d\r\n%s\r\n" % (stream.encode(), size, body)
    for start in range(0, count, 200):
        put(url, stream, [frame] * min(200, count - start))


@pytest.mark.parametrize(
    ("config", "streams", "size", "count"),
    [
        ("max_pending: 1MB", 1, 16 * 1024, 400),
        ("max_pending: 1MB", 4, 16 * 1024, 200),
        ("max_pending: 1MB", 4, 200 * 1024, 10),
        ("max_pending: 1MB", 3, 500 * 1024, 6),
        ("max_pending: 8MB", 4, 16 * 1024, 800),
    ],
)
def test_server_that_holds_little_for_a_client_is_read_to_the_end(
    config: str, streams: int, size: int, count: int
) -> None:
    with NatsServer(config=config) as server, ExitStack() as stack:
        names = [f"S{number}" for number in range(streams)]
        for name in names:
            fill(server.url, name, size, count)
        made = JetStreamSource(settings(server.url), streams=names, tail=False)
        drivers = [stack.enter_context(Driver(made, part=name)) for name in names]
        _read_all(drivers)

        assert [driver.sequences for driver in drivers] == [list(range(1, count + 1))] * streams
        assert sum(driver.part._part._reader.reopened for driver in drivers) <= 4 * streams


def test_four_streams_of_16_kb_messages_are_never_cut_with_defaults() -> None:
    with NatsServer() as server, ExitStack() as stack:
        names = [f"S{number}" for number in range(4)]
        for name in names:
            fill(server.url, name, 16 * 1024, 1500)
        made = JetStreamSource(settings(server.url), streams=names, tail=False)
        drivers = [stack.enter_context(Driver(made, part=name)) for name in names]
        prefetch = drivers[0].part._part._shared.prefetch
        most = 0
        while not all(driver.ended for driver in drivers):
            for driver in drivers:
                if not driver.ended:
                    driver.step()
                most = max(most, prefetch._requested)

        assert [len(driver.items) for driver in drivers] == [1500] * 4
        assert [driver.part._part._reader.reopened for driver in drivers] == [0] * 4
        assert most <= prefetch.limit


def _read_all(drivers: list[Driver], timeout: float = 120) -> None:
    def step() -> bool:
        for driver in drivers:
            if not driver.ended:
                driver.step()
        return all(driver.ended for driver in drivers)

    until(step, timeout)


# Consumers that deliver nothing


def make_durable(url: str, stream: str, **config: Any) -> None:
    fits = {"ack_policy": "explicit", "ack_wait": 90 * 10**9, "max_ack_pending": 100_000}
    body = {"stream_name": stream, "config": {**fits, "durable_name": "d", **config}}
    api(url, f"CONSUMER.DURABLE.CREATE.{stream}.d", body)


def test_paused_durable_consumer_is_named_at_the_start_and_read_when_resumed(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))
    end = datetime.now(UTC) + timedelta(hours=1)
    make_durable(url, stream, pause_until=end.isoformat())

    with (
        caplog.at_level(logging.WARNING),
        Driver(source(url, stream, tail=True, durable="d")) as driver,
    ):
        assert "durable consumer d of stream" in caplog.text
        assert f"is paused until {end:%Y-%m-%dT%H:%M}" in caplog.text
        api(url, f"CONSUMER.PAUSE.{stream}.d", {})
        driver.until(lambda: len(driver.items) == 3)


def test_durable_consumer_paused_while_it_is_read_is_named_once(
    url: str, names: Names, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.by_durable, "QUIET_SECONDS", 0.1)
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    with (
        caplog.at_level(logging.WARNING),
        Driver(source(url, stream, tail=True, durable="d")) as driver,
    ):
        driver.until(lambda: len(driver.items) == 3)
        end = datetime.now(UTC) + timedelta(hours=1)
        api(url, f"CONSUMER.PAUSE.{stream}.d", {"pause_until": end.isoformat()})
        put(url, stream, numbered(stream, 3, first=4))
        driver.until(lambda: "is paused until" in caplog.text)
        api(url, f"CONSUMER.PAUSE.{stream}.d", {})
        driver.until(lambda: len(driver.items) == 6)

    assert caplog.text.count("is paused until") == 1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"priority_groups": ["fast"], "priority_policy": "overflow"},
            "it has the priority groups fast, and the source belongs to none",
        ),
        (
            {"priority_groups": ["fast"], "priority_policy": "pinned_client"},
            "it has the priority groups fast, and the source belongs to none",
        ),
        ({"max_waiting": 1}, "its max_waiting is 1, the source has 2 pull requests open"),
    ],
)
def test_durable_consumer_that_would_refuse_requests_is_refused_at_the_start(
    url: str, names: Names, config: dict[str, Any], reason: str
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    make_durable(url, stream, **config)

    with pytest.raises(SourceError) as caught:
        Driver(source(url, stream, durable="d"))

    assert reason in str(caught.value)
