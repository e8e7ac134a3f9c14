"""`Singles`, `Groups`, `Append`, `Ask`: what goes out to a broker; which envelopes form a group.

Each send has a number of its own; answers name that number and an index.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ..envelope import Envelope, PublishOptions

__all__ = [
    "Alone",
    "Append",
    "Ask",
    "Groups",
    "Outgoing",
    "Singles",
    "Wire",
    "indices_by_aggregate",
]

Wire = object
"""What a publisher's `prepare` made of an envelope. Opaque to everyone but that publisher."""


class Alone(bytes):
    """The wire form of an envelope that needs an answer of its own, and so goes as a single: it is
    an earlier one of its submission again, and the broker has to say that it knows it.
    """

    __slots__ = ()


class Singles(NamedTuple):
    """Envelopes sent together, each with an ack of its own; an answer names its index in here."""

    number: int
    envelopes: list[Envelope]
    wires: list[Wire]


class Groups(NamedTuple):
    """Groups sent together, each stored all or none and answered once, by its index in here."""

    number: int
    envelopes: list[list[Envelope]]
    wires: list[list[Wire]]


class Append(NamedTuple):
    """The next messages of a batch, in one write; the first append begins the batch.

    Example: a batch of five may go out as two appends under the same number,
    `(first=0, three messages, last=False)` and `(first=3, two messages, last=True)`.
    """

    number: int
    """The batch's own; all of its appends share it."""
    topic: str
    """The topic of the batch's first message, on which its end is written."""
    first: int
    """The index, in the batch, of the first message in here."""
    topics: list[str]
    """The topic of each message; empty where this append only ends the batch."""
    wires: list[Wire]
    last: bool
    """Whether the batch ends with this append."""
    flow: int = 0
    """After how many messages of the batch the broker is asked to say how many it has stored."""
    again: bool = False
    """Whether messages of it were sent before and not answered: which of them are stored is to be
    asked for before they are sent."""


class Ask(NamedTuple):
    """Envelopes that are not sent: the broker is asked which of their event ids it knows.

    The publisher answers once, with `PublisherEvents.known`, unless the connection is lost.
    """

    number: int
    envelopes: list[Envelope]


Outgoing = Singles | Groups | Append | Ask


def indices_by_aggregate(envelopes: Iterable[Envelope]) -> list[list[int]]:
    """The indices of each aggregate's envelopes, ordered by each aggregate's first envelope.

    An envelope without an aggregate stands alone. Example: aggregates `a, b, a, None` give
    `[[0, 2], [1], [3]]`. An aggregate is cut where the name of its envelopes' group changes:
    aggregates `a, a, a` with the groups `x, x, y` give `[[0, 1], [2]]`.
    """
    groups: list[list[int]] = []
    last: dict[str, tuple[str | None, list[int]]] = {}
    for index, envelope in enumerate(envelopes):
        aggregate, options = envelope.aggregate_id, envelope.options
        # An id that is not a str makes only its own envelope bad, which is found elsewhere.
        if not isinstance(aggregate, str):
            groups.append([index])
            continue
        name = options.group if isinstance(options, PublishOptions) else None
        name = name if isinstance(name, str) else None
        before, group = last.get(aggregate, (None, None))
        if group is None or before != name:
            group = []
            groups.append(group)
            last[aggregate] = name, group
        group.append(index)
    return groups
