"""A producer that has stopped at a refused request hands everything back, and another goes on."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.errors import ConnectError
from bytewax_jetstream.kafka import publisher as module
from bytewax_jetstream.kafka.producer import Client, Failure
from bytewax_jetstream.kafka.publisher import KafkaPublisher
from bytewax_jetstream.kafka.topics import Topic
from bytewax_jetstream.publishing import PublisherEvents, Receipt, Refusal, Singles, Verdict
from bytewax_jetstream.settings import KafkaSettings
from tests.support.waiting import PATIENCE

TOO_LARGE = KafkaError.MSG_SIZE_TOO_LARGE
HANDED_BACK = KafkaError._PURGE_QUEUE


class _Library:
    def __init__(self, *, cut: bool = False) -> None:
        self.cut = cut
        """Whether a connection broke."""
        self.fatal = False
        self.payloads: list[str] = []
        self.acks: list[tuple[int, int, Receipt]] = []
        self.failures: list[Failure] = []
        self.given_back: list[bool] = []
        self.left = 0
        self.closed = False

    def __len__(self) -> int:
        return self.left

    def produce(self, topic: str, payload: bytes, *_: object) -> None:
        if self.fatal:
            raise KafkaException(KafkaError(KafkaError._FATAL))
        self.payloads.append(payload.decode())

    def report(self, place: int) -> int:
        return place

    def serve(self) -> None:
        """The test says what is reported."""

    def take(self) -> tuple[list[tuple[int, int, Receipt]], list[Failure]]:
        taken = self.acks, self.failures
        self.acks, self.failures = [], []
        return taken

    def may_have_been_sent(self, seconds: float) -> bool:
        return self.cut

    def may_have_retried(self, seconds: float) -> bool:
        return self.cut

    def give_back(self, *, in_flight: bool = False) -> None:
        self.given_back.append(in_flight)

    def close(self, seconds: float) -> int:
        self.closed = True
        return 0


class _Events:
    def __init__(self) -> None:
        self.awaited: dict[int, Envelope] = {}
        self.refusals: dict[int, Refusal] = {}
        self.failures: list[str] = []

    def failed(self, reason: str) -> None:
        self.failures.append(reason)

    def in_flight(self, number: int, index: int) -> list[Envelope]:
        return [self.awaited[number]] if number in self.awaited else []

    def acked_many(self, acks: list[tuple[int, int, Receipt]]) -> None:
        for number, _, _ in acks:
            del self.awaited[number]

    def refused(self, number: int, index: int, refusal: Refusal) -> None:
        self.awaited.pop(number, None)
        self.refusals[number] = refusal

    def process(self) -> None:
        """Nothing else is done here."""


class _Played:
    """Each message is a send of its own: its number is its payload."""

    def __init__(self, *, cut: bool = False) -> None:
        self.first, self.second, self.alone = _Library(cut=cut), _Library(), _Library()
        self.events = _Events()
        self.publisher = KafkaPublisher(KafkaSettings())
        self.publisher._client = cast(Client, self.first)
        self.publisher._events = self.publisher._careful.events = cast(PublisherEvents, self.events)
        self.publisher._careful.client = cast(Client, self.alone)
        self.publisher._connect = lambda **_: cast(Client, self.second)  # type: ignore[method-assign]
        self.publisher._topics.found.update(t=Topic(1), u=Topic(1))

    def send(self, number: int, topic: str, aggregate: str | None) -> None:
        envelope = Envelope(topic, b"%d" % number, f"e-{number}", aggregate)
        self.events.awaited[number] = envelope
        self.publisher.send(Singles(number, [envelope], [None]))

    def fail(self, failures: Sequence[tuple[int, int]]) -> None:
        self.first.failures += [(number, 0, code, "words", 1.0) for number, code in failures]
        self.publisher._reported()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110  # the fakes have no event for it
                await asyncio.sleep(0.001)


def test_what_was_handed_back_goes_before_what_came_meanwhile_and_in_order() -> None:
    played = _Played()

    async def play() -> None:
        for number, topic in enumerate(["t", "u", "t", "u"]):
            played.send(number, topic, f"a-{number}")
        played.first.left = 2
        played.fail([(3, HANDED_BACK), (0, TOO_LARGE)])
        played.send(4, "u", "b")
        await played.until(lambda: played.first.given_back)
        assert played.second.payloads == played.alone.payloads == []
        played.first.left = 0
        played.fail([(2, HANDED_BACK), (1, HANDED_BACK)])
        await played.until(lambda: played.first.closed)
        played.send(5, "u", "b")

    asyncio.run(play())
    assert played.second.payloads == ["1", "3", "4", "5"]
    assert played.alone.payloads == ["0", "2"], "the topic of the refused request"
    assert not any(played.first.given_back), "answers are waited for"
    assert played.events.refusals == {}


@pytest.mark.parametrize("code", [HANDED_BACK, TOO_LARGE, KafkaError.UNKNOWN])
def test_message_that_may_be_stored_is_unknown_with_its_aggregate(code: int) -> None:
    played = _Played(cut=code != KafkaError.UNKNOWN)

    async def play() -> None:
        for number, aggregate in enumerate(["a", "b", "a", "a"]):
            played.send(number, "t", aggregate)
        played.first.left = 1
        played.fail([(0, code)])
        played.first.cut = False
        played.first.left = 0
        played.fail([(1, HANDED_BACK), (2, HANDED_BACK)])
        played.send(3, "t", "a")
        await played.until(lambda: played.first.closed)

    asyncio.run(play())
    assert {each.verdict for each in played.events.refusals.values()} == {Verdict.GIVE_UP}
    assert played.events.refusals.keys() == {0, 2, 3}
    assert "before it in aggregate a is unknown" in played.events.refusals[2].reason
    assert played.second.payloads + played.alone.payloads == ["1"]


def test_messages_that_a_stopped_producer_does_not_take_wait_for_the_next() -> None:
    played = _Played()

    async def play() -> None:
        played.first.fatal = True
        for number in range(3):
            played.send(number, "t", "a")
        played.publisher._stopped_by_itself(cast(Client, played.first))
        await played.until(lambda: played.first.closed)
        # That the former one stopped is no news by then.
        played.publisher._stopped_by_itself(cast(Client, played.first))
        await asyncio.sleep(0)

    asyncio.run(play())
    assert played.second.payloads == ["0", "1", "2"]
    assert not played.second.closed


def test_answers_that_do_not_come_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STOPPED_SECONDS", -100.0)
    played = _Played()

    async def play() -> None:
        played.send(0, "t", "a")
        played.first.left = 1
        played.publisher._stopped_by_itself(cast(Client, played.first))
        await played.until(lambda: True in played.first.given_back)
        played.first.left = 0
        played.fail([(0, KafkaError._PURGE_INFLIGHT)])
        await played.until(lambda: played.first.closed)

    asyncio.run(play())
    assert played.events.refusals[0].verdict is Verdict.GIVE_UP


@pytest.mark.parametrize("topic", ["t", "u"])
def test_producer_that_cannot_be_replaced_ends_the_publisher(topic: str) -> None:
    played = _Played()

    def connect(*, alone: bool = False) -> Client:
        if alone or topic == "t":
            raise ConnectError("no certificate", broker="kafka", servers=())
        return cast(Client, played.second)

    played.publisher._connect = connect  # type: ignore[method-assign]
    played.publisher._careful.client = None

    async def play() -> None:
        played.send(0, "u", "a")
        played.fail([(0, TOO_LARGE)])
        await played.until(lambda: played.events.failures)
        played.send(1, topic, "a")

    asyncio.run(play())
    assert {str(each) for each in played.events.failures} == {
        "another Kafka producer was needed, and there is none: no certificate"
    }
