"""JetStream as one uses it through nats-py by hand."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from ...envelope import Envelope
from ..meter import Tally, Trial
from ..names import ID_HEADERS, STREAM

__all__ = ["before", "publish_async", "pull", "sync", "task"]

MAX_PENDING = 4_000
"""nats-py's own default."""
COMPLETE_SECONDS = 120
LATENCIES = 1_000
"""How many acks are timed where a look at each would cost: 1 us is much beside a `publish_async`.
"""


def headers_of(envelope: Envelope, id_header: str) -> dict[str, str]:
    """The headers that our own publisher sends."""
    return {id_header: envelope.event_id, "Aggregate-Id": str(envelope.aggregate_id)}


@asynccontextmanager
async def connected(trial: Trial) -> AsyncIterator[tuple[Client, JetStreamContext, str]]:
    """A warm connection; the clock starts when this is entered and its warm-up is acknowledged."""
    client = await nats.connect(trial.url)
    try:
        pending = trial.case.max_pending or MAX_PENDING
        js, id_header = (
            client.jetstream(publish_async_max_pending=pending),
            ID_HEADERS[trial.case.ids],
        )
        for envelope in trial.load.warm_up():
            await js.publish_async(
                envelope.topic, envelope.payload, headers=headers_of(envelope, id_header)
            )
        await asyncio.wait_for(js.publish_async_completed(), COMPLETE_SECONDS)
        trial.meter.start()
        yield client, js, id_header
    finally:
        await client.close()


async def _each(trial: Trial, publish: Callable[[Envelope], Awaitable[None]]) -> None:
    for batch in trial.load.batches():
        if pause := trial.load.wait():
            await asyncio.sleep(pause)
        for envelope in batch:
            await publish(envelope)


async def sync(trial: Trial) -> Tally:
    """Each publish waits for its ack."""
    tally = Tally()
    async with connected(trial) as (_, js, id_header):

        async def publish(envelope: Envelope) -> None:
            began = time.perf_counter()
            await js.publish(
                envelope.topic, envelope.payload, headers=headers_of(envelope, id_header)
            )
            tally.latencies.append(time.perf_counter() - began)

        await _each(trial, publish)
        trial.meter.stop()
    tally.acked = len(tally.latencies)
    return tally


async def task(trial: Trial) -> Tally:
    """Each publish is a task; all of them are waited for at the end."""
    tally, tasks = Tally(), []
    async with connected(trial) as (_, js, id_header):

        async def one(envelope: Envelope) -> None:
            began = time.perf_counter()
            await js.publish(
                envelope.topic,
                envelope.payload,
                headers=headers_of(envelope, id_header),
                timeout=60,
            )
            tally.latencies.append(time.perf_counter() - began)

        async def publish(envelope: Envelope) -> None:
            tasks.append(asyncio.create_task(one(envelope)))

        await _each(trial, publish)
        if trial.case.rate is None:
            tally.tasks = len(tasks)
        await asyncio.gather(*tasks)
        trial.meter.stop()
    tally.acked = len(tally.latencies)
    return tally


async def publish_async(trial: Trial) -> Tally:
    """Futures collected by nats-py, as it is documented: wait once, at the end."""
    return await _without_waiting(trial, look_up=False)


async def before(trial: Trial) -> Tally:
    """The report's bus before its changes: it asks for the stream at each publish, and lets the
    future go.
    """
    return await _without_waiting(trial, look_up=True)


async def _without_waiting(trial: Trial, *, look_up: bool) -> Tally:
    # Who wants to know what became of each message keeps its future.
    tally, futures = Tally(), []
    every = max(1, trial.load.messages // LATENCIES)
    async with connected(trial) as (_, js, id_header):
        number = 0

        def timed(future: "asyncio.Future[Any]") -> None:
            began = time.perf_counter()
            future.add_done_callback(lambda _: tally.latencies.append(time.perf_counter() - began))

        async def publish(envelope: Envelope) -> None:
            nonlocal number
            if look_up:
                await js.stream_info(STREAM)
            future = await js.publish_async(
                envelope.topic, envelope.payload, headers=headers_of(envelope, id_header)
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
    """A pull loop, from its consumer's making to the last message."""
    tally, load = Tally(), trial.load
    trial.meter.start()
    client = await nats.connect(trial.url)
    try:
        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        subscription = await client.jetstream().pull_subscribe("", stream=STREAM, config=config)
        while tally.acked < load.messages:
            messages = await subscription.fetch(
                min(load.batch, load.messages - tally.acked), timeout=5
            )
            tally.acked += len(messages)
        trial.meter.stop()
    finally:
        await client.close()
    return tally
