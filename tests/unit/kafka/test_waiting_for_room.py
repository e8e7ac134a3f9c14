"""Messages that librdkafka has no room for wait, and those given up meanwhile are not sent."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.kafka.producer import Client
from bytewax_jetstream.kafka.publisher import KafkaPublisher
from bytewax_jetstream.kafka.topics import Topic
from bytewax_jetstream.publishing import PublisherEvents, Refusal, Singles
from bytewax_jetstream.settings import KafkaSettings
from tests.support.waiting import PATIENCE


class _Library:
    """A producer that has room for a number of messages, and keeps what it was handed."""

    def __init__(self) -> None:
        self.room = 0
        self.payloads: list[bytes] = []

    def produce(self, topic: str, payload: bytes, *_: object) -> None:
        if not self.room:
            raise BufferError("no room")
        self.room -= 1
        self.payloads.append(payload)

    def report(self, place: int) -> int:
        return place

    def serve(self) -> None:
        """It has no reports."""

    def take(self) -> tuple[list[Any], list[Any]]:
        return [], []


class _Events:
    """The pool's side: what is still awaited."""

    def __init__(self, batch: Sequence[Envelope]) -> None:
        self.awaited = dict(enumerate(batch))
        self.processed = asyncio.Event()
        self.refusals: list[int] = []

    def in_flight(self, number: int, index: int) -> list[Envelope]:
        return [self.awaited[index]] if index in self.awaited else []

    def refused(self, number: int, index: int, refusal: Refusal) -> None:
        self.refusals.append(index)

    def process(self) -> None:
        self.processed.set()


@pytest.mark.parametrize("given_up", [[], [1], [0, 2], [0, 1, 2]])
def test_messages_given_up_while_waiting_for_room_are_not_sent(given_up: list[int]) -> None:
    batch = [Envelope("t", b"%d" % number, f"e-{number}") for number in range(3)]
    library, events = _Library(), _Events(batch)

    async def play() -> None:
        publisher = KafkaPublisher(KafkaSettings())
        publisher._client = cast(Client, library)
        publisher._events = cast(PublisherEvents, events)
        publisher._topics.found["t"] = Topic(1)
        publisher.send(Singles(1, batch, [None] * len(batch)))
        assert library.payloads == []
        for index in given_up:
            del events.awaited[index]
        library.room = 10
        await asyncio.wait_for(events.processed.wait(), PATIENCE)

    asyncio.run(play())

    assert library.payloads == [b"%d" % number for number in range(3) if number not in given_up]
    assert events.refusals == given_up, "their place in the window comes back"
