"""Reading by sequence stops with one clear error when it cannot go on."""

import logging
import time
from datetime import datetime, timedelta
from typing import Any

import pytest

import bytewax_jetstream.jetstream.source.reader
from bytewax_jetstream.errors import ConnectError, JetStreamPipelineError, SourceError, StreamError
from bytewax_jetstream.jetstream.source.source import JetStreamSource
from bytewax_jetstream.testing import NatsServer
from tests.support.reading import AMY, Driver, feed_of, numbered, put, settings, source, write
from tests.support.streams import Names, api, make_stream


def failure(made: JetStreamSource, state: Any = None) -> JetStreamPipelineError:
    with pytest.raises(JetStreamPipelineError) as caught:
        Driver(made, state=state)
    return caught.value


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
def test_work_queue_or_interest_stream_needs_a_durable_consumer(
    url: str, names: Names, retention: str
) -> None:
    stream = names()
    make_stream(url, stream, stream, retention=retention)

    assert str(failure(source(url, stream))) == (
        f"stream {stream} has {retention} retention, which removes what its consumers acknowledge, "
        "and reading by sequence acknowledges nothing: name a consumer with durable="
    )


def test_missing_stream_is_one_clear_error(url: str, names: Names) -> None:
    error = failure(source(url, "NOWHERE"))

    assert isinstance(error, StreamError)
    assert str(error) == "stream NOWHERE is missing: create it, then start the flow again"
    assert (error.stream, error.code) == ("NOWHERE", 10059)


def test_unreachable_server_is_one_clear_error() -> None:
    with NatsServer() as server:
        url = server.url
    error = failure(JetStreamSource(settings(url, connect_timeout=0.3), streams="S"))

    assert isinstance(error, ConnectError)
    assert str(error).endswith("check that the server is running there")
    assert (error.broker, error.servers, error.seconds) == ("jetstream", (url,), 0.3)


def test_server_without_jetstream_is_one_clear_error() -> None:
    with NatsServer(jetstream=False) as server:
        error = failure(source(server.url, "S"))

    assert str(error).startswith("nothing answers $JS.API.STREAM.INFO.S: enable JetStream")


@pytest.mark.parametrize(
    ("denied", "what"),
    [
        ("$JS.API.CONSUMER.MSG.NEXT.>", "CONSUMER.MSG.NEXT.S."),
        ("$JS.API.CONSUMER.CREATE.>", "CONSUMER.CREATE.S."),
    ],
)
def test_missing_permission_is_named(denied: str, what: str) -> None:
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


def test_stream_recreated_since_the_last_run_is_refused(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    assert isinstance(failure(source(url, stream), state=10), SourceError)
    with Driver(source(url, stream), state=4) as driver:
        driver.to_end()
    assert not driver.items


def test_stream_recreated_while_reading_ends_the_run(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    with Driver(source(url, stream, tail=True)) as driver:
        driver.until(lambda: len(driver.items) == 3)
        api(url, f"STREAM.DELETE.{stream}")
        make_stream(url, stream, stream)
        put(url, stream, numbered(stream, 5))
        with pytest.raises(
            SourceError, match="was read to sequence 3 and now ends at 5, or was created again"
        ):
            driver.until(lambda: False)
    assert driver.numbers == [1, 2, 3]


def test_stream_deleted_while_reading_ends_the_run_within_the_deadline(
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
            SourceError, match=f"stream {stream} is missing: create it, then start the flow again"
        ):
            driver.until(lambda: False)


def test_server_that_stays_away_ends_the_run_within_the_deadline(
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


def test_state_of_the_other_kind_of_source_is_refused(url: str, names: Names) -> None:
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

    error = failure(source(url, stream), state=("sequence", 3, 3))

    assert isinstance(error, SourceError)
    assert "step flow.in found recovery state of version 3" in str(error)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"streams": ()}, "at least one"),
        ({"streams": ("S", "S")}, "each once"),
        ({"streams": "a.b"}, "not a valid name of a stream or consumer"),
        ({"durable": "a b"}, "not a valid name of a stream or consumer"),
        ({"subjects": "a..b"}, "not a valid subject"),
        ({"subjects": "a.>.b"}, "not a valid subject"),
        ({"subjects": ["a.*", "a.b"]}, "overlap"),
        ({"subjects": ["a.*", "*.b"]}, "overlap"),
        ({"subjects": ["a.>", "a.b.c"]}, "overlap"),
        ({"start": 0}, "invalid start"),
        ({"start": True}, "invalid start"),
        ({"start": "last"}, "invalid start"),
        ({"start": datetime(2026, 1, 1)}, "no time zone"),  # noqa: DTZ001  # that is what is wrong with it
        ({"batch_size": 0}, "positive"),
        ({"ack_wait": timedelta(0)}, "positive"),
    ],
)
def test_invalid_arguments_are_refused_at_once(arguments: dict[str, Any], reason: str) -> None:
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
    assert "ignored a malformed message" in caplog.text
