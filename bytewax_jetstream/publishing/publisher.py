"""The seam between the pool and a broker: what each may ask of the other.

A `Protocol`, not a base class: a publisher shares nothing with its sibling but this shape.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from ..dispatch.flight import Flight, Leg, Policy, Route
from ..envelope import Envelope
from .answers import Receipt, Refusal

__all__ = ["Publisher", "PublisherEvents"]


class PublisherEvents(Protocol):
    """What a publisher reports to the pool, always on the pool's own thread."""

    def connected(self) -> None:
        """Flights may be sent."""

    def disconnected(self, reason: str) -> None:
        """Nothing that is out will be answered any more."""

    def acked(self, flight: int, index: int, receipt: Receipt) -> None:
        """The broker has stored envelope `index` of that flight."""

    def acked_all(self, acks: Sequence[tuple[int, int, Receipt]]) -> None:
        """The broker has stored all of these: flight, index and receipt of each."""

    def stored_through(self, flight: int, places: int) -> None:
        """The broker has stored the first envelopes of a whole flight."""

    def ended(self, flight: int, places: int) -> None:
        """A whole flight is over after its first places: at a refusal, or for no reason that was
        given.
        """

    def returned(self, flight: int, places: int, *, duplicate: bool | None = None) -> None:
        """A whole flight is over; what is behind its first places is surely not stored, and must go
        one by one.
        """

    def refused(self, flight: int, index: int, refusal: Refusal) -> None:
        """The broker has not stored envelope `index` of that flight."""

    def refused_topic(self, topic: str, refusal: Refusal) -> None:
        """The broker stores nothing that is out on that topic."""

    def envelopes(self, flight: int, index: int) -> Sequence[Envelope]:
        """What is at that place, while its answer is awaited: one envelope, or a group that is
        stored all or none.
        """

    def failed(self, reason: str) -> None:
        """The publisher is beyond repair: whatever is unsettled stays unknown."""

    def turn(self) -> None:
        """A batch of reports is complete: act on it."""


class Publisher(Protocol):
    """Sends flights to one broker and reports the answers; it never decides what to send or when.

    All methods but `hurry` are called on the pool's thread and must not block it.
    """

    broker: str
    """`jetstream` or `kafka`."""

    @property
    def identity(self) -> Hashable:
        """Lanes whose publishers have equal identities share one publisher."""

    @property
    def policy(self) -> Policy:
        """How flights for this broker are to be formed and retried."""

    async def start(self, events: PublisherEvents) -> None:
        """Connect, make or check what the topics need; raises when that fails within its deadline."""

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Any]:
        """Check envelopes and encode each once, for all of its attempts.

        :returns: For each its wire form, or an `EnvelopeError` when it can never be stored as it
        is.
        """

    def route(self, topic: str) -> Route | None:
        """The route that takes envelopes of a topic in whole flights; None if each has to go alone."""

    def send(self, flight: Flight | Leg) -> None:
        """Put a flight, or the next leg of a whole one, on the wire; the answers come through the
        events.
        """

    def hurry(self) -> float:
        """Somebody waits until nothing is unsettled: nothing of what was sent may lie and wait for
        company.

        The one method that is called on the waiting thread, again and again; it may block for a
        millisecond. Returns the seconds after which it is to be called again while the wait lasts.
        """

    async def close(self) -> None:
        """Let go of the connection within a bounded time; nothing is waited for."""

    def statistics(self) -> dict[str, int]:
        """Counters of this broker's connection."""
