"""The JetStream server of a run, and what a second connection finds there."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..errors import BenchError
from ..testing import NatsServer
from .brokers import Figures, Stored, process_cpu, tally_ids
from .cases import READERS, Case
from .load import ID_HEADERS, Load, new_place, topics_of
from .strategies.lean import publish_all

__all__ = ["JetStreamBroker"]

SECONDS = 30.0
FETCH = 5_000
BATCHING = frozenset({"batch", "lean", "flow", "source", "pull"})
"""Strategies whose stream allows batching; that of the readers is filled in a batch."""


class JetStreamBroker:
    """The NATS server at `url`; without one, a server that is started for the run."""

    def __init__(self, url: str | None = None) -> None:
        self._server = NatsServer() if url is None else None
        self.url = url or ""
        self.place = new_place()
        self._made = False
        """Whether the stream is there, and ours to delete."""

    def __enter__(self) -> Self:
        if self._server is not None:
            self._server.start()
            self.url = self._server.url
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        elif self._made:
            self.clear()

    def prepare(self, case: Case, run: str) -> None:
        """Make the stream, with plain requests to the server; for a reader, fill it."""
        asyncio.run(self._prepare(case, run))

    async def _prepare(self, case: Case, run: str) -> None:
        async with self._connected() as client:
            config: dict[str, Any] = {
                "name": self.place,
                "subjects": list(topics_of(self.place)),
                "storage": case.storage,
                "allow_batched": case.strategy in BATCHING,
            }
            await _api(client, f"STREAM.CREATE.{self.place}", config)
            self._made = True
        if case.strategy in READERS:
            load = Load(case._replace(batch=500), run, self.place)
            await publish_all(self.url, case.ids, load.batches(), case.messages)

    def figures(self, *, first: bool) -> Figures:
        """The server's CPU time and counters, without what these requests themselves cost."""
        return asyncio.run(self._figures(first=first))

    async def _figures(self, *, first: bool) -> Figures:
        async with self._connected() as client:
            if not first:
                cpu, frames = self._own_figures()
                return Figures(cpu, await _api_total(client), frames)
            management = await _api_total(client)
            # A request for the counter is counted too; a second one tells by how much.
            asked = await _api_total(client)
            cpu, frames = self._own_figures()
            return Figures(cpu, asked + (asked - management), frames)

    def _own_figures(self) -> tuple[float | None, int | None]:
        if self._server is None:
            return None, None
        with urllib.request.urlopen(f"{self._server.monitor_url}/varz", timeout=SECONDS) as answer:
            frames = json.load(answer)["out_msgs"]
        return process_cpu(self._server.pid), frames

    def count(self, case: Case, run: str) -> Stored:
        """Read the headers of all stored messages."""
        return tally_ids(asyncio.run(self._event_ids(case)), run)

    async def _event_ids(self, case: Case) -> list[str]:
        """The event ids of all messages in the stream, in order, duplicates included."""
        id_header, event_ids = ID_HEADERS[case.ids], []
        async with self._connected() as client:
            expected = (await _api(client, f"STREAM.INFO.{self.place}"))["state"]["messages"]
            consumer = await _api(
                client,
                f"CONSUMER.CREATE.{self.place}",
                {
                    "stream_name": self.place,
                    "config": {"ack_policy": "none", "headers_only": True, "mem_storage": True},
                },
            )
            read = asyncio.Event()
            wanted = 0

            async def take(message: Msg) -> None:
                event_ids.append((message.headers or {}).get(id_header, ""))
                if len(event_ids) == wanted:
                    read.set()

            inbox = client.new_inbox()
            await client.subscribe(inbox, cb=take)
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.place}.{consumer['name']}"
            while wanted < expected:
                read.clear()
                more = min(FETCH, expected - wanted)
                wanted += more
                request = {"batch": more, "expires": int(SECONDS * 1e9)}
                await client.publish(subject, json.dumps(request).encode(), reply=inbox)
                try:
                    await asyncio.wait_for(read.wait(), SECONDS)
                except TimeoutError:
                    raise BenchError(
                        f"only {len(event_ids)} of {expected} stored messages could be read back"
                    ) from None
        return event_ids

    def clear(self) -> None:
        """Delete the stream."""
        asyncio.run(self._clear())
        self._made = False

    async def _clear(self) -> None:
        async with self._connected() as client:
            await _api(client, f"STREAM.DELETE.{self.place}")

    def versions(self) -> dict[str, str]:
        """The server's version."""
        return {"nats-server": asyncio.run(self._version())}

    async def _version(self) -> str:
        async with self._connected() as client:
            found = client.connected_server_version
            return f"{found.major}.{found.minor}.{found.patch}"

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        try:
            client = await nats.connect(
                self.url,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # 0 would mean forever
                reconnect_time_wait=0.1,
                connect_timeout=5,
                error_cb=_ignore,
            )
        except (OSError, nats.errors.Error) as error:
            raise BenchError(
                f"no NATS server answers at {self.url} ({error}): "
                "start one there, or omit --nats-url"
            ) from None
        try:
            yield client
        finally:
            await client.close()


async def _ignore(error: Exception) -> None:
    """The error is raised as well; without this callback nats-py would log it with a traceback."""


async def _api(client: Client, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    request = json.dumps(body).encode() if body is not None else b""
    answer: dict[str, Any] = json.loads(
        (await client.request(f"$JS.API.{subject}", request, timeout=SECONDS)).data
    )
    if error := answer.get("error"):
        raise BenchError(
            f"the server refused {subject}: {error.get('description')} ({error.get('err_code')})"
        )
    return answer


async def _api_total(client: Client) -> int:
    return int((await _api(client, "INFO"))["api"]["total"])
