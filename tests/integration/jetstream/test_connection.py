"""Connections to real servers: other event loops, inbox prefixes, clusters behind certificates."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.errors import ConnectError
from bytewax_jetstream.jetstream.connection import Connection
from bytewax_jetstream.jetstream.source.source import JetStreamSource
from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.testing import NatsServer
from bytewax_jetstream.testing.process import free_ports
from tests.support.certificates import Certificates
from tests.support.lanes import broker_of, jetstream, opened, settle
from tests.support.nats_peer import until_true
from tests.support.proxy import Proxy
from tests.support.reading import Driver, settings
from tests.support.streams import FLAWLESS, api, audit, envelopes, make_stream
from tests.support.waiting import until
from tests.support.ways import both_ways, publish_by

# uvloop


@pytest.fixture
def on_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every event loop that is made is one of uvloop's."""
    monkeypatch.setattr(asyncio, "new_event_loop", uvloop.new_event_loop)


@pytest.mark.usefixtures("on_uvloop")
@pytest.mark.parametrize("batched", [False, True], ids=["singles", "batches"])
def test_uvloop_publishes_through_restarts_and_resets(batched: bool) -> None:
    with NatsServer() as server, Proxy(server.url) as proxy:
        make_stream(server.url, "UV", "uv.>", allow_batched=batched)
        batch = envelopes(3_000, "uv.x")
        with opened(jetstream(proxy.url)) as (pool, lane):
            settle(lane, batch[:1_000])
            lane.submit(batch[1_000:2_000])
            server.kill()
            lane.submit(batch[2_000:])
            server.start()
            results = lane.flush()
            proxy.cut_all()
            until(lambda: broker_of(pool)["reconnects"] == 2)
            settle(lane, envelopes(10, "uv.x", first=3_000))

        assert {result.outcome for result in results} == {Outcome.STORED}
        assert audit(server.url, "UV", envelopes(3_010, "uv.x")) == FLAWLESS


@pytest.mark.usefixtures("on_uvloop")
def test_uvloop_reads_through_a_reset(own_nats_server: NatsServer) -> None:
    make_stream(own_nats_server.url, "UV", "uv.>")
    with (
        Proxy(own_nats_server.url) as proxy,
        opened(jetstream(own_nats_server.url)) as (_, lane),
    ):
        settle(lane, envelopes(100, "uv.x"))
        with Driver(_source(settings(proxy.url), "UV")) as driver:
            driver.until(lambda: len(driver.items) == 100)
            proxy.cut_all()
            settle(lane, envelopes(100, "uv.x", first=100))
            driver.until(lambda: len(driver.items) == 200)
        assert driver.numbers == list(range(200))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_write_on_a_closed_transport_is_a_lost_connection(
    nats_server: NatsServer, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def test() -> None:
        used = Connection(
            JetStreamSettings(servers=(nats_server.url,)),
            on_up=lambda: None,
            on_down=lambda reason: None,
        )
        async with asyncio.timeout(20):
            await used.open()
            assert used._client is not None
            used._client.abort()
            try:
                used.write(b"PING\r\n")
                await asyncio.sleep(0)
                used.write(b"PING\r\n")
                assert used.unsent_bytes == 0
                await until_true(lambda: used.reconnects == 1)
            finally:
                await used.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(test())


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_unsent_bytes_are_what_a_paused_server_has_not_taken(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop], encrypted: bool
) -> None:
    certificates = Certificates(tmp_path / "paused")
    size = 20_000_000

    async def test(server: NatsServer) -> None:
        used = Connection(
            JetStreamSettings(
                servers=(server.url,), tls_ca_file=certificates.ca if encrypted else None
            ),
            on_up=lambda: None,
            on_down=lambda reason: None,
        )
        async with asyncio.timeout(60):
            await used.open()
            try:
                await until_true(lambda: used.unsent_bytes == 0)
                server.pause()
                used.write(b"UNSUB 0\r\n" * (size // 9))
                await until_true(lambda: used.unsent_bytes > 0.4 * size)
                assert used.unsent_bytes < 1.01 * size
                server.resume()
                await until_true(lambda: used.unsent_bytes == 0)
                assert used.reconnects == 0
            finally:
                await used.close()

    with (
        NatsServer(config=certificates.block() if encrypted else "") as server,
        asyncio.Runner(loop_factory=new_loop) as runner,
    ):
        runner.run(test(server))


# Inbox prefix


@pytest.fixture
def guarded() -> Iterator[NatsServer]:
    """A server with a user who may only subscribe to an inbox of its own."""
    users = """
        authorization { users: [
            { user: all, password: all }
            { user: own, password: own, permissions: { subscribe: ["_INBOX_own.>"] } }
        ]}
    """
    with NatsServer(config=users) as server:
        config = {"name": "GUARDED", "subjects": ["guarded.>"], "allow_batched": True}
        api(server.url, "STREAM.CREATE.GUARDED", config, user="all", password="all")
        yield server


OWN: dict[str, Any] = {"user": "own", "password": "own", "inbox_prefix": "_INBOX_own"}


@both_ways
def test_user_with_an_inbox_prefix_of_its_own_publishes(guarded: NatsServer, way: str) -> None:
    results = publish_by(way, jetstream(guarded.url, **OWN), envelopes(300, "guarded.x"))

    assert {result.outcome for result in results} == {Outcome.STORED}


@pytest.mark.parametrize("durable", [None, "READER"])
def test_user_with_an_inbox_prefix_of_its_own_reads(
    guarded: NatsServer, durable: str | None
) -> None:
    with opened(jetstream(guarded.url, **OWN)) as (_, lane):
        settle(lane, envelopes(50, "guarded.x"))
    with Driver(_source(settings(guarded.url, **OWN), "GUARDED", durable=durable)) as driver:
        driver.until(lambda: len(driver.items) == 50)

    assert driver.numbers == list(range(50))


@pytest.mark.parametrize("durable", [None, "READER"])
def test_reader_without_the_inbox_prefix_is_told_of_it_at_once(
    guarded: NatsServer, durable: str | None
) -> None:
    without = settings(guarded.url, user="own", password="own", connect_timeout=60)
    source = _source(without, "GUARDED", durable=durable)

    with pytest.raises(ConnectError, match="set inbox_prefix to a prefix that it may") as refused:
        Driver(source)
    assert "overloaded" not in str(refused.value)


def _source(of: JetStreamSettings, stream: str, **more: Any) -> JetStreamSource:
    return JetStreamSource(of, streams=(stream,), tail=True, **more)


# Clusters behind certificates


@pytest.mark.parametrize(
    "names", [("localhost",), ("localhost", "127.0.0.1")], ids=["host only", "host and address"]
)
def test_learnt_address_is_verified_against_the_name_that_was_given(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    certificates = Certificates(tmp_path / "cluster", *names)

    assert _reaches_the_second_server(certificates, "localhost")


@pytest.mark.parametrize("given", ["localhost", "127.0.0.1"])
def test_learnt_address_with_a_certificate_of_its_own_address_is_taken(
    tmp_path: Path, given: str
) -> None:
    first = Certificates(tmp_path / "cluster", given)
    second = first.another("127.0.0.1")

    assert _reaches_the_second_server(first, given, second)


def test_learnt_address_with_another_certificate_is_never_connected_to(tmp_path: Path) -> None:
    first = Certificates(tmp_path / "cluster", "localhost")
    second = first.another("elsewhere.example")

    assert not _reaches_the_second_server(first, "localhost", second, seconds=3)


def _reaches_the_second_server(
    certificates: Certificates, given: str, of_second: Path | None = None, seconds: float = 60
) -> bool:
    """Whether the second server of a cluster, whose address is learnt, is connected to."""
    one, other = free_ports(2)

    def server(name: str, port: int, certificate: Path) -> NatsServer:
        config = (
            f'cluster {{ name: c, listen: "127.0.0.1:{port}", '
            f'routes: ["nats-route://127.0.0.1:{one}", "nats-route://127.0.0.1:{other}"] }}\n'
            f'tls {{ cert_file: "{certificate}", key_file: "{certificate}" }}\n'
        )
        return NatsServer(name=name, config=config, jetstream=False)

    async def test(first: NatsServer, second: NatsServer) -> bool:
        used = Connection(
            JetStreamSettings(
                servers=(f"tls://{given}:{first.port}",), tls_ca_file=certificates.ca
            ),
            on_up=lambda: None,
            on_down=lambda reason: None,
        )
        async with asyncio.timeout(60):
            await used.open()
            client = used._client
            assert client is not None
            await until_true(lambda: any(str(second.port) in url for url in client.advertised))
            first.kill()
            await until_true(lambda: not used.is_up)
            try:
                async with asyncio.timeout(seconds):
                    await until_true(lambda: used.is_up)
                return str(second.port) in used._address.url
            except TimeoutError:
                return False
            finally:
                await used.close()

    with (
        server("one", one, certificates.server) as first,
        server("other", other, of_second or certificates.server) as second,
    ):
        return asyncio.run(test(first, second))
