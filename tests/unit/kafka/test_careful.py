"""Messages that go alone: one of an aggregate at a time, and none past one that is unknown."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.kafka.careful import Careful
from bytewax_jetstream.kafka.encoding import encode
from bytewax_jetstream.kafka.error_codes import classify
from bytewax_jetstream.kafka.producer import Client, Failure
from bytewax_jetstream.kafka.waiting import Waiting
from bytewax_jetstream.publishing import PublisherEvents, Receipt, Refusal, Verdict
from tests.support.waiting import PATIENCE

TOO_LARGE = KafkaError.MSG_SIZE_TOO_LARGE
DENIED = KafkaError.TOPIC_AUTHORIZATION_FAILED


class _Library:
    """A producer that keeps what it was handed until it is answered."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.asked = 0
        self.full = 0
        """How many messages it has no room for."""
        self.acks: list[tuple[int, int, Receipt]] = []
        self.failures: list[Failure] = []

    def produce(self, topic: str, payload: bytes, *_: object) -> None:
        if self.full:
            self.full -= 1
            raise BufferError("no room")
        self.out.append(payload.decode())

    def report(self, place: int) -> int:
        return place

    def partitions(self, topic: str, deadline: float) -> int:
        self.asked += 1
        return 1

    def take(self) -> tuple[list[tuple[int, int, Receipt]], list[Failure]]:
        taken = self.acks, self.failures
        self.acks, self.failures = [], []
        return taken


class _Events:
    def __init__(self) -> None:
        self.awaited: dict[int, Envelope] = {}
        self.refusals: dict[str, Refusal] = {}
        self.delays: list[int] = []

    def in_flight(self, number: int, index: int) -> list[Envelope]:
        return [self.awaited[index]] if index in self.awaited else []

    def acked_many(self, acks: list[tuple[int, int, Receipt]]) -> None:
        for _, index, _ in acks:
            self.awaited.pop(index, None)

    def refused(self, number: int, index: int, refusal: Refusal) -> None:
        self.awaited.pop(index, None)
        self.refusals[f"{index}"] = refusal

    def delayed(self, number: int, index: int, refusal: Refusal) -> None:
        self.delays.append(index)

    def process(self) -> None:
        """Nothing else is done here."""


class _Played:
    """A topic that is careful, and a library and events that stand for the rest."""

    def __init__(self) -> None:
        self.library, self.events = _Library(), _Events()
        self.added = 0
        self.careful = Careful(
            connect=lambda: cast(Client, self.library), encode=encode, judge=self._judge
        )
        self.careful.events = cast(PublisherEvents, self.events)
        self.careful.begin("t", "too large", stays=False)

    def _judge(self, waiting: Waiting, failure: Failure) -> Refusal | None:
        _, _, code, text, _ = failure
        if code == DENIED:
            return Refusal(Verdict.RETRY, "denied", code)
        return classify(code, text, waiting.envelope)

    def add(self, *aggregates: str | None) -> None:
        """Messages 0, 1 and so on of these aggregates."""
        for aggregate in aggregates:
            index = self.added
            self.added += 1
            envelope = Envelope("t", b"%d" % index, f"e-{index}", aggregate)
            self.events.awaited[index] = envelope
            self.careful.add(Waiting(1, index, envelope))

    def answer(self, index: int, code: int = 0) -> None:
        if code:
            self.library.failures.append((1, index, code, "words", 0.0))
        else:
            self.library.acks.append((1, index, Receipt()))
        self.careful.take_reports()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110  # the library has no event for it
                await asyncio.sleep(0.01)


def test_one_of_an_aggregate_is_sent_at_a_time_and_all_without_one() -> None:
    played = _Played()

    played.add("a", "a", "b", None, None, "b")
    assert played.library.out == ["0", "2", "3", "4"]
    played.answer(2)
    assert played.library.out[4:] == ["5"]
    played.answer(0)
    assert played.library.out[5:] == ["1"]


def test_rejected_message_is_followed_by_the_next_of_its_aggregate() -> None:
    played = _Played()
    played.add("a", "a")

    played.answer(0, TOO_LARGE)

    assert played.library.out == ["0", "1"]
    assert played.events.refusals["0"].verdict is Verdict.REJECT


@pytest.mark.parametrize("how", ["given up", "given up and stored", "answered", "not answered"])
def test_nothing_goes_behind_an_unknown_message_of_its_aggregate(how: str) -> None:
    played = _Played()
    played.add("a", "a", "b", "a")
    if how != "answered":
        del played.events.awaited[0]

    played.answer(0, {"given up and stored": 0, "given up": TOO_LARGE}.get(how, -192))
    played.answer(2)

    assert played.library.out == ["0", "2"]
    for index in ("1", "3"):
        assert played.events.refusals[index].verdict is Verdict.GIVE_UP
        assert "an envelope before it in aggregate a is unknown" in (
            played.events.refusals[index].reason
        )


def test_topic_goes_back_to_common_requests_when_the_last_message_is_stored() -> None:
    played = _Played()
    played.add("a", "b")

    played.answer(0)
    assert "t" in played.careful.topics
    played.answer(1, TOO_LARGE)
    assert "t" in played.careful.topics, "the next might be refused, too"
    played.add("c")
    played.answer(2)
    assert "t" not in played.careful.topics


def test_topic_whose_requests_were_too_large_stays_careful() -> None:
    played = _Played()
    played.careful.begin("t", "too large", stays=True)
    played.add("a")

    played.answer(0)

    assert "t" in played.careful.topics


def test_denied_topic_is_tried_with_its_first_message_and_then_sent_in_order() -> None:
    played = _Played()

    async def play() -> None:
        played.add("a", "b", "a")
        played.answer(1, DENIED)
        played.answer(0, DENIED)
        played.add("c")
        assert played.library.out == ["0", "1"]
        await played.until(lambda: len(played.library.out) == 3)
        assert played.library.asked
        played.answer(0, DENIED)
        await played.until(lambda: len(played.library.out) == 4)
        assert played.library.out[2:] == ["0", "0"], "the first of all, and only that one"
        played.answer(0)
        assert played.library.out[4:] == ["2", "1", "3"]

    asyncio.run(play())
    assert set(played.events.delays) == {0, 1, 2, 3}


def test_messages_given_up_while_their_topic_is_denied_are_not_sent() -> None:
    played = _Played()

    async def play() -> None:
        played.add("a", "a", "b")
        played.answer(0, DENIED)
        played.answer(2, DENIED)
        del played.events.awaited[0]
        await played.until(lambda: len(played.library.out) == 3)
        assert played.library.out[2:] == ["2"]

    asyncio.run(play())
    assert played.events.refusals["1"].verdict is Verdict.GIVE_UP


def test_messages_of_a_topic_that_is_gone_are_handed_back_in_order() -> None:
    played = _Played()
    played.add("b", "a", "b", "a")

    taken = played.careful.take_all("t")

    assert [each.at for each in taken] == [2, 3], "the library has the others"
    assert "t" not in played.careful.topics


def test_message_that_the_library_has_no_room_for_goes_later_and_in_order() -> None:
    played = _Played()

    async def play() -> None:
        played.library.full = 2
        played.add("a", "a", "b", "c")
        assert played.library.out == ["3"]
        await played.until(lambda: len(played.library.out) == 3)
        played.answer(0)

    asyncio.run(play())
    assert sorted(played.library.out[1:3]) == ["0", "2"]
    assert played.library.out[3:] == ["1"]


def test_topic_that_is_denied_again_while_it_is_looked_at_is_tried_again() -> None:
    played = _Played()

    async def play() -> None:
        played.add("a")
        played.answer(0, DENIED)
        assert [each.at for each in played.careful.take_all("t")] == [0]
        played.careful.begin("t", "denied", stays=False)
        played.add("b")
        played.answer(1, DENIED)
        await played.until(lambda: played.library.out.count("1") == 2)
        played.answer(1)

    asyncio.run(play())
    assert not played.careful.topics
