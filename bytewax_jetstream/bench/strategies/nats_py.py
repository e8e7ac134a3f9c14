"""JetStream by hand, through nats-py."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from ...envelope import Envelope
from ...errors import BenchError
from ..load import ID_HEADERS
from ..meter import Tally, Trial

__all__ = ["before", "publish_async", "pull", "raw", "sync", "task"]

MAX_PENDING = 4_000
"""nats-py's own default."""
COMPLETE_SECONDS = 120
TASK_SECONDS = 60
LATENCIES = 1_000
"""How many acks are timed where timing all would slow the strategy down: 1 us is much compared with
a `publish_async`.
"""


def headers_of(envelope: Envelope, id_header: str) -> dict[str, str]:
    """The headers that our own publisher sends."""
    return {id_header: envelope.event_id, "Aggregate-Id": str(envelope.aggregate_id)}


@asynccontextmanager
async def connected(trial: Trial) -> AsyncIterator[tuple[Client, JetStreamContext, str]]:
    """A connection whose warm-up is acknowledged; the clock starts with the body."""
    client = await nats.connect(trial.url)
    try:
        pending = trial.case.max_pending or MAX_PENDING
        js = client.jetstream(publish_async_max_pending=pending)
        id_header = ID_HEADERS[trial.case.ids]
        for envelope in trial.load.warm_up():
            await js.publish_async(
                envelope.topic, envelope.payload or b"", headers=headers_of(envelope, id_header)
            )
        await asyncio.wait_for(js.publish_async_completed(), COMPLETE_SECONDS)
        trial.meter.start()
        yield client, js, id_header
    finally:
        await client.close()


async def _each(trial: Trial, publish: Callable[[Envelope], Awaitable[None]]) -> None:
    for batch in trial.load.batches():
        if pause := trial.load.seconds_until_due():
            await asyncio.sleep(pause)
        for envelope in batch:
            await publish(envelope)


async def _publish_timed(
    tally: Tally,
    js: JetStreamContext,
    id_header: str,
    envelope: Envelope,
    timeout: float | None = None,  # noqa: ASYNC109  # nats-py's own
) -> None:
    began = time.perf_counter()
    headers = headers_of(envelope, id_header)
    await js.publish(envelope.topic, envelope.payload or b"", headers=headers, timeout=timeout)
    tally.latencies.append(time.perf_counter() - began)


async def sync(trial: Trial) -> Tally:
    """Each publish waits for its ack."""
    tally = Tally()
    async with connected(trial) as (_, js, id_header):
        await _each(trial, partial(_publish_timed, tally, js, id_header))
        trial.meter.stop()
    tally.acked = len(tally.latencies)
    return tally


async def task(trial: Trial) -> Tally:
    """Each publish is a task; all of them are awaited at the end."""
    tally, tasks = Tally(), []
    async with connected(trial) as (_, js, id_header):

        async def publish(envelope: Envelope) -> None:
            timed = _publish_timed(tally, js, id_header, envelope, timeout=TASK_SECONDS)
            tasks.append(asyncio.create_task(timed))

        await _each(trial, publish)
        if trial.case.rate is None:
            tally.tasks = len(tasks)
        await asyncio.gather(*tasks)
        trial.meter.stop()
    tally.acked = len(tally.latencies)
    return tally


async def publish_async(trial: Trial) -> Tally:
    """nats-py collects the futures, and the strategy waits once, at the end, as documented."""
    return await _without_waiting(trial, look_up=False)


async def raw(trial: Trial) -> Tally:
    """Plain publishes that name a reply subject of ours: what is left of nats-py without a future
    for each message.
    """
    tally, load = Tally(), trial.load
    pending = trial.case.max_pending or MAX_PENDING
    id_header, news, written = ID_HEADERS[trial.case.ids], asyncio.Event(), 0
    every = max(1, load.messages // LATENCIES)
    client = await nats.connect(trial.url)
    try:
        inbox = client.new_inbox()

        async def acked(message: Msg) -> None:
            number = int(message.subject.rpartition(".")[2])
            if b'"error"' in message.data:
                raise BenchError(f"message {number} was refused: {message.data!r}")
            tally.answered((number,), load.messages)
            if number % every == 0:
                tally.latencies.append(time.perf_counter() - load.given_at(number))
            news.set()

        async def publish(envelope: Envelope, number: int) -> None:
            headers = headers_of(envelope, id_header)
            reply = f"{inbox}.{number}"
            await client.publish(envelope.topic, envelope.payload or b"", reply, headers)

        async def room(most: int) -> None:
            while written - tally.acked > most:
                news.clear()
                await asyncio.wait_for(news.wait(), COMPLETE_SECONDS)

        for envelope in load.warm_up():
            await client.jetstream().publish(
                envelope.topic, envelope.payload or b"", headers=headers_of(envelope, id_header)
            )
        await client.subscribe(f"{inbox}.*", cb=acked)
        await client.flush()
        trial.meter.start()
        for batch in load.batches():
            if pause := load.seconds_until_due():
                await asyncio.sleep(pause)
            for envelope in batch:
                await room(pending - 1)
                await publish(envelope, written)
                written += 1
        await room(0)
        trial.meter.stop()
    finally:
        await client.close()
    return tally


async def before(trial: Trial) -> Tally:
    """The report's code before its changes: it looks the stream up at every publish, and ignores
    the futures.
    """
    return await _without_waiting(trial, look_up=True)


async def _without_waiting(trial: Trial, *, look_up: bool) -> Tally:
    tally, futures = Tally(), []  # the futures say at the end what is acked
    every = max(1, trial.load.messages // LATENCIES)
    async with connected(trial) as (_, js, id_header):
        number = 0

        def timed(future: "asyncio.Future[Any]") -> None:
            began = time.perf_counter()
            future.add_done_callback(lambda _: tally.latencies.append(time.perf_counter() - began))

        async def publish(envelope: Envelope) -> None:
            nonlocal number
            if look_up:
                await js.stream_info(trial.load.place)
            future = await js.publish_async(
                envelope.topic, envelope.payload or b"", headers=headers_of(envelope, id_header)
            )
            futures.append(future)
            if number % every == 0:
                timed(future)
            number += 1

        await _each(trial, publish)
        await asyncio.wait_for(js.publish_async_completed(), COMPLETE_SECONDS)
        trial.meter.stop()
    tally.acked = sum(future.done() and future.exception() is None for future in futures)
    return tally


async def pull(trial: Trial) -> Tally:
    """A pull loop, from the creation of its consumer to the last message."""
    tally, load = Tally(), trial.load
    trial.meter.start()
    client = await nats.connect(trial.url)
    try:
        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        subscription = await client.jetstream().pull_subscribe("", stream=load.place, config=config)
        while tally.acked < load.messages:
            messages = await subscription.fetch(
                min(load.batch, load.messages - tally.acked), timeout=5
            )
            numbers = [message.metadata.sequence.stream - 1 for message in messages]
            tally.answered(numbers, load.messages)
        trial.meter.stop()
    finally:
        await client.close()
    return tally
