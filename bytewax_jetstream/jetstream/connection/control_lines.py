"""`ControlLines`: the longest protocol line that each server takes.

A server does not say its `max_control_line`. It closes a connection on which a longer line comes,
and all that was in flight is lost, whosever line it was. So the limit is measured: on connections
of its own, with lines that no server acts on (the end of a subscription that is not there), each
longer than the one before and followed by a ping.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from nats.errors import Error as NatsError

from .client import SingleUseClient

__all__ = ["DEFAULT_CONTROL_LINE", "ControlLines"]

DEFAULT_CONTROL_LINE = 4096
"""The server's own default. What we publish is never longer; see `MAX_TOPIC` in the encoding."""
STEPS = (256, 16, 1)
"""At most 16 lines for each, and one connection that the server closes."""
MEASURE_SECONDS = 20.0
SUSPICIOUS = 2
TOO_LONG = "maximum control line"
"""How the server's error begins."""


class _Server:
    limit: int | None = None
    last_met = 0.0


class ControlLines:
    """What is known of the servers that were met lately, by their ids.

    :arg memory: Seconds after which a server that was lost cannot have a part any more in what
        becomes of a message.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._servers: dict[str, _Server] = {}
        self._suspected = False
        self._useless = 0
        """Connections lost one after the other on which nothing was acknowledged."""

    def limit(self, server_id: str) -> int:
        """Most bytes of a line behind its first word, as far as is known."""
        server = self._servers.get(server_id)
        return (server and server.limit) or DEFAULT_CONTROL_LINE

    def none_takes(self, size: int) -> bool:
        """Whether each server that was met lately refuses a line of that size."""
        return all(server.limit and size > server.limit for server in self._servers.values())

    def met(self, server_id: str) -> None:
        """There is a connection to a server."""
        server = self._servers.pop(server_id, None) or _Server()
        oldest = time.monotonic() - self._memory
        self._servers = {
            each: known for each, known in self._servers.items() if known.last_met > oldest
        }
        self._servers[server_id] = server

    def lost(self, server_id: str, reason: str, *, useful: bool) -> None:
        """A connection was lost; perhaps for a line that was too long.

        The server says so before it closes the connection, but a client that is still writing often
        sees the end only. So the second loss in a row is suspicious, too.

        :arg useful: Whether something was acknowledged on it.
        """
        server = self._servers[server_id]
        server.last_met = time.monotonic()
        self._useless = 0 if useful else self._useless + 1
        if TOO_LONG in reason.lower() or (self._useless >= SUSPICIOUS and server.limit is None):
            self._suspected = True

    async def measure(self, connect: Callable[[], Awaitable[SingleUseClient]]) -> None:
        """Find out the limit of the server that is connected to, if there is a suspicion.

        :arg connect: Makes a connection to measure on.
        :raises Exception: of many types, when there is no connection.
        """
        if not self._suspected:
            return
        fits, server_id = 0, ""
        async with asyncio.timeout(MEASURE_SECONDS):
            for step in STEPS:
                client = await connect()
                try:
                    if server_id not in ("", client.server_id):
                        raise NatsError("another server answers")
                    server_id = client.server_id
                    while fits < DEFAULT_CONTROL_LINE and await _takes(client, fits + step):
                        fits += step
                finally:
                    await client.dispose()
        self.met(server_id)
        self._servers[server_id].limit = fits
        self._servers[server_id].last_met = time.monotonic()
        self._suspected = False


async def _takes(client: SingleUseClient, size: int) -> bool:
    client.raw_write(b"UNSUB %s\r\n" % (b"0" * size))
    try:
        await client.answered()
    except NatsError as error:
        if TOO_LONG not in str(error).lower():
            raise
        return False
    return True
