"""`Waiting`: a message that the library is to get later: with its topic's look-up, or with room."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..envelope import Envelope
from ..publishing import PublisherEvents, Refusal, Verdict

__all__ = ["Waiting", "give_up", "still_awaited"]

NEVER_SENT = Refusal(Verdict.GIVE_UP, "it was given up before librdkafka got it")


class Waiting(NamedTuple):
    """A message that is to be sent, or sent again."""

    number: int
    """Of its send."""
    at: int
    """Its index in it."""
    envelope: Envelope

    @property
    def place(self) -> tuple[int, int]:
        """In the order in which messages were sent first."""
        return self.number, self.at


def still_awaited(
    events: PublisherEvents, messages: Iterable[Waiting], broken: set[str]
) -> Iterator[Waiting]:
    """Those, in order, whose time is not over, and that are behind no unknown message of their
    aggregate. The others give back their places in the window.

    :arg broken: Aggregates with an unknown message; more are added.
    """
    for each in messages:
        aggregate = each.envelope.aggregate_id
        if not events.in_flight(each.number, each.at):
            if aggregate is not None:
                broken.add(aggregate)
            events.refused(each.number, each.at, NEVER_SENT)
        elif aggregate in broken:
            events.refused(each.number, each.at, _not_sent(each.envelope))
        else:
            yield each


def give_up(events: PublisherEvents, messages: Iterable[Waiting]) -> None:
    """One before these, in their aggregate, is unknown: they are not sent."""
    for each in messages:
        awaited = events.in_flight(each.number, each.at)
        events.refused(each.number, each.at, _not_sent(each.envelope) if awaited else NEVER_SENT)


def _not_sent(envelope: Envelope) -> Refusal:
    reason = (
        f"not sent: an envelope before it in aggregate {envelope.aggregate_id} is unknown, and its "
        "order must be kept: publish both again with the same event ids"
    )
    return Refusal(Verdict.GIVE_UP, reason)
