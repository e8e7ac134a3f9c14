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
from collections.abc import Awaitable, Callable, Iterable
from random import uniform
from typing import Any, TypeVar, cast

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from ...errors import ConnectError, JetStreamPipelineError
from ...settings import JetStreamSettings
from .addresses import Address, Addresses
from .client import SingleUseClient
from .connecting import connect
from .control_lines import ControlLines
from .failures import JetStreamApiError, remedy, words
from .parser import BulkReader, MessageHandler

__all__ = ["DENIED_PUBLISH", "Connection"]

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_PAUSE = 0.02
SET_UP_PAUSE = 0.02
"""Seconds before what a lost connection has interrupted is tried again."""
LONGEST_PAUSE = 2.0
"""Seconds between attempts to connect, and between connections that were good for nothing."""
STEADY_SECONDS = 10.0
"""A connection that lasted so long was good for something, even if nothing was sent on it."""
REQUEST_SECONDS = 5.0
USE_API = "allow this user to use the JetStream API, or use stream_strategy=skip"
DEFAULT_MAX_PAYLOAD = 1024 * 1024
DENIED_PUBLISH = re.compile(r'Permissions Violation for Publish to "([^"]+)"', re.IGNORECASE).search
DENIED_SUBSCRIPTION = re.compile(
    r'Permissions Violation for Subscription to "([^"]+)"', re.IGNORECASE
).search
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
        self._addresses = Addresses(settings.servers, tls=settings.wants_tls)
        self._address = Address("")
        """Of the server that is, or was last, connected to."""
        pool = settings.pool
        self._control_lines = ControlLines(pool.delivery_timeout + pool.ack_timeout)
        self._pause = FIRST_PAUSE
        self._subscriptions: dict[str, tuple[MessageHandler, int]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._denied_subscriptions: dict[str, str] = {}
        """Subjects that we may not subscribe to, each with the server's words."""
        self._denials: set[str] = set()
        self._max_payload = DEFAULT_MAX_PAYLOAD
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
        self.proved_useful = False
        """To be set when a message was acknowledged or delivered on this connection. Then a loss is
        followed by a new connection at once. Otherwise what is sent may be the cause, and the pause
        before the next connection grows.
        """
        self.domain: str | None = None
        """The JetStream domain of the server, if it has one."""
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
        """The limit for headers and payload together, of server, account and user; while the
        connection is down, the last one.
        """
        return self._client.max_payload if self._client is not None else self._max_payload

    @property
    def max_control_line(self) -> int:
        """Most bytes of a protocol line behind its first word, as far as is known; 4,096 while no
        server has closed a connection because of a longer one.
        """
        server_id = self._client.server_id if self._client is not None else ""
        return self._control_lines.limit(server_id)

    def never_took(self, size: int) -> bool:
        """Whether no server that was connected to can have taken a line of that size."""
        return self._control_lines.none_takes(size)

    @property
    def unsent_bytes(self) -> int:
        """How many written bytes the peer has not taken: in our write buffer, and sent but not
        acknowledged by the peer's kernel. 0 while the connection is down.

        It costs a system call, so ask for it now and then, not for each message. Where the system
        does not tell (it is known on Linux), only the write buffer counts.
        """
        return self._client.unsent_bytes if self._client is not None else 0

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
                self._adopt(await self._connect(deadline))
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
        # Raised in a callback, an unforeseen error ends the loop's thread, which is noticed.
        self._keeper.add_done_callback(lambda task: task.cancelled() or task.result())
        self._on_up()

    async def repeat_until_answered(self, work: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Do what needs a connection; from the start if the connection is lost meanwhile, or if
        nobody answers, as a cluster does without a leader, as long as there is time.

        :raises ConnectError: when there is no time left.
        """
        while True:
            client = self._client
            try:
                return await work()
            except JetStreamPipelineError as error:
                if client is not None and client is self._client and not client.lost.done():
                    silent = isinstance(error, ConnectError) and error.seconds is not None
                    if not silent or time.monotonic() + SET_UP_PAUSE >= deadline:
                        raise
                elif time.monotonic() + SET_UP_PAUSE >= deadline:
                    servers, seconds = (
                        ", ".join(self._settings.servers),
                        self._settings.connect_timeout,
                    )
                    raise self._failure(
                        f"the connection to {servers} was lost while it was set up, and what was "
                        f"asked was not answered within {seconds:g} s ({words(error)}): check that "
                        "the server is running there",
                        seconds=seconds,
                        reason=words(error),
                    ) from None
            await asyncio.sleep(SET_UP_PAUSE)

    async def close(self) -> None:
        """Close within a bounded time; unsent bytes are dropped."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            client.lose("the connection was closed")  # somebody may wait for an answer
            await client.dispose()

    def write(self, data: bytes) -> None:
        """Write protocol bytes; if the connection is lost (`on_down`), they may be lost too."""
        client = self._client
        if client is not None and data:
            client.raw_write(data)
            self.writes += 1
            self.bytes_written += len(data)

    async def subscribe(self, subject: str, handler: MessageHandler) -> None:
        """Subscribe on this connection and on every later one.

        :raises ConnectError: when the server denies it or does not answer, or the connection is
            lost: then it is made on the next one.
        """
        client, seconds = self._live(), self._settings.connect_timeout
        self._denied_subscriptions.pop(subject, None)
        if subject in self._subscriptions:  # it was not confirmed the last time
            self.unsubscribe(subject)
        self._subscriptions[subject] = (handler, client.raw_subscribe(subject, handler))
        # The server answers in order: after this round trip it has accepted or denied it.
        try:
            await self._first_of(client, subject, seconds, client.round_trip())
        except TimeoutError:
            raise self._failure(
                f"the server did not confirm a subscription within {seconds:g} s: "
                "check whether it is overloaded",
                seconds=seconds,
                subject=subject,
            ) from None
        if denied := self._denied_subscriptions.get(subject):
            raise self._forbidden(denied, self._may_subscribe(), subject)

    def unsubscribe(self, subject: str) -> None:
        """End a subscription, on this connection and on later ones."""
        _, sid = self._subscriptions.pop(subject, (None, 0))
        if self._client is not None:
            self._client.raw_unsubscribe(sid)

    async def drain(self, subject: str) -> None:
        """End a subscription; returns when all messages sent for it have been handled.

        :raises ConnectError: when the server does not answer, or the connection is lost.
        """
        client = self._live()
        _, sid = self._subscriptions.pop(subject, (None, 0))
        client.raw_write(b"UNSUB %d\r\n" % sid)
        seconds = self._settings.connect_timeout
        try:
            await self._first_of(client, subject, seconds, client.round_trip())
        except TimeoutError:
            raise self._failure(
                f"the server did not confirm the end of a subscription within {seconds:g} s: "
                "check whether it is overloaded",
                seconds=seconds,
                subject=subject,
            ) from None
        client.handlers.pop(sid, None)

    async def request(
        self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """One JetStream API request below the settings' prefix, such as `STREAM.INFO.ORDERS`.

        :arg seconds: How long to wait; by default 5 s, or the connect timeout if that is shorter.
        :raises JetStreamApiError: when the answer is an error.
        :raises ConnectError: when there is no answer in time, the server denies the request, or
            the connection is lost.
        """
        self.requests += 1
        seconds = (
            min(REQUEST_SECONDS, self._settings.connect_timeout) if seconds is None else seconds
        )
        full = f"{self._settings.js_prefix}.{subject}"
        payload = json.dumps(body).encode() if body is not None else b""
        try:
            message = await self._exchange(full, payload, None, seconds, USE_API)
        except NoRespondersError:
            raise self._failure(
                f"nothing answers {full}: enable JetStream on this server and for this account, or "
                "correct domain or api_prefix in the settings",
                # Behind a domain or prefix are other servers, which may be away for a while.
                seconds=0.0 if self._settings.domain or self._settings.api_prefix else None,
                subject=full,
            ) from None
        except (NatsError, OSError) as error:
            reason = words(error)
            raise self._failure(
                f"no answer to {full} within {seconds:g} s ({reason}): check whether the server is "
                "overloaded",
                seconds=seconds,
                reason=reason,
                subject=full,
            ) from None
        answer = cast(dict[str, Any], json.loads(message.data))
        if refusal := answer.get("error"):
            raise JetStreamApiError(
                refusal.get("err_code", refusal.get("code", 0)), refusal.get("description", "")
            )
        return answer

    async def ask(self, topic: str, headers: dict[str, str], seconds: float) -> dict[str, Any]:
        """Publish a message without a payload, and return the answer, also if it is an error.

        :raises ConnectError: when there is no answer in time, the server denies it, or the
            connection is lost.
        """
        try:
            answer = await self._exchange(
                topic, b"", headers, seconds, f"allow this user to publish on {topic}"
            )
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
        if denied := DENIED_PUBLISH(message):
            self._deny(self._asked.get(denied.group(1), ()), message)
        elif denied := DENIED_SUBSCRIPTION(message):
            subject = denied.group(1)
            if subject in self._subscriptions:
                self._denied_subscriptions[subject] = message
            elif subject.startswith(f"{self._settings.inbox_prefix}.") and self._client is not None:
                # It is the one on which the answers to all requests come.
                self._client.inbox_denied = message
                self._deny([each for asked in self._asked.values() for each in asked], message)
        if message not in self._denials and len(self._denials) < MOST_DENIALS:
            self._denials.add(message)
            log.warning("NATS: %s", message)
        self._on_denied(message)

    def lose(self, reason: str) -> None:
        """Replace a connection that is up but does not answer."""
        if self._client is not None:
            self._client.lose(reason)

    @staticmethod
    def _deny(asked: Iterable[asyncio.Future[str]], message: str) -> None:
        for waiting in asked:
            if not waiting.done():
                waiting.set_result(message)

    def _may_subscribe(self) -> str:
        prefix = self._settings.inbox_prefix
        return (
            f"allow this user to subscribe to {prefix}.>, or set inbox_prefix to a prefix that it "
            "may subscribe to"
        )

    def _forbidden(self, denial: str, remedy: str, subject: str) -> ConnectError:
        return self._failure(f"{denial}: {remedy}", reason=denial, subject=subject)

    async def _first_of(
        self, client: SingleUseClient, subject: str, seconds: float, *awaited: asyncio.Future[Any]
    ) -> None:
        """Wait until one of these is done.

        :raises ConnectError: when the connection is lost first.
        :raises TimeoutError: when none is done in time.
        """
        done, _ = await asyncio.wait(
            {*awaited, client.lost}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            raise TimeoutError
        if done == {client.lost}:
            reason = client.lost.result()
            raise self._failure(
                f"the connection was lost before the server answered on {subject} ({reason}): "
                "try again once there is another one",
                seconds=seconds,
                reason=reason,
            )

    async def _exchange(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None,
        seconds: float,
        remedy: str,
    ) -> Msg:
        """Publish a message, and return the first answer to it.

        :arg remedy: What to do when the server denies the message.
        :raises ConnectError: when the server denies it, or the connection is lost.
        :raises NatsError: when there is no answer in time, or nobody listens on the subject.
        """
        client = self._live()
        denied: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asked = self._asked.setdefault(subject, set())
        asked.add(denied)
        answer = asyncio.ensure_future(
            client.request(subject, payload, timeout=seconds, headers=headers)
        )
        try:
            if client.inbox_denied is None:
                await self._first_of(client, subject, seconds + 1, answer, denied)
            if client.inbox_denied is not None:
                raise self._forbidden(client.inbox_denied, self._may_subscribe(), subject)
            if denied.done():
                raise self._forbidden(denied.result(), remedy, subject)
            return answer.result()
        finally:
            answer.cancel()
            asked.discard(denied)
            if not asked:
                self._asked.pop(subject, None)

    # Keeping it up

    def _live(self) -> SingleUseClient:
        if self._client is None:
            raise self._failure("not connected to NATS at the moment", seconds=0.0)
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
        while not _is_cancelled():
            client, since = self._live(), time.monotonic()
            reason = await self._until_lost(client)
            self._client = None
            self._max_payload = client.max_payload
            self._addresses.learn(self._address, client.advertised)
            useful = self.proved_useful or time.monotonic() - since >= STEADY_SECONDS
            self._control_lines.lost(client.server_id, reason, useful=useful)
            self._on_down(reason)
            await client.dispose()
            if useful:
                self._pause = FIRST_PAUSE
            else:
                await self._wait()
            await self._replace()

    async def _until_lost(self, client: SingleUseClient) -> str:
        while not _is_cancelled():
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(client.lost), 0.5)
            if client.is_closed or client.reader_is_dead():
                client.lose("the connection's reader ended")
        raise asyncio.CancelledError

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
        self.proved_useful = False
        self._control_lines.met(client.server_id)
        self.domain = client.domain
        self._client = client

    async def _connect_at_last(self) -> SingleUseClient:
        logged = 0.0
        while not _is_cancelled():
            try:
                await self._control_lines.measure(self._connect)
                return await self._connect()
            except Exception as error:  # of many types; giving up would end the publisher
                if time.monotonic() - logged > 10:
                    logged = time.monotonic()
                    log.warning("NATS: still no connection: %s", words(error))
            await self._wait()
        raise asyncio.CancelledError

    async def _wait(self) -> None:
        """Pause, longer each time until a connection was good for something."""
        await asyncio.sleep(uniform(0.5, 1.0) * self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _connect(self, until: float = float("inf")) -> SingleUseClient:
        addresses = self._addresses.in_order()
        client, self._address = await connect(self, self._settings, addresses, until)
        return client


def _is_cancelled() -> bool:
    """Whether this task is. nats-py, and `asyncio.wait_for` in Python 3.11, swallow a cancellation
    that comes at the wrong moment.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
