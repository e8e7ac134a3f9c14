"""What is sent when a limit is lower than it was when the message was accepted."""

from typing import Any, NamedTuple, cast

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.jetstream.publisher.encoding import encode
from bytewax_jetstream.jetstream.publisher.fitting import Fitting
from bytewax_jetstream.publishing import Append, Refusal, Singles, Verdict


class Limits(NamedTuple):
    """A connection's."""

    max_payload: int = 1024
    max_control_line: int = 4096
    is_up: bool = True

    def never_took(self, size: int) -> bool:
        return True


class Refused:
    """What was refused, in order."""

    def __init__(self) -> None:
        self.of: list[tuple[int, int, Verdict]] = []

    def refused(self, number: int, index: int, refusal: Refusal) -> None:
        self.of.append((number, index, refusal.verdict))

    def misfit(self, number: int, index: int, envelope: Envelope, refusal: Refusal) -> None:
        self.refused(number, index, refusal)


def _fitting(**limits: Any) -> tuple[Fitting, Refused]:
    refused = Refused()
    fitting = Fitting(cast(Any, Limits(**limits)), cast(Any, refused), refused.misfit)
    fitting.inbox = 30
    return fitting, refused


SIZES = (10, 2_000, 20)
ENVELOPES = [Envelope("t", bytes(size), event_id=f"e-{size}") for size in SIZES]
WIRES: list[object] = [encode(envelope, 10_000) for envelope in ENVELOPES]


def test_single_above_the_limit_is_refused_and_the_others_keep_their_index() -> None:
    fitting, refused = _fitting()

    assert fitting.sift(Singles(7, ENVELOPES, WIRES)) == Singles(
        7, ENVELOPES, [WIRES[0], None, WIRES[2]]
    )
    assert refused.of == [(7, 1, Verdict.REJECT)]


def test_what_is_no_frame_is_left_to_the_publisher() -> None:
    fitting, refused = _fitting()
    singles = Singles(7, ENVELOPES[:1], ["asked for first"])

    assert fitting.sift(singles) == singles
    assert refused.of == []


def test_batch_ends_before_the_message_above_the_limit_and_nothing_follows() -> None:
    fitting, refused = _fitting()
    topics = ["t"] * 3
    append = Append(7, "t", 10, topics, WIRES, False)

    assert fitting.sift(append) == Append(7, "t", 10, topics[:1], WIRES[:1], True)
    assert refused.of == [(7, 11, Verdict.RETRY)]
    assert fitting.sift(Append(7, "t", 13, topics[:1], WIRES[:1], True)) is None


def test_batch_that_begins_with_the_message_above_the_limit_never_begins() -> None:
    fitting, refused = _fitting()

    assert fitting.sift(Append(7, "t", 0, ["t"] * 2, WIRES[1:], True)) is None
    assert refused.of == [(7, 0, Verdict.RETRY)]


def test_limits_are_compared_only_when_they_may_be_exceeded() -> None:
    assert not _fitting()[0].is_needed
    assert _fitting(max_control_line=512)[0].is_needed
    fitting, _ = _fitting(is_up=False)
    assert fitting.max_payload > 1 << 30  # the next server decides
    assert fitting.is_needed
