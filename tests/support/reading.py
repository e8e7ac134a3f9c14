"""Streams filled through a bare socket, and sources that a test or a dataflow reads."""

import json
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink

from bytewax_jetstream.drain import DrainingPartition
from bytewax_jetstream.jetstream.message import JetStreamMessage, UnreadableMessage
from bytewax_jetstream.jetstream.source.feed import Feed
from bytewax_jetstream.jetstream.source.source import JetStreamSource
from bytewax_jetstream.recovery_state import SourceState
from bytewax_jetstream.settings import JetStreamSettings, PoolSettings
from tests.support.dataflows import run
from tests.support.streams import api
from tests.support.waiting import PATIENCE, until

__all__ = [
    "AMY",
    "Driver",
    "consumers",
    "feed_of",
    "numbered",
    "put",
    "read",
    "settings",
    "source",
    "write",
]

AMY: dict[str, Any] = {"user": "amy", "password": "a"}
"""A user who may do everything, where others may not."""


def settings(url: str, *, outage: float = 60.0, **more: Any) -> JetStreamSettings:
    """Settings for a server, a source giving up after `outage` seconds."""
    pool = PoolSettings(ack_timeout=min(5.0, outage / 2), delivery_timeout=outage)
    return JetStreamSettings(servers=(url,), pool=pool, **more)


def numbered(subject: str, count: int, *, first: int = 1) -> list[bytes]:
    """Frames that publish the numbers from `first`, one each."""
    payloads = [b"%d" % number for number in range(first, first + count)]
    return [
        b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(payload), payload) for payload in payloads
    ]


def put(url: str, stream: str, frames: Iterable[bytes]) -> None:
    """Publish protocol frames; returns when the stream has stored a message for each."""
    frames = list(frames)
    before = api(url, f"STREAM.INFO.{stream}")["state"]["last_seq"]
    write(url, frames)
    until(lambda: api(url, f"STREAM.INFO.{stream}")["state"]["last_seq"] >= before + len(frames))


def write(url: str, frames: Iterable[bytes], *, user: str = "", password: str = "") -> None:
    """Publish protocol frames as they are; returns when the server has read them."""
    hello = {"verbose": False, "headers": True, "user": user, "pass": password}
    with socket.create_connection(
        ("127.0.0.1", urlsplit(url).port or 0), timeout=PATIENCE
    ) as connection:
        connection.sendall(
            b"CONNECT %s\r\n%sPING\r\n" % (json.dumps(hello).encode(), b"".join(frames))
        )
        answer = b""
        while b"PONG" not in answer:
            answer += connection.recv(65536)


def source(url: str, *streams: str, tail: bool = False, **more: Any) -> JetStreamSource:
    """A source of these streams."""
    return JetStreamSource(settings(url), streams=streams, tail=tail, **more)


def read(made: JetStreamSource, *, workers: int = 1, store: Path | None = None) -> list[Any]:
    """Everything a source yields in a dataflow."""
    flow, items = Dataflow("flow"), list[Any]()
    op.output("out", op.input("in", flow, made), TestingSink(items))
    run(flow, workers=workers, store=store)
    return items


def consumers(url: str, stream: str) -> list[str]:
    """The names of a stream's consumers."""
    return list(api(url, f"CONSUMER.NAMES.{stream}")["consumers"] or ())


class Driver:
    """Plays the engine for one partition: batches, snapshots, and the commits that the next batch
    after one means.
    """

    def __init__(
        self, source: JetStreamSource, *, part: str | None = None, state: SourceState | None = None
    ) -> None:
        self.part: DrainingPartition = source.build_part(
            "flow.in", part or source.list_parts()[0], state
        )
        self.items: list[JetStreamMessage | UnreadableMessage] = []
        self.ended = False

    @property
    def numbers(self) -> list[int]:
        """The payloads of the messages, as numbers."""
        return [int(item.payload or b"") for item in self.items]

    @property
    def sequences(self) -> list[int]:
        return [item.sequence for item in self.items]

    def step(self) -> None:
        """One call of the engine, by which the partition learns that a snapshot is committed."""
        try:
            self.items += self.part.next_batch()
        except StopIteration:
            self.ended = True
            return
        awake = self.part.next_awake()
        if awake is not None:
            time.sleep(max(0.0, awake.timestamp() - time.time()))

    def until(
        self, condition: Callable[[], object], timeout: float = PATIENCE, *, epochs: bool = False
    ) -> None:
        """Call until a condition holds.

        :arg epochs: End an epoch after each batch.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, (
                f"not within {timeout:g} s: {len(self.items)} items of {self.part}"
            )
            assert not self.ended, f"the source ended with {len(self.items)} items"
            self.step()
            if epochs:
                self.part.snapshot()

    def to_end(self, *, epochs: bool = False, timeout: float = PATIENCE) -> None:
        """Call until the source ends by itself.

        :arg epochs: End an epoch after each batch.
        """
        deadline = time.monotonic() + timeout
        while not self.ended:
            assert time.monotonic() < deadline, (
                f"no end within {timeout:g} s: {len(self.items)} items"
            )
            self.step()
            if epochs:
                self.part.snapshot()

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        self.part.close()


def feed_of(driver: Driver) -> Feed:
    """What a partition takes its messages from."""
    feed: Feed | None = driver.part._part._reader.current()
    assert feed is not None, "it is being opened again"
    return feed
