"""What waits is given up with what is before it in its aggregate."""

from typing import cast

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.kafka.waiting import Waiting, still_awaited
from bytewax_jetstream.publishing import PublisherEvents, Refusal


class _Events:
    def __init__(self, awaited: set[int]) -> None:
        self.awaited = awaited
        self.refusals: dict[int, str] = {}

    def in_flight(self, number: int, index: int) -> list[int]:
        return [index] if index in self.awaited else []

    def refused(self, number: int, index: int, refusal: Refusal) -> None:
        self.refusals[index] = refusal.reason


def test_message_behind_one_that_was_given_up_is_not_sent() -> None:
    messages = [
        Waiting(1, at, Envelope("t", b"", f"e-{at}", aggregate))
        for at, aggregate in enumerate(["a", "b", "a", None, None, "c"])
    ]
    events, broken = _Events({1, 2, 4, 5}), {"c"}

    kept = list(still_awaited(cast(PublisherEvents, events), messages, broken))

    assert [each.at for each in kept] == [1, 4]
    assert events.refusals.keys() == {0, 2, 3, 5}
    assert events.refusals[0] == events.refusals[3] == "it was given up before librdkafka got it"
    assert "before it in aggregate a is unknown" in events.refusals[2]
    assert "before it in aggregate c is unknown" in events.refusals[5]
    assert broken == {"a", "c"}
