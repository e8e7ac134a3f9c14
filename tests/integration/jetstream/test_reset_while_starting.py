"""A connection that is lost after it was made, while streams are made and checked."""

from collections.abc import Callable, Iterator

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.errors import ConnectError, StreamError
from bytewax_jetstream.jetstream.connection import connection
from bytewax_jetstream.jetstream.source.source import JetStreamSource
from bytewax_jetstream.settings import JetStreamSettings, StreamSettings
from bytewax_jetstream.testing import NatsServer
from bytewax_jetstream.testing.process import free_ports
from tests.support.lanes import jetstream, opened, publish
from tests.support.proxy import Proxy
from tests.support.reading import read
from tests.support.streams import FLAWLESS, Names, audit, envelopes

REQUESTS: dict[str, Callable[[bytes], bool]] = {
    "inbox": lambda frame: frame.startswith(b"SUB ") and b"_INBOX." in frame and b".*" not in frame,
    "look at the stream": lambda frame: b"STREAM.INFO" in frame,
    "create the stream": lambda frame: b"STREAM.CREATE" in frame,
    "list the streams": lambda frame: b"STREAM.LIST" in frame,
}
ANSWERS = {
    "not there": lambda frame: b"stream_info_response" in frame,
    "created": lambda frame: b"stream_create_response" in frame,
    "the list": lambda frame: b"stream_list_response" in frame,
}


@pytest.fixture
def proxy(nats_server: NatsServer) -> Iterator[Proxy]:
    with Proxy(nats_server.url) as proxy:
        yield proxy


def _settings(url: str, name: str, connect_timeout: float = 30) -> JetStreamSettings:
    declared = StreamSettings(name=name, subjects=(name,))
    return jetstream(url, streams=(declared,), topics=(name,), connect_timeout=connect_timeout)


@pytest.mark.parametrize(
    ("way", "cuts"),
    [("requests", cuts) for cuts in REQUESTS.values()]
    + [("answers", cuts) for cuts in ANSWERS.values()],
    ids=[*REQUESTS, *ANSWERS],
)
def test_reset_while_the_publisher_starts_is_retried(
    nats_server: NatsServer,
    proxy: Proxy,
    names: Names,
    way: str,
    cuts: Callable[[bytes], bool],
) -> None:
    name = names()
    direction = getattr(proxy, way)
    direction.cuts = cuts
    batch = envelopes(200, name)

    results = publish(_settings(proxy.url, name), *batch)

    assert direction.cut == 1
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert {result.duplicate for result in results.values()} <= {None, False}
    assert audit(nats_server.url, name, batch) == FLAWLESS


@pytest.mark.parametrize("cuts", [REQUESTS["create the stream"], REQUESTS["list the streams"]])
def test_reset_while_a_source_starts_is_retried(
    proxy: Proxy, names: Names, cuts: Callable[[bytes], bool]
) -> None:
    proxy.requests.cuts = cuts
    name = names()

    source = JetStreamSource(_settings(proxy.url, name), streams=name, tail=False)

    assert read(source) == []
    assert proxy.requests.cut == 1


def test_server_that_goes_away_while_the_publisher_starts_is_named_in_time(
    proxy: Proxy, names: Names
) -> None:
    (nobody,) = free_ports(1)

    def goes_away(frame: bytes) -> bool:
        if b"STREAM.INFO" not in frame:
            return False
        proxy.aim(f"nats://127.0.0.1:{nobody}")
        return True

    proxy.requests.cuts = goes_away
    with pytest.raises(ConnectError) as raised:
        publish(_settings(proxy.url, names(), connect_timeout=1))

    assert str(raised.value).startswith(f"the connection to {proxy.url} was lost while it was set")
    assert "was not answered within 1 s" in str(raised.value)
    assert raised.value.seconds == 1


def test_stream_that_is_too_weak_stops_the_start_at_once_on_the_next_connection(
    proxy: Proxy, names: Names
) -> None:
    name = names()
    with opened(_settings(proxy.url, name)):
        pass
    proxy.requests.cuts = REQUESTS["look at the stream"]
    stronger = StreamSettings(name=name, subjects=(name, f"{name}.more"))
    settings = jetstream(proxy.url, streams=(stronger,), connect_timeout=600)

    with pytest.raises(StreamError, match="weaker than the settings require"):
        publish(settings)
    assert proxy.requests.cut == 1


@pytest.mark.parametrize("reader", [False, True], ids=["publisher", "source"])
def test_question_that_nobody_answers_while_starting_is_asked_again(
    proxy: Proxy, names: Names, monkeypatch: pytest.MonkeyPatch, reader: bool
) -> None:
    """As after a restart of all servers, while they have no leader."""
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.2)
    name = names()

    def loses_three(frame: bytes) -> bool:
        return REQUESTS["list the streams"](frame) and proxy.requests.lost < 3

    proxy.requests.loses = loses_three
    if reader:
        source = JetStreamSource(_settings(proxy.url, name), streams=name, tail=False)
        assert read(source) == []
    else:
        publish(_settings(proxy.url, name), *envelopes(1, name))

    assert proxy.requests.lost == 3
