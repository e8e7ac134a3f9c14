"""`SingleUseClient`: nats-py's client for one TCP connection, with our parser and our read loop.

nats-py connects, authenticates, encrypts, pings and makes requests. We read from the socket, and
write to it without nats-py's buffer.

Only this module uses private fields of nats-py;
`tests/unit/jetstream/connection/test_nats_contract.py` fails when one is gone.
"""

import asyncio
import contextlib
import logging
from typing import Any, Protocol, cast

from nats.aio.client import Client
from nats.errors import Error as NatsError

from .failures import words
from .parser import BulkReader, MessageHandler, Parser

__all__ = ["Owner", "SingleUseClient"]

log = logging.getLogger(__name__)

DISPOSE_SECONDS = 0.5
READ_SIZE = 128 * 1024


class Owner(Protocol):
    """The connection that uses a client; called on its event loop."""

    @property
    def take_bulk(self) -> BulkReader | None:
        """Handles frequent messages straight in the bytes that were read."""

    def on_read(self) -> None:
        """The messages of one read were handled."""

    def permission_denied(self, message: str) -> None:
        """The server denied a publish or a subscription; the connection stays up."""


class SingleUseClient(Client):
    """nats-py's client, used for one TCP connection and then thrown away."""

    def __init__(self, owner: Owner, wants_tls: bool) -> None:
        super().__init__()
        self._ps = cast(Any, Parser(self))
        self._owner = owner
        self._wants_tls = wants_tls
        self.handlers: dict[int, MessageHandler] = {}
        self.take_bulk = owner.take_bulk
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def lose(self, reason: str) -> None:
        """Tell the connection, which waits for `lost`, to replace this client."""
        if not self.lost.done():
            self.lost.set_result(reason)

    # Called by the parser

    async def on_message(
        self, sid: int, subject: bytes, reply: bytes, payload: bytes, header: bytes | None
    ) -> None:
        """Hand a message of one of nats-py's own subscriptions to nats-py."""
        await self._process_msg(sid, subject, reply, payload, cast(bytes, header))

    async def on_ping(self) -> None:
        """Answer the server's ping."""
        await self._process_ping()

    async def on_pong(self) -> None:
        """Complete the oldest flush that waits for this pong."""
        await self._process_pong()

    async def on_info(self, info: dict[str, Any]) -> None:
        """Take over what the server says of itself and its cluster."""
        await self._process_info(info)

    async def on_error(self, message: str) -> None:
        """Report a denial to the owner; any other error ends this client."""
        if "permissions violation" in message.lower():
            self._owner.permission_denied(message)
        else:
            self.lose(f"the server said: {message}")

    # Called by nats-py

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # Called before CONNECT sends the credentials, which must never go over a plain connection.
        if initial_connection and self._wants_tls and not self.options["tls_handshake_first"]:
            if not info.get("tls_required") and not info.get("tls_available"):
                raise NatsError("nats: the server does not offer TLS, which the settings require")
            self._server_info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def _process_op_err(self, e: Exception) -> None:
        self.lose(f"connection lost ({words(e)})")

    async def _read_loop(self) -> None:
        transport = self._transport
        assert transport is not None
        try:
            while data := await transport.read(READ_SIZE):
                await self._ps.parse(data)
                self._owner.on_read()
            self.lose("the server closed the connection")
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, OSError | NatsError):
                log.exception("reading from NATS failed")
            self.lose(f"reading failed: {words(error)}")

    # Called by the connection

    def raw_subscribe(self, subject: str, handler: MessageHandler) -> int:
        """Subscribe; SUB is on the wire before anything that is written later."""
        self._sid += 1
        self.handlers[self._sid] = handler
        self.raw_write(b"SUB %s  %d\r\n" % (subject.encode(), self._sid))
        return self._sid

    def raw_unsubscribe(self, sid: int) -> None:
        """End a subscription; its messages that are on their way are dropped."""
        if self.handlers.pop(sid, None) is not None:
            self.raw_write(b"UNSUB %d\r\n" % sid)

    def raw_write(self, data: bytes) -> None:
        """Write straight to the socket: nats-py's buffer would send it again after a reconnect."""
        self._stream().write(data)

    def reader_is_dead(self) -> bool:
        """Whether nobody reads from the socket."""
        return self._reading_task is None or self._reading_task.done()

    def abort(self) -> None:
        """Close the socket and drop unsent bytes, which a stalled server would never read."""
        if self._transport is not None and getattr(self._transport, "_io_writer", None) is not None:
            self._stream().abort()

    def _stream(self) -> asyncio.WriteTransport:
        private = cast(Any, self._transport)._io_writer.transport  # noqa: SLF001  # see the module
        return cast(asyncio.WriteTransport, private)

    @property
    def is_clustered(self) -> bool:
        """Whether the server is one of a cluster."""
        return bool(self._server_info.get("cluster"))

    def known_servers(self) -> list[str]:
        """URLs of the servers given and of those the cluster has told of."""
        return [server.uri.geturl() for server in self._server_pool]

    async def dispose(self) -> None:
        """End the client's tasks within half a second, whatever state it is in."""
        self.abort()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        with contextlib.suppress(Exception):  # nobody uses this client any more
            await asyncio.wait_for(self._close(Client.CLOSED, do_cbs=False), DISPOSE_SECONDS)
