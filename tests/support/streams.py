"""Streams made and read by nats-py on connections of its own, never by the code under test."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import nats
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import ServiceUnavailableError

from bytewax_jetstream.envelope import Envelope
from tests.support.waiting import PATIENCE

__all__ = [
    "FLAWLESS",
    "Audit",
    "Names",
    "Stored",
    "api",
    "audit",
    "change_stream",
    "envelopes",
    "make_stream",
    "message_ids",
    "remake_stream",
    "stored",
]

T = TypeVar("T")

Names = Callable[[], str]
"""Makes names for streams that no other test uses."""


class Stored(NamedTuple):
    """A message as it lies in a stream."""

    sequence: int
    subject: str
    headers: dict[str, str]
    payload: bytes


class Audit(NamedTuple):
    """How a stream differs from what was to be stored in it."""

    missing: int
    duplicates: int
    inversions: int
    """Messages that stand before an earlier one of their aggregate."""
    strangers: int
    """Messages that were not to be stored."""


FLAWLESS = Audit(0, 0, 0, 0)


def envelopes(
    count: int, topic: str, *, first: int = 0, aggregates: int | None = 50
) -> list[Envelope]:
    """Numbered envelopes, each aggregate's in rising order."""
    return [
        Envelope(
            topic,
            b"%d" % number,
            event_id=f"e-{number}",
            aggregate_id=None if aggregates is None else f"a-{number % aggregates}",
        )
        for number in range(first, first + count)
    ]


def make_stream(url: str, name: str, *subjects: str, **config: Any) -> None:
    """Create a stream from the server's own words, such as `max_msgs=10`."""
    api(url, f"STREAM.CREATE.{name}", {"name": name, "subjects": subjects, **config})


def remake_stream(url: str, name: str, *subjects: str, **config: Any) -> None:
    """Create a stream as `make_stream` does, after deleting any of that name."""
    with contextlib.suppress(AssertionError):  # there is none
        api(url, f"STREAM.DELETE.{name}")
    make_stream(url, name, *subjects, **config)


def change_stream(url: str, name: str, **changes: Any) -> None:
    """Update a stream; what is not named stays as it is."""
    config = api(url, f"STREAM.INFO.{name}")["config"]
    api(url, f"STREAM.UPDATE.{name}", {**config, **changes})


def api(
    url: str, subject: str, body: object = None, *, seconds: float = PATIENCE, **credentials: Any
) -> dict[str, Any]:
    """One JetStream API request; an error in its answer is a failed test."""

    async def ask(client: Client) -> dict[str, Any]:
        payload = b"" if body is None else json.dumps(body).encode()
        answer: dict[str, Any] = json.loads(
            (await client.request(f"$JS.API.{subject}", payload, timeout=seconds)).data
        )
        assert "error" not in answer, answer
        return answer

    return _with_client(url, ask, **credentials)


def stored(url: str, stream: str, **credentials: Any) -> list[Stored]:
    """All messages of a stream, by sequence; a cluster is asked until it has its leaders."""

    async def read(client: Client) -> list[Stored]:
        messages: list[Stored] = []
        js = client.jetstream()
        left = (await js.stream_info(stream)).state.messages
        if not left:
            return messages
        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        subscription = await js.pull_subscribe("", stream=stream, config=config)
        while len(messages) < left:
            for message in await subscription.fetch(
                min(1_000, left - len(messages)), timeout=PATIENCE
            ):
                sequence = message.metadata.sequence.stream
                messages.append(
                    Stored(sequence, message.subject, message.headers or {}, message.data)
                )
        await subscription.unsubscribe()
        return messages

    until = time.monotonic() + 60
    while True:
        try:
            return _with_client(url, read, **credentials)
        except (
            NatsTimeoutError,
            NoRespondersError,
            ServiceUnavailableError,
        ):  # nobody leads at the moment
            if time.monotonic() > until:
                raise


def message_ids(url: str, stream: str, **credentials: Any) -> list[str]:
    """The message ids of a stream, by sequence."""
    return [message.headers["Nats-Msg-Id"] for message in stored(url, stream, **credentials)]


def audit(url: str, stream: str, wanted: Iterable[Envelope], **credentials: Any) -> Audit:
    """Compare a stream with what was to be stored in it; `FLAWLESS` is what it should be."""
    messages = stored(url, stream, **credentials)
    ids = [message.headers["Nats-Msg-Id"] for message in messages]
    wanted_ids = {envelope.event_id for envelope in wanted}
    latest: dict[str, int] = {}
    inversions = 0
    for message in messages:
        aggregate = message.headers.get("Aggregate-Id")
        if aggregate is not None:
            number = int(message.payload)
            inversions += number < latest.get(aggregate, -1)
            latest[aggregate] = max(number, latest.get(aggregate, -1))
    found = set(ids)
    return Audit(
        len(wanted_ids - found), len(ids) - len(found), inversions, len(found - wanted_ids)
    )


def _with_client(url: str, work: Callable[[Client], Awaitable[T]], **credentials: Any) -> T:
    async def run() -> T:
        client = await nats.connect(url.split(","), **credentials)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())
