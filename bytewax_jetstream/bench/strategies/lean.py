"""A fast-ingest loop as short as possible: it shows how fast a client of this protocol can be.

nats-py connects, subscribes and reads; the frames of a batch are joined and written to its
transport. It gives none of our promises: no deadline per message, no retry, no result, no order of
aggregates beyond that of one connection; an error ends it.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from ...envelope import Envelope
from ...errors import BenchError
from ..load import ID_HEADERS
from ..meter import Tally, Trial

__all__ = ["lean", "publish_all"]

FLOW = 500
"""Messages per flow ack; the server grants no more."""
WINDOW = 16 * FLOW
"""Messages in flight. With four flow acks, as in results up to November 2026, the server waited for
us: it was 1.1 to 1.3 times as slow.
"""
SECONDS = 30.0
START, APPEND, COMMIT = 0, 1, 2


async def lean(trial: Trial) -> Tally:
    """All messages go in one batch of the protocol; each batch of the load is one write."""
    tally, meter, load = Tally(), trial.meter, trial.load
    client = await nats.connect(trial.url)
    try:
        warm_up = load.warm_up()
        await _Batch(client, trial.case.ids).publish([warm_up], len(warm_up))
        batch = _Batch(client, trial.case.ids)
        await batch.subscribe()
        meter.start()
        tally.acked = await batch.write_all(load.batches(), load.messages)
        meter.stop()
        tally.latencies.extend(batch.latencies)
        tally.writes = batch.writes
    finally:
        await client.close()
    return tally


async def publish_all(url: str, ids: str, batches: Iterable[list[Envelope]], messages: int) -> int:
    """Fill a stream; returns how many messages it stored."""
    client = await nats.connect(url)
    try:
        return await _Batch(client, ids).publish(batches, messages)
    finally:
        await client.close()


class _Batch:
    """One batch of the fast-ingest protocol, from its first message to its commit."""

    def __init__(self, client: Client, ids: str) -> None:
        self._client = client
        self._id_header = ID_HEADERS[ids].encode()
        self._inbox = client.new_inbox()
        self._acked = 0
        self._news = asyncio.Event()
        self._end: dict[str, Any] | None = None
        self._written: deque[tuple[int, float]] = deque()
        """The last message of each write, and when it was written."""
        self.latencies: list[float] = []
        """Seconds from each write to the ack that covers its last message."""
        self.writes = 0

    async def publish(self, batches: Iterable[list[Envelope]], messages: int) -> int:
        await self.subscribe()
        return await self.write_all(batches, messages)

    async def subscribe(self) -> None:
        """The server must know the subscription before the first message, or its ack is lost."""
        await self._client.subscribe(f"{self._inbox}.>", cb=self._answered)
        await self._client.flush()

    async def write_all(self, batches: Iterable[list[Envelope]], messages: int) -> int:
        """Write with at most a window in flight, and commit with the last message; returns how many
        messages are stored.
        """
        # nats-py offers no way to write bytes that are framed already.
        transport = cast(Any, self._client)._transport._io_writer.transport  # noqa: SLF001
        first = 1
        for envelopes in batches:
            for at in range(0, len(envelopes), FLOW):
                piece = envelopes[at : at + FLOW]
                last = first + len(piece) - 1
                if last - self._acked > WINDOW:
                    await self._until_acked(last - WINDOW)
                transport.write(self._frames(piece, first, messages))
                self.writes += 1
                self._written.append((last, time.perf_counter()))
                first = last + 1
            await asyncio.sleep(0)  # lets the acks be read
        await self._until(lambda: self._end is not None)
        if self._end is None or "count" not in self._end or "error" in self._end:
            raise BenchError(f"the batch was not stored: {self._end}")
        return int(self._end["count"])

    def _frames(self, envelopes: list[Envelope], first: int, messages: int) -> bytes:
        """The frames of a piece of the batch, from the first `HPUB` to the last payload."""
        inbox, id_header = self._inbox.encode(), self._id_header
        reply = b"%s.%d.fail" % (inbox, FLOW)
        fixed = len(b"NATS/1.0\r\n: \r\nAggregate-Id: \r\n\r\n") + len(id_header)
        frames = []
        number = first
        for topic, given, event_id, aggregate, *_ in envelopes:
            payload = given or b""
            op = APPEND if 1 < number < messages else COMMIT if number == messages else START
            size = fixed + len(event_id) + len(cast(str, aggregate))
            frames.append(
                b"HPUB %s %s.%d.%d.$FI %d %d\r\n"
                b"NATS/1.0\r\n%s: %s\r\nAggregate-Id: %s\r\n\r\n%s\r\n"
                % (
                    topic.encode(), reply, number, op, size, size + len(payload),
                    id_header, event_id.encode(), cast(str, aggregate).encode(), payload,
                )
            )  # fmt: skip
            number += 1
        return b"".join(frames)

    async def _answered(self, message: Msg) -> None:
        answer = json.loads(message.data)
        if answer.get("type") == "ack":
            self._ack(answer["seq"])
        else:  # the end of the batch, or an error
            self._end = answer
            if "error" not in answer:
                self._ack(answer["count"])
        self._news.set()

    def _ack(self, sequence: int) -> None:
        now = time.perf_counter()
        self._acked = max(self._acked, sequence)
        while self._written and self._written[0][0] <= self._acked:
            self.latencies.append(now - self._written.popleft()[1])

    async def _until_acked(self, sequence: int) -> None:
        await self._until(lambda: self._acked >= sequence or self._end is not None)
        if self._acked < sequence:
            raise BenchError(f"the batch ended early: {self._end}")

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), SECONDS)
