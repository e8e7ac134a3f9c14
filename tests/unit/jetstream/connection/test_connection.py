"""A connection to a peer that does what a server may do: limits, losses, silence, addresses."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bytewax_jetstream.errors import ConnectError
from bytewax_jetstream.jetstream.connection import Connection, client, connection
from bytewax_jetstream.settings import JetStreamSettings
from tests.support.nats_peer import Peer, until_true

NOBODY = "127.0.0.1:1"
"""An address on which nobody listens."""


@asynccontextmanager
async def connected(
    *peers: Peer, on_up: Callable[[], None] = lambda: None, **settings: Any
) -> AsyncIterator[Connection]:
    """A connection to one of these peers."""
    servers = tuple(peer.url for peer in peers)
    settings = {"connect_timeout": 60, **settings}
    used = Connection(
        JetStreamSettings(servers=servers, **settings), on_up=on_up, on_down=lambda reason: None
    )
    async with asyncio.timeout(30):
        await used.open()
        try:
            yield used
        finally:
            await used.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]  # a coroutine function


# Limits


def test_payload_limit_of_each_info_counts_and_is_kept_over_a_loss() -> None:
    async def test() -> None:
        async with Peer() as peer, connected(peer) as used:
            assert used.max_payload == 4096
            peer.send_info(max_payload=500)
            await until_true(lambda: used.max_payload == 500)
            await peer.__aexit__()
            await until_true(lambda: not used.is_up)

            assert used.max_payload == 500

    run(test)


def test_limit_of_the_user_is_known_before_the_connection_is_up() -> None:
    seen: list[int] = []

    async def test() -> None:
        async with Peer(user_limit=77) as peer, connected(peer) as used:
            seen.append(used.max_payload)
            used._on_up = lambda: seen.append(used.max_payload)
            peer.hang_up()
            await until_true(lambda: len(seen) == 2)

    run(test)
    assert seen == [77, 77]


# Losses


QUESTIONS = {
    "subscribe": lambda used: used.subscribe("s", lambda *message: None),
    "drain": lambda used: used.drain("kept"),
    "request": lambda used: used.request("INFO"),
    "request with a deadline": lambda used: used.request("INFO", seconds=60),
    "ask": lambda used: used.ask("topic", {"Nats-Msg-Id": "1"}, 60),
}


@pytest.mark.parametrize("how", ["hangs up", "connection is closed"])
@pytest.mark.parametrize("asking", QUESTIONS)
def test_loss_of_the_connection_while_asking_is_noticed_at_once(asking: str, how: str) -> None:
    async def test() -> None:
        async with Peer() as peer, connected(peer) as used:
            await used.subscribe("kept", lambda *message: None)
            peer.pong = False
            began = time.monotonic()
            asked = asyncio.ensure_future(QUESTIONS[asking](used))
            await until_true(lambda: b"PUB" in peer.received or peer.received.count(b"SUB") > 1)
            if how == "hangs up":
                peer.hang_up()
            else:
                await used.close()
            with pytest.raises(ConnectError, match="the connection was lost before the server"):
                await asked
            assert time.monotonic() - began < 4

    run(test)


def test_subscription_denied_for_answers_is_told_to_each_request() -> None:
    async def test() -> None:
        async with Peer() as peer, connected(peer) as used:
            first = asyncio.ensure_future(used.request("ONE", seconds=60))
            await peer.until_received(b"PUB $JS.API.ONE ")
            inbox = bytes(peer.received).split(b"SUB ")[1].split()[0].decode()
            peer.send(
                b"-ERR 'Permissions Violation for Subscription to \"%s\"'\r\n" % inbox.encode()
            )
            for asked in (first, used.request("TWO", seconds=60)):
                with pytest.raises(ConnectError, match=r"_INBOX\.>, or set inbox_prefix") as denied:
                    await asked
                assert "overloaded" not in str(denied.value)

    run(test)


def test_denial_of_something_else_does_not_fail_a_subscription() -> None:
    async def test() -> None:
        def answer(data: bytes) -> bool:
            if data.startswith(b"SUB s "):
                peer.send(b"-ERR 'Permissions Violation for Publish to \"other\"'\r\n")
            return True

        peer = Peer(on_data=answer)
        async with peer, connected(peer) as used:
            await used.subscribe("s", lambda *message: None)

    run(test)


# Pauses


@pytest.mark.parametrize("useful", [False, True])
def test_connections_on_which_nothing_is_acknowledged_come_ever_more_slowly(useful: bool) -> None:
    async def test() -> None:
        async with Peer(on_data=lambda data: b"POISON" not in data) as peer:

            def send() -> None:
                used.proved_useful = useful
                used.write(b"POISON\r\n")

            async with connected(peer) as used:
                used._on_up = send
                send()
                if useful:
                    await until_true(lambda: peer.connections > 30)
                else:
                    await asyncio.sleep(2)  # a storm would have made hundreds meanwhile
                    assert 3 < peer.connections < 12

    run(test)


def test_steady_connection_is_replaced_at_once_though_nothing_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "STEADY_SECONDS", 0.01)

    async def test() -> None:
        async with Peer() as peer, connected(peer) as used:
            for _ in range(15):
                await asyncio.sleep(0.02)
                peer.hang_up()
                await until_true(lambda: not used.is_up)
                await until_true(lambda: used.is_up)
            assert used._pause == connection.FIRST_PAUSE

    run(test)


# Silence


def test_peer_that_takes_bytes_slowly_and_answers_nothing_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "PING_INTERVAL", 0.1)

    async def test() -> None:
        def take_slowly(data: bytes) -> bool:
            if len(peer.received) > 10_000:
                peer.reading.clear()
                asyncio.get_running_loop().call_later(0.01, peer.reading.set)
            return True

        peer = Peer(on_data=take_slowly)
        async with peer, connected(peer) as used:
            used.write(bytes(20_000_000))
            began, least = time.monotonic(), used.unsent_bytes
            while time.monotonic() - began < 1.5:
                await asyncio.sleep(0.05)
                least = min(least, used.unsent_bytes)
            assert 0 < least < 20_000_000
            assert used.is_up
            assert used.reconnects == 0

    run(test)


@pytest.mark.parametrize("backlog", [0, 20_000_000])
def test_peer_that_neither_takes_nor_sends_is_given_up(
    monkeypatch: pytest.MonkeyPatch, backlog: int
) -> None:
    monkeypatch.setattr(client, "PING_INTERVAL", 0.1)

    async def test() -> None:
        async with Peer() as peer, connected(peer) as used:
            peer.reading.clear()
            used.write(bytes(backlog))
            await until_true(lambda: not used.is_up)

    run(test)


def test_peer_whose_buffers_still_take_what_is_sent_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "PING_INTERVAL", 0.1)

    async def test() -> None:
        async with Peer() as peer, connected(peer) as used:
            peer.reading.clear()
            while used.is_up:
                used.write(b"PUB again 0\r\n\r\n")
                await asyncio.sleep(0.02)

    run(test)


# Bytes that the peer has not taken


def test_unsent_bytes_are_those_that_the_peer_has_not_taken() -> None:
    async def test() -> None:
        async with Peer() as peer, connected(peer) as used:
            await until_true(lambda: used.unsent_bytes == 0)
            peer.reading.clear()
            used.write(bytes(10_000_000))
            assert 0 < used.unsent_bytes <= 10_000_000
            waiting = used.unsent_bytes
            used.write(bytes(1_000_000))
            assert waiting < used.unsent_bytes <= waiting + 1_000_000  # the kernel takes some still

            peer.reading.set()
            await until_true(lambda: used.unsent_bytes == 0)
            peer.hang_up()
            await until_true(lambda: not used.is_up)
            assert used.unsent_bytes == 0

    run(test)


# Addresses


def test_servers_of_earlier_infos_are_forgotten_and_the_configured_one_comes_first() -> None:
    async def test() -> None:
        async with Peer() as peer, connected(peer) as used:
            for port in range(10_000, 10_014):
                peer.send_info(connect_urls=[f"127.0.0.2:{port}"])
            peer.send_info(connect_urls=[NOBODY, peer.url.removeprefix("nats://")])
            peer.hang_up()
            await until_true(lambda: used.reconnects == 1)

            assert [each.url for each in used._addresses.in_order()] == [
                peer.url,
                f"nats://{NOBODY}",
            ]

    run(test)


def test_server_that_accepts_and_says_nothing_does_not_keep_us_from_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.sample", lambda kind, count: list(kind))

    async def test() -> None:
        async with Peer(mute=True) as mute, Peer() as peer, connected(mute, peer):
            assert mute.connections == 1
            assert peer.connections == 1

    run(test)
