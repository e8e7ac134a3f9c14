"""`SingleUseClient`: nats-py's client for one TCP connection, with our parser and our read loop.

nats-py connects, authenticates, encrypts and makes requests. We read from the socket, write to it
without nats-py's buffer, and find out whether the server is still there.

Only this module uses private fields of nats-py;
`tests/unit/jetstream/connection/test_nats_contract.py` fails when one is gone.
"""

import asyncio
import contextlib
import logging
from collections import deque
from typing import Any, Protocol, cast

from nats.aio.client import Client
from nats.errors import Error as NatsError

from .failures import words
from .parser import BulkReader, MessageHandler, Parser
from .unsent import unsent_bytes

__all__ = ["Owner", "SingleUseClient"]

log = logging.getLogger(__name__)

DISPOSE_SECONDS = 0.5
READ_SIZE = 128 * 1024
PING_INTERVAL = 2.0
"""Seconds between two looks at whether the server is still there."""
DEAD_INTERVALS = 3
"""After so many intervals without a sign of life the connection is given up."""


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
        self.advertised: list[str] = []
        """Addresses of the cluster's servers, from the last INFO alone: older ones may be gone."""
        self.inbox_denied: str | None = None
        """Why answers to requests cannot arrive: the server denied the subscription for them."""
        self._round_trips: deque[asyncio.Future[None]] = deque()
        self._reads = 0
        self._written = 0

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
        """Complete the oldest round trip; nobody may wait for it any more."""
        if self._round_trips:
            answered = self._round_trips.popleft()
            if not answered.done():
                answered.set_result(None)

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
        urls = info.get("connect_urls")
        self.advertised = [str(url) for url in urls] if isinstance(urls, list) else []
        # A server says the limit of its own in the first INFO, and that of the account or the user
        # in a second one.
        limit = info.get("max_payload")
        if type(limit) is int and limit > 0:
            self._max_payload = limit

    async def _process_op_err(self, e: Exception) -> None:
        self.lose(f"connection lost ({words(e)})")

    async def _read_loop(self) -> None:
        transport = self._transport
        assert transport is not None
        try:
            while data := await transport.read(READ_SIZE):
                self._reads += 1
                await self._ps.parse(data)
                self._owner.on_read()
            self.lose("the server closed the connection")
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, OSError | NatsError):
                log.exception("reading from NATS failed")
            self.lose(f"reading failed: {words(error)}")

    async def _ping_interval(self) -> None:
        """Give the connection up when nothing was read from it and no waiting byte left it for
        three intervals.

        A ping queues behind the data that was written before it, so on a slow link its answer may
        take long. As long as the peer takes what waits, it is alive. Bytes that were taken without
        having waited prove nothing: the buffers of a dead peer take some, too.
        """
        answered: asyncio.Future[None] | None = None
        silent = 0
        await asyncio.sleep(PING_INTERVAL)
        while silent < DEAD_INTERVALS:
            waiting = self._count_unsent(on_the_way=False)
            reads, left = self._reads, self._written - waiting
            if answered is None or answered.done():
                answered = self.round_trip()
            await asyncio.sleep(PING_INTERVAL)
            moved = waiting and self._written - self._count_unsent(on_the_way=False) > left
            silent = 0 if moved or self._reads > reads else silent + 1
        self.lose(
            f"nothing was read and no byte left for {DEAD_INTERVALS * PING_INTERVAL:g} s: "
            "stale connection"
        )

    # Called by the connection

    def round_trip(self) -> asyncio.Future[None]:
        """Done when the server has handled all that was written before; never if it is lost."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._round_trips.append(answered)
        self.raw_write(b"PING\r\n")
        return answered

    async def answered(self) -> None:
        """Return when the server has handled all that was written before.

        :raises NatsError: when the connection is lost first.
        """
        answered: asyncio.Future[Any] = self.round_trip()
        await asyncio.wait({answered, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise NatsError(self.lost.result())

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
        stream = self._stream()
        if stream.is_closing():  # uvloop raises then; either way the bytes would go nowhere
            self.lose("the connection was closed")
            return
        stream.write(data)
        self._written += len(data)

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
    def domain(self) -> str | None:
        """The JetStream domain of the server."""
        return self._server_info.get("domain")

    @property
    def is_clustered(self) -> bool:
        """Whether the server is one of a cluster."""
        return bool(self._server_info.get("cluster"))

    @property
    def server_id(self) -> str:
        """The server's own name for itself, another one after each of its starts."""
        return str(self._server_info.get("server_id", ""))

    @property
    def unsent_bytes(self) -> int:
        """How many written bytes the peer has not taken; 0 when there is no socket."""
        return self._count_unsent(on_the_way=True)

    def _count_unsent(self, *, on_the_way: bool) -> int:
        if not self._transport:
            return 0
        below = cast(Any, self._transport)._bare_io_writer.transport  # noqa: SLF001  # see the module
        return unsent_bytes(self._stream(), below, on_the_way=on_the_way)

    async def dispose(self) -> None:
        """End the client's tasks within half a second, whatever state it is in."""
        self.abort()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        with contextlib.suppress(Exception):  # nobody uses this client any more
            await asyncio.wait_for(self._close(Client.CLOSED, do_cbs=False), DISPOSE_SECONDS)
