"""The brokers of a run, and what a second connection sees of them before, after and between the
rounds.
"""

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import nats
import psutil
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..errors import BenchError
from ..testing import NatsServer
from .cases import READERS, Case
from .load import TOPICS, Load, is_warm_up
from .names import ID_HEADERS, STREAM
from .strategies.lean import publish_all

__all__ = ["Broker", "Figures", "JetStreamBroker", "Stored", "tally_ids"]

SECONDS = 30.0
FETCH = 5_000
BATCHING = frozenset({"batch", "lean", "flow", "source", "pull"})
"""Strategies whose stream allows batching; the readers' is filled by it."""


class Figures(NamedTuple):
    """Counters of a broker at one moment; None where it does not tell."""

    cpu: float | None = None
    management: int | None = None
    frames: int | None = None

    def since(self, before: "Figures", messages: int) -> dict[str, float | None]:
        """What a message cost between two moments."""
        cpu, management, frames = (
            None if new is None or old is None else new - old
            for new, old in zip(self, before, strict=True)
        )
        return {
            "server_cpu_us_per_msg": None if cpu is None else round(cpu / messages * 1e6, 3),
            "mgmt_requests_per_msg": None
            if management is None
            else round(management / messages, 4),
            "ack_frames_per_msg": None if frames is None else round(frames / messages, 4),
        }


class Stored(NamedTuple):
    """What a second connection found of a round."""

    found: int
    """Event ids, each counted once."""
    duplicates: int
    """Messages whose event id was there before."""


class Broker(Protocol):
    """One broker, started for the run or somebody else's."""

    url: str

    def prepare(self, case: Case, run: str) -> None:
        """Make what a round is stored in or reads from."""

    def figures(self, *, first: bool) -> Figures:
        """Its counters, `first` before the clock starts, then after it has stopped."""

    def count(self, case: Case, run: str) -> Stored:
        """What of a round is stored, read back over a connection of its own."""

    def clear(self, case: Case) -> None:
        """Remove what the round has stored."""

    def versions(self) -> dict[str, str]:
        """What is measured against."""


def tally_ids(event_ids: list[str], run: str) -> Stored:
    """Tell one round's messages from its warm-up, and from each other."""
    own = [
        event_id
        for event_id in event_ids
        if not is_warm_up(event_id) and event_id.startswith(f"{run}-")
    ]
    return Stored(len(set(own)), len(event_ids) - len(set(event_ids)))


def process_cpu(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond where the kernel's scheduler tells, else to its
    tick.
    """
    with contextlib.suppress(OSError, ValueError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


class JetStreamBroker:
    """A nats-server of our own, or the one at `url`."""

    def __init__(self, url: str | None = None) -> None:
        self._server = NatsServer() if url is None else None
        self.url = url or ""

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

    def prepare(self, case: Case, run: str) -> None:
        """Make the stream, by the server's own words; for a reader, fill it."""
        asyncio.run(self._prepare(case, run))

    async def _prepare(self, case: Case, run: str) -> None:
        async with self._connected() as client:
            config: dict[str, Any] = {
                "name": STREAM,
                "subjects": list(TOPICS),
                "storage": case.storage,
                "allow_batched": case.strategy in BATCHING,
            }
            with contextlib.suppress(BenchError):  # what an interrupted run has left behind
                await _api(client, f"STREAM.DELETE.{STREAM}")
            await _api(client, f"STREAM.CREATE.{STREAM}", config)
        if case.strategy in READERS:
            load = Load(case._replace(batch=500), run)
            await publish_all(self.url, case.ids, load.batches(), case.messages)

    def figures(self, *, first: bool) -> Figures:
        """Its CPU and counters; what these questions cost is taken out of the answers."""
        return asyncio.run(self._figures(first=first))

    async def _figures(self, *, first: bool) -> Figures:
        async with self._connected() as client:
            if not first:
                cpu, frames = self._own_figures()
                return Figures(cpu, await _api_total(client), frames)
            management = await _api_total(client)
            # Asking counts, too: by how much is what asking twice tells.
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
        """Read the headers of all that is stored."""
        return tally_ids(asyncio.run(self._event_ids(case)), run)

    async def _event_ids(self, case: Case) -> list[str]:
        """The event ids of all messages in the stream, in order, duplicates included."""
        id_header, event_ids = ID_HEADERS[case.ids], []
        async with self._connected() as client:
            expected = (await _api(client, f"STREAM.INFO.{STREAM}"))["state"]["messages"]
            consumer = await _api(
                client,
                f"CONSUMER.CREATE.{STREAM}",
                {
                    "stream_name": STREAM,
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
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer['name']}"
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
                        f"only {len(event_ids)} of {expected} stored messages could be read back: "
                        "check the server's log",
                        broker="jetstream",
                        strategy=case.strategy,
                        url=self.url,
                    ) from None
        return event_ids

    def clear(self, case: Case) -> None:
        """Delete the stream."""
        asyncio.run(self._clear())

    async def _clear(self) -> None:
        async with self._connected() as client:
            await _api(client, f"STREAM.DELETE.{STREAM}")

    def versions(self) -> dict[str, str]:
        """The server's."""
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
                max_reconnect_attempts=1,  # 0 would be forever
                reconnect_time_wait=0.1,
                connect_timeout=5,
                error_cb=_keep_quiet,
            )
        except (OSError, nats.errors.Error) as error:
            raise BenchError(
                f"no NATS server answers at {self.url} ({error}): start one, or leave --nats-url "
                "out",
                broker="jetstream",
                url=self.url,
            ) from None
        try:
            yield client
        finally:
            await client.close()


async def _keep_quiet(error: Exception) -> None:
    """It is raised as well; nats-py would log it with its traceback."""


async def _api(client: Client, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    request = json.dumps(body).encode() if body is not None else b""
    answer: dict[str, Any] = json.loads(
        (await client.request(f"$JS.API.{subject}", request, timeout=SECONDS)).data
    )
    if error := answer.get("error"):
        raise BenchError(
            f"the server refused {subject}: {error.get('description')} ({error.get('err_code')})",
            broker="jetstream",
        )
    return answer


async def _api_total(client: Client) -> int:
    return int((await _api(client, "INFO"))["api"]["total"])
