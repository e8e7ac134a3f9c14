"""What `jetstream/connection/client.py` assumes of nats-py's private parts, each tested alone.

When one of these fails after an upgrade of nats-py, read the code it names before anything else:
the connection would otherwise lose messages, hang, or talk in clear where it must not."""

import ast
import asyncio
import inspect
import ssl
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from bytewax_jetstream.jetstream.connection import Connection, client, connecting
from bytewax_jetstream.jetstream.connection.client import SingleUseClient
from bytewax_jetstream.settings import JetStreamSettings
from tests.support.nats_peer import Peer, until_true

NATS = f"nats-py {version('nats-py')}"

FIELDS = {
    "_max_payload": "the limit that nats-py checks requests against, and `max_payload` returns",
    "_flusher_task": "a task, so that it can be cancelled when the connection is thrown away",
    "_ping_interval_task": "a task, so that it can be cancelled when the connection is thrown away",
    "_ps": "the parser the read loop feeds; ours replaces it",
    "_reading_task": "the task that runs `_read_loop`; when it is done, nobody reads",
    "_server_info": "the INFO that decides on TLS, set before `_process_info` is called",
    "_sid": "the number of the last subscription",
    "_transport": "the socket, from the beginning of an attempt to connect",
}
METHODS = {
    "_close": ["status", "do_cbs"],
    "_process_info": ["info", "initial_connection"],
    "_process_msg": ["sid", "subject", "reply", "data", "headers"],
    "_process_op_err": ["e"],
    "_ping_interval": [],
    "_process_ping": [],
    "_read_loop": [],
}
OF_THE_TRANSPORT = {"_io_writer", "_bare_io_writer"}
OUR_OWN = {"_count_unsent", "_owner", "_wants_tls", "_stream", "_round_trips", "_reads", "_written"}


def _touched() -> set[str]:
    """The private names our client uses, from its source."""
    ours = ast.parse(inspect.getsource(client.SingleUseClient))
    names = {node.attr for node in ast.walk(ours) if isinstance(node, ast.Attribute)}
    names |= {
        node.name
        for node in ast.walk(ours)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    names |= {
        "_io_writer"
        for node in ast.walk(ours)
        if isinstance(node, ast.Constant) and node.value == "_io_writer"
    }
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


class Denials:
    """What a client tells its owner."""

    take_bulk = None

    def __init__(self) -> None:
        self.denied: list[str] = []
        self.reads = 0

    def permission_denied(self, message: str) -> None:
        self.denied.append(message)

    def on_read(self) -> None:
        self.reads += 1


def _client(
    wants_tls: bool = False, kind: type[SingleUseClient] = SingleUseClient
) -> SingleUseClient:
    return kind(Denials(), wants_tls)


def _with_client(
    use: Callable[[Peer, SingleUseClient], Awaitable[None]],
    *,
    kind: type[SingleUseClient] = SingleUseClient,
    **options: Any,
) -> None:
    """Connect our client to a server, use it, and discard it."""

    async def run() -> None:
        async with Peer() as server, asyncio.timeout(10):
            client = _client(kind=kind)
            try:
                await client.connect(
                    f"nats://127.0.0.1:{server.port}", allow_reconnect=False, **options
                )
                await use(server, client)
            finally:
                await client.dispose()

    asyncio.run(run())


def test_every_private_name_that_is_used_is_tested_here() -> None:
    known = {*FIELDS, *METHODS, *OF_THE_TRANSPORT, *OUR_OWN}

    assert _touched() == known, (
        "jetstream/connection/client.py touches other private parts of nats-py than are tried here"
    )


@pytest.mark.parametrize(("field", "meaning"), FIELDS.items())
def test_nats_py_has_the_field(field: str, meaning: str) -> None:
    assert field in vars(Client()), f"{NATS} has no Client.{field} any more: it was {meaning}"


@pytest.mark.parametrize(("method", "parameters"), METHODS.items())
def test_nats_py_has_the_method_with_the_same_parameters(
    method: str, parameters: list[str]
) -> None:
    found = getattr(Client, method, None)

    assert inspect.iscoroutinefunction(found), f"{NATS} has no coroutine Client.{method} any more"
    names = list(inspect.signature(found).parameters)[1:]
    assert names == parameters, f"{NATS}: Client.{method} takes {names}, we give it {parameters}"


@pytest.mark.parametrize("name", sorted(OUR_OWN))
def test_our_own_fields_hide_none_of_nats_pys(name: str) -> None:
    assert not hasattr(Client(), name), (
        f"{NATS} has a Client.{name} of its own: rename ours in SingleUseClient"
    )


def test_connect_takes_every_option_we_give() -> None:
    tree = ast.parse(inspect.getsource(connecting))
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "connect"
    )
    given = {keyword.arg for keyword in call.keywords if keyword.arg}
    given |= {
        "user",
        "password",
        "token",
        "nkeys_seed_str",
        "user_credentials",
        "tls",
        "tls_hostname",
    }
    taken = set(inspect.signature(Client.connect).parameters)

    assert given <= taken, f"{NATS}: Client.connect does not take {given - taken} any more"


def test_server_info_is_checked_before_the_credentials_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[bytes] = []
    write = TcpTransport.write

    def written_down(self: TcpTransport, data: bytes) -> Any:
        written.append(data)
        return write(self, data)  # type: ignore[no-untyped-call]  # it has no types

    monkeypatch.setattr(TcpTransport, "write", written_down)

    class Looking(SingleUseClient):
        async def _process_info(
            self, info: dict[str, Any], initial_connection: bool = False
        ) -> None:
            assert initial_connection, f"{NATS} does not say any more that it is the first INFO"
            assert self._server_info is info, f"{NATS} sets _server_info after _process_info"
            assert not written, (
                f"{NATS} sends CONNECT before it calls _process_info: a password may go in clear"
            )
            written.append(b"looked")
            await super()._process_info(info, initial_connection)

    async def use(server: Peer, client: SingleUseClient) -> None:
        assert written[0] == b"looked"
        assert b"secret" in written[1], (
            f"{NATS} does not write CONNECT through its transport any more"
        )

    _with_client(use, kind=Looking, user="bob", password="secret")


def test_a_server_without_tls_never_sees_the_credentials() -> None:
    async def run() -> None:
        async with Peer() as server, asyncio.timeout(10):
            client = _client(wants_tls=True)
            with pytest.raises(NatsError, match="does not offer TLS"):
                await client.connect(
                    f"tls://127.0.0.1:{server.port}",
                    user="bob",
                    password="secret",
                    tls=ssl.create_default_context(),
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                )
            await client.dispose()
            assert server.received == b"", f"{NATS} wrote to a server that offers no TLS"

    asyncio.run(run())


def test_tls_is_started_with_a_server_that_only_offers_it() -> None:
    async def run() -> None:
        async with (
            Peer(tls_available=True) as server,
            asyncio.timeout(10),
        ):
            client = _client(wants_tls=True)
            connecting = asyncio.ensure_future(
                client.connect(
                    f"tls://localhost:{server.port}",
                    tls=ssl.create_default_context(),
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                )
            )
            await server.until_received(b"\x16\x03")
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await client.dispose()
            assert server.received[:2] == b"\x16\x03", (
                f"{NATS} does not begin a TLS handshake: _server_info is not read"
            )

    asyncio.run(run())


def test_a_connected_client_has_its_tasks_and_reads_with_our_parser() -> None:
    async def use(server: Peer, client: SingleUseClient) -> None:
        tasks = {
            name: getattr(client, name)
            for name in ("_reading_task", "_ping_interval_task", "_flusher_task")
        }
        for name, task in tasks.items():
            assert isinstance(task, asyncio.Task), f"{NATS}: Client.{name} is no task"
            assert not task.done(), f"{NATS}: Client.{name} is done after connecting"
        assert tasks["_reading_task"].get_coro().__name__ == "_read_loop"
        assert type(client._ps).__module__ == "bytewax_jetstream.jetstream.connection.parser", (
            f"{NATS} made a parser of its own"
        )
        assert not client.reader_is_dead()
        assert client.max_payload == 4096

        server.send(b"-ERR 'Permissions Violation for Publish to \"Orders\"'\r\n")
        owner: Any = client._owner
        await until_true(lambda: owner.reads)
        assert owner.denied == ['Permissions Violation for Publish to "Orders"']
        assert not client.lost.done()

    _with_client(use)


def test_bytes_written_past_the_buffer_reach_the_server_in_order() -> None:
    async def use(server: Peer, client: SingleUseClient) -> None:
        assert isinstance(client._transport, TcpTransport), (
            f"{NATS} has another transport than TcpTransport"
        )
        assert isinstance(client._stream(), asyncio.WriteTransport), (
            f"{NATS}: _io_writer is no StreamWriter any more"
        )
        client.raw_write(b"PUB a 1\r\nx\r\n")
        client.raw_write(b"PUB b 1\r\ny\r\n")
        await server.until_received(b"PUB a 1\r\nx\r\nPUB b 1\r\ny\r\n")

    _with_client(use)


def test_subscriptions_of_both_kinds_never_share_a_number() -> None:
    async def use(server: Peer, client: SingleUseClient) -> None:
        ours = client.raw_subscribe("ours", lambda *message: None)
        theirs = await client.subscribe("theirs")
        ours_again = client.raw_subscribe("ours.too", lambda *message: None)
        await server.until_received(b"SUB ours.too  %d\r\n" % ours_again)

        assert len({ours, theirs._id, ours_again}) == 3, (
            f"{NATS} does not count subscriptions in _sid any more"
        )
        assert b"SUB theirs  %d\r\n" % theirs._id in server.received

    _with_client(use)


def test_messages_without_a_handler_are_left_to_nats_py() -> None:
    async def use(server: Peer, client: SingleUseClient) -> None:
        asked = asyncio.ensure_future(client.request("api", b"?", timeout=5))
        await server.until_received(b"PUB api ")
        line = bytes(server.received).split(b"PUB api ")[1].split(b"\r\n")[0]
        inbox, sid = line.split(b" ")[0], client._sid
        server.send(b"HMSG %s %d 24 27\r\nNATS/1.0\r\nTrace: yes\r\n\r\n!?!\r\n" % (inbox, sid))
        answer = await asked

        assert answer.data == b"!?!", f"{NATS}: _process_msg takes its arguments in another order"
        assert answer.headers == {"Trace": "yes"}

        asked = asyncio.ensure_future(client.request("nobody", b"?", timeout=5))
        await server.until_received(b"PUB nobody ")
        inbox = bytes(server.received).split(b"PUB nobody ")[1].split(b" ")[0]
        server.send(b"HMSG %s %d 16 16\r\nNATS/1.0 503\r\n\r\n\r\n" % (inbox, sid))
        with pytest.raises(NoRespondersError):
            await asked

    _with_client(use)


def test_pings_of_both_sides_are_answered() -> None:
    async def use(server: Peer, client: SingleUseClient) -> None:
        server.send(b"PING\r\n")
        await server.until_received(b"PONG\r\n")
        await client.answered()

    _with_client(use)


def test_silent_server_is_reported_and_nats_py_does_not_reconnect_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "PING_INTERVAL", 0.05)

    async def use(server: Peer, client: SingleUseClient) -> None:
        server.pong = False
        reason = await client.lost

        assert "stale connection" in reason, f"{NATS} does not run _ping_interval"
        assert client._reconnection_task is None, f"{NATS} reconnects by itself"

    _with_client(use)


def test_a_server_that_hangs_up_is_reported() -> None:
    async def use(server: Peer, client: SingleUseClient) -> None:
        server.hang_up()
        reason = await client.lost

        assert reason == "the server closed the connection"

    _with_client(use)


def test_each_info_of_a_server_is_passed_on() -> None:
    async def use(server: Peer, client: SingleUseClient) -> None:
        server.send(b'INFO {"connect_urls":["10.1.2.3:4222"],"max_payload":100}\r\n')
        await until_true(lambda: client.advertised == ["10.1.2.3:4222"])

        assert client.max_payload == 100, f"{NATS} does not keep the limit in _max_payload"

    _with_client(use)


def test_discarded_client_leaves_no_task_and_sends_nothing_more() -> None:
    async def use(server: Peer, client: SingleUseClient) -> None:
        await client.publish("buffered", b"x")
        tasks = [client._reading_task, client._ping_interval_task, client._flusher_task]
        await client.dispose()
        await asyncio.sleep(0)

        assert all(task is not None and task.done() for task in tasks), (
            f"{NATS}: a task outlives its connection"
        )
        assert client.is_closed
        assert client._stream().is_closing()

    _with_client(use)


def test_unfinished_connection_attempt_can_be_discarded() -> None:
    async def run() -> None:
        async with asyncio.timeout(10):
            await _client().dispose()

            async with Peer(pong=False) as server:
                client = _client()
                connecting = asyncio.ensure_future(
                    client.connect(f"nats://127.0.0.1:{server.port}")
                )
                await server.until_received(b"PING\r\n")
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)
                assert client._transport is not None, (
                    f"{NATS} keeps no transport of an attempt: it cannot be aborted"
                )
                await client.dispose()
                assert client._stream().is_closing()

    asyncio.run(run())


def test_connection_uses_what_is_tested_here() -> None:
    """The tests above stand on `SingleUseClient`; this one ties it to what the package uses."""

    async def run() -> None:
        ups: list[str] = []
        async with Peer() as server, asyncio.timeout(10):
            settings = JetStreamSettings(servers=(f"nats://127.0.0.1:{server.port}",))
            used = Connection(settings, on_up=lambda: ups.append("up"), on_down=ups.append)
            await used.open()
            assert type(used._client) is SingleUseClient
            assert used.new_inbox().startswith("_INBOX.")
            await used.close()
        assert ups == ["up"]

    asyncio.run(run())
