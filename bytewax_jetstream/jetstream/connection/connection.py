"""`Connection`: one NATS connection, up, lost or being replaced; requests, subscriptions, writes.

nats-py connects, authenticates, encrypts, pings and makes requests. This module handles a lost
connection, because the reconnect of nats-py

- can hang forever behind unsent bytes,
- sends messages that the application gave up long ago,
- does not notice that its reader has ended.

Here a lost client is thrown away: its socket is aborted, unsent bytes and all, and a new client
connects.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from random import uniform
from typing import Any, cast

from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from ...errors import ConnectError
from ...settings import JetStreamSettings
from .client import SingleUseClient
from .connecting import connect
from .failures import JetStreamApiError, remedy, words
from .parser import BulkReader, MessageHandler

__all__ = ["DENIED_PUBLISH", "Connection"]

log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 2.0
"""For one attempt to connect to one server."""
REQUEST_SECONDS = 5.0
DENIED_PUBLISH = re.compile(r'Permissions Violation for Publish to "([^"]+)"', re.IGNORECASE).search
MOST_DENIALS = 1_000
"""Most denials that are logged, each once; the server repeats a denial for every message."""


class Connection:
    """A connection to NATS that replaces itself when it is lost.

    :arg on_up: Called when a new connection is up and the subscriptions are made.
    :arg on_down: Called with the reason when it is lost; anything written before may be lost too.
    :arg on_read: Called after each read from the socket, when its messages have been handled.
    :arg on_denied: Called with the server's text when it denies a publish or a subscription.
    :arg take_bulk: Handles frequent messages straight in the bytes that were read; see `parser`.
    """

    def __init__(
        self,
        settings: JetStreamSettings,
        *,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_read: Callable[[], None] = lambda: None,
        on_denied: Callable[[str], None] = lambda what: None,
        take_bulk: BulkReader | None = None,
    ) -> None:
        self._settings = settings
        self._on_up = on_up
        self._on_down = on_down
        self._on_denied = on_denied
        self.on_read = on_read
        self.take_bulk = take_bulk
        self._client: SingleUseClient | None = None
        self._servers = list(settings.servers)
        self._subscriptions: dict[str, tuple[MessageHandler, int]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._last_denied: str | None = None
        self._denials: set[str] = set()
        self._asked: dict[str, set[asyncio.Future[str]]] = {}
        """Subjects of requests under way, each with futures that a denial completes."""
        self.takes_batches = False
        """Whether the server knows the batch protocol (nats-server 2.14); while the connection is
        down, whether the last one did.
        """
        self.takes_groups = False
        """Whether the server, now or last, knows atomic batches (nats-server 2.12)."""
        self.takes_ttl = False
        """Whether the server, now or last, knows a message's time to live (nats-server 2.11)."""
        self.is_clustered = False
        """Whether the server is one of a cluster."""
        self.reconnects = 0
        self.requests = 0
        self.writes = 0
        self.bytes_written = 0

    @property
    def is_up(self) -> bool:
        """Whether there is a connection to write to."""
        return self._client is not None

    @property
    def max_payload(self) -> int:
        """The server's limit for headers and payload together."""
        return self._client.max_payload if self._client is not None else 1024 * 1024

    def new_inbox(self) -> str:
        """A subject that nobody else can guess."""
        return self._live().new_inbox()

    async def open(self) -> None:
        """Connect; from then on a lost connection is replaced.

        :raises ConnectError: when there is none within the connect timeout; at once when waiting
            does not help, as with wrong credentials.
        """
        deadline = time.monotonic() + self._settings.connect_timeout
        pause = 0.05
        while True:
            try:
                left = deadline - time.monotonic()
                self._adopt(await self._connect(min(ATTEMPT_SECONDS, left)))
                break
            except Exception as error:  # of many types: each means that there is no connection
                reason, advice = words(error), remedy(error)
                servers = ", ".join(self._settings.servers)
                if advice is not None:
                    raise self._failure(
                        f"no connection to {servers} ({reason}): {advice}", reason=reason
                    ) from None
                if time.monotonic() + pause >= deadline:
                    seconds = self._settings.connect_timeout
                    raise self._failure(
                        f"no connection to {servers} within {seconds:g} s ({reason}): "
                        "check that the server is running there",
                        seconds=seconds,
                        reason=reason,
                    ) from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)
        self._keeper = asyncio.get_running_loop().create_task(
            self._keep(), name="jetstream-connection"
        )
        self._on_up()

    async def close(self) -> None:
        """Close within a bounded time; unsent bytes are dropped."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.dispose()

    @property
    def unsent_bytes(self) -> int:
        """Replaced by the measured number."""
        return 0

    def write(self, data: bytes) -> None:
        """Write protocol bytes; if the connection is lost (`on_down`), they may be lost too."""
        client = self._client
        if client is not None:
            client.raw_write(data)
            self.writes += 1
            self.bytes_written += len(data)

    async def subscribe(self, subject: str, handler: MessageHandler) -> None:
        """Subscribe on this connection and on every later one.

        :raises ConnectError: when the server denies it, or does not answer.
        """
        client = self._live()
        self._last_denied = None
        self._subscriptions[subject] = (handler, client.raw_subscribe(subject, handler))
        # The server answers in order: after this round trip it has accepted or denied it.
        try:
            await client.flush(timeout=cast(int, self._settings.connect_timeout))
        except (NatsError, OSError) as error:
            seconds, reason = self._settings.connect_timeout, words(error)
            raise self._failure(
                f"the server did not confirm a subscription within {seconds:g} s ({reason}): "
                "check whether it is overloaded",
                seconds=seconds,
                reason=reason,
                subject=subject,
            ) from None
        if self._last_denied is not None:
            raise self._failure(
                f"{self._last_denied}: allow this user to subscribe to {subject.split('.')[0]}.>",
                reason=self._last_denied,
                subject=subject,
            )

    def unsubscribe(self, subject: str) -> None:
        """End a subscription, on this connection and on later ones."""
        _, sid = self._subscriptions.pop(subject, (None, 0))
        if self._client is not None:
            self._client.raw_unsubscribe(sid)

    async def drain(self, subject: str) -> None:
        """End a subscription; returns when all messages sent for it have been handled."""
        client = self._live()
        _, sid = self._subscriptions.pop(subject, (None, 0))
        client.raw_write(b"UNSUB %d\r\n" % sid)
        await client.flush(timeout=cast(int, self._settings.connect_timeout))
        client.handlers.pop(sid, None)

    async def request(
        self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """One JetStream API request below the settings' prefix, such as `STREAM.INFO.ORDERS`.

        :arg seconds: How long to wait; by default 5 s, or the connect timeout if that is shorter.
        :raises JetStreamApiError: when the answer is an error.
        :raises ConnectError: when there is no answer in time, or the server denies the request.
        """
        self.requests += 1
        seconds = (
            min(REQUEST_SECONDS, self._settings.connect_timeout) if seconds is None else seconds
        )
        full = f"{self._settings.js_prefix}.{subject}"
        payload = json.dumps(body).encode() if body is not None else b""
        client = self._live()
        denied: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(full, set()).add(denied)
        asked = asyncio.ensure_future(client.request(full, payload, timeout=seconds))
        try:
            both: set[asyncio.Future[Any]] = {asked, denied}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if denied.done():
                raise self._failure(
                    f"{denied.result()}: allow this user to use the JetStream API, or use "
                    "stream_strategy=skip",
                    reason=denied.result(),
                    subject=full,
                )
            message = asked.result()
        except NoRespondersError:
            raise self._failure(
                f"nothing answers {full}: enable JetStream on this server and for this account, or "
                "correct domain or api_prefix in the settings",
                subject=full,
            ) from None
        except (NatsTimeoutError, NatsError, OSError) as error:
            reason = words(error)
            raise self._failure(
                f"no answer to {full} within {seconds:g} s ({reason}): check whether the server is "
                "overloaded",
                seconds=seconds,
                reason=reason,
                subject=full,
            ) from None
        finally:
            asked.cancel()
            self._asked[full].discard(denied)
            if not self._asked[full]:
                del self._asked[full]
        answer = cast(dict[str, Any], json.loads(message.data))
        if refusal := answer.get("error"):
            raise JetStreamApiError(
                refusal.get("err_code", refusal.get("code", 0)), refusal.get("description", "")
            )
        return answer

    async def ask(self, topic: str, headers: dict[str, str], seconds: float) -> dict[str, Any]:
        """Publish a message without a payload, and return the answer, also if it is an error.

        :raises ConnectError: when there is no answer in time.
        """
        try:
            answer = await self._live().request(topic, b"", timeout=seconds, headers=headers)
        except (NatsError, OSError) as error:
            reason = words(error)
            raise self._failure(
                f"no answer on {topic} within {seconds:g} s ({reason})",
                seconds=seconds,
                reason=reason,
                subject=topic,
            ) from None
        return cast(dict[str, Any], json.loads(answer.data))

    def permission_denied(self, message: str) -> None:
        """The server denied a publish or a subscription; the connection stays up."""
        self._last_denied = message
        subject = DENIED_PUBLISH(message)
        for waiting in self._asked.get(subject.group(1), ()) if subject else ():
            if not waiting.done():
                waiting.set_result(message)
        if message not in self._denials and len(self._denials) < MOST_DENIALS:
            self._denials.add(message)
            log.warning("NATS: %s", message)
        self._on_denied(message)

    def lose(self, reason: str) -> None:
        """Replace a connection that is up but does not answer."""
        if self._client is not None:
            self._client.lose(reason)

    # Keeping it up

    def _live(self) -> SingleUseClient:
        if self._client is None:
            raise self._failure("not connected to NATS at the moment")
        return self._client

    def _failure(
        self,
        message: str,
        *,
        seconds: float | None = None,
        reason: str | None = None,
        subject: str | None = None,
    ) -> ConnectError:
        return ConnectError(
            message,
            broker="jetstream",
            servers=self._settings.servers,
            seconds=seconds,
            reason=reason,
            subject=subject,
        )

    async def _keep(self) -> None:
        while True:
            client = self._live()
            reason = await self._until_lost(client)
            self._client = None
            self._servers = list(dict.fromkeys([*self._settings.servers, *client.known_servers()]))
            self._on_down(reason)
            await client.dispose()
            await self._replace()

    async def _until_lost(self, client: SingleUseClient) -> str:
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(client.lost), 0.5)
            if client.is_closed or client.reader_is_dead():
                return "the connection's reader ended"

    async def _replace(self) -> None:
        """Connect again, however long it takes: callers have deadlines of their own."""
        client = await self._connect_at_last()
        for subject, (handler, _) in list(self._subscriptions.items()):
            self._subscriptions[subject] = (handler, client.raw_subscribe(subject, handler))
        self._adopt(client)
        self.reconnects += 1
        log.info("NATS: connected again")
        self._on_up()

    def _adopt(self, client: SingleUseClient) -> None:
        version = client.connected_server_version
        self.takes_batches = (version.major, version.minor) >= (2, 14)
        self.takes_groups = (version.major, version.minor) >= (2, 12)
        self.takes_ttl = (version.major, version.minor) >= (2, 11)
        self.is_clustered = client.is_clustered
        self._client = client

    async def _connect_at_last(self) -> SingleUseClient:
        pause, logged = 0.02, 0.0
        while True:
            try:
                return await self._connect(ATTEMPT_SECONDS)
            except Exception as error:  # of many types; giving up would end the publisher
                if time.monotonic() - logged > 10:
                    logged = time.monotonic()
                    log.warning("NATS: still no connection: %s", words(error))
            await asyncio.sleep(uniform(0.5, 1.0) * pause)
            pause = min(2 * pause, 1.0)

    async def _connect(self, seconds: float) -> SingleUseClient:
        return await connect(self, self._settings, self._servers, seconds)
