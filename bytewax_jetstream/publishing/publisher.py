"""`Publisher`, `PublisherEvents`, `Policy`: the seam; what pool and broker ask of each other.

A `Protocol`, not a base class: a publisher shares nothing with its sibling but this shape.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from ..envelope import Envelope
from ..errors import EnvelopeError
from .answers import Receipt, Refusal
from .outgoing import Outgoing, Wire

__all__ = ["Policy", "Publisher", "PublisherEvents", "Route"]


class Policy(NamedTuple):
    """How envelopes for one broker are sent and retried."""

    delivery_timeout: float
    """Seconds after the first failed attempt of an envelope until its outcome is unknown; and
    seconds without any progress until everything is."""
    ack_timeout: float | None
    """Seconds an attempt may be silent; None where the broker's library retries by itself. Then an
    attempt may be silent for the delivery timeout, and its outcome is unknown."""
    one_per_aggregate: bool
    """Whether a single must be settled before the next envelope of its aggregate is sent."""
    window: int
    """How many messages may be in flight at most, over all lanes."""
    window_bytes: int
    """How many payload bytes may be in flight at most."""
    max_send: int
    """How many messages a lane may send in one turn."""
    atomic: bool = False
    """Whether the envelopes of one aggregate in one submission are stored all or none."""
    flow_interval: int = 0
    """The broker acknowledges an open batch after this many messages at most (a flow ack); of fewer
    it says nothing until the batch ends. A publisher with routes must set it: an open batch with
    no more messages than this in flight is ended, to get an answer. A batch of large messages is
    acknowledged more often."""
    first_window: int = 0
    """How many messages may be in flight at first; 0 for the whole window."""
    first_window_bytes: int = 256 * 1024
    """How many payload bytes may be in flight at first. Both grow and shrink with the speed at
    which the broker answers; see `Window` in `dispatch`."""
    first_backoff: float = 0.05
    longest_backoff: float = 2.0

    @property
    def attempt_seconds(self) -> float:
        """Seconds an attempt may be silent."""
        return self.delivery_timeout if self.ack_timeout is None else self.ack_timeout


class Route(NamedTuple):
    """A stream that takes batches: it stores their messages in order, and none after a refused
    one.
    """

    name: str
    replicated: bool
    """Whether it counts an id as stored that is only in process there, and may still be lost."""
    fresh: bool
    """Whether this publisher made it, so that no earlier run can have left anything in process."""


class PublisherEvents(Protocol):
    """What a publisher reports, always on the pool's own thread.

    A `number` is that of a send; an `index` counts the messages of that send, or of that batch,
    from 0. The pool acts on acks, refusals and batches at the next `process`. Answers to sends that
    are no longer awaited are welcome: a late ack still tells that an envelope is stored.
    """

    def connected(self) -> None:
        """Envelopes may be sent."""

    def disconnected(self, reason: str) -> None:
        """No answer will come any more to what is in flight."""

    def acked(self, number: int, index: int, receipt: Receipt) -> None:
        """The broker has stored the envelope, or the group, at that index."""

    def acked_many(self, acks: Sequence[tuple[int, int, Receipt]]) -> None:
        """The broker has stored single envelopes: number, index and receipt of each."""

    def batch_stored(
        self, number: int, count: int, stream: str | None = None, *, duplicate: bool | None = None
    ) -> None:
        """The broker has stored the first `count` messages of a batch, which goes on.

        :arg stream: The stream that stored them, if the broker names it.
        :arg duplicate: Whether it had those before that were not known to be stored.
        """

    def batch_ended(self, number: int, count: int, stream: str | None = None) -> None:
        """A batch is over with its first `count` messages stored: it is complete, or a message was
        refused, or the broker does not say why it ended.

        :arg stream: The stream that stored them, if the broker names it.
        """

    def batch_returned(self, number: int, count: int, *, duplicate: bool | None = None) -> None:
        """A batch is over with its first `count` messages stored; the rest is definitely not, and
        must go as singles.
        """

    def refused(self, number: int, index: int, refusal: Refusal) -> None:
        """The broker has not stored the message at that index; of a batch, none from there on."""

    def delayed(self, number: int, index: int, refusal: Refusal) -> None:
        """The broker does not store a single now, and the publisher itself tries it again: the
        refusal is the reason if its time runs out.
        """

    def group_known(self, number: int, index: int, receipts: Sequence[Receipt | None]) -> None:
        """The broker has stored some envelopes of a group before, those with a receipt, and now
        nothing of it: the others go again, as a group of their own.
        """

    def known(self, number: int, receipts: Sequence[Receipt | None]) -> None:
        """The answer to an `Ask`: a receipt for each envelope that the broker has stored, None for
        one that it does not know or did not answer for.
        """

    def in_flight(self, number: int, index: int) -> Sequence[Envelope]:
        """The envelope still awaited at that index of singles or of a batch, or all of a group;
        empty when none is.
        """

    def in_flight_on(self, topic: str) -> Sequence[tuple[int, int]]:
        """Number and index of all that is awaited on a topic."""

    def failed(self, reason: str) -> None:
        """The publisher cannot go on: whatever is unsettled becomes unknown."""

    def process(self) -> None:
        """All reports of this read are in: act on them."""


class Publisher(Protocol):
    """Sends to one broker and reports the answers; it never decides what to send or when.

    All methods but `flush_hint` and `statistics` are called on the pool's thread and must not block
    it.
    """

    broker: str
    """`jetstream` or `kafka`."""

    @property
    def identity(self) -> Hashable:
        """Lanes whose publishers have equal identities share one publisher."""

    @property
    def policy(self) -> Policy:
        """How envelopes for this broker are sent and retried."""

    async def start(self, events: PublisherEvents) -> None:
        """Connect, and make or check streams or topics; raises when that fails by its deadline."""

    def prepare(self, envelopes: Sequence[Envelope]) -> list[Wire | EnvelopeError]:
        """Check envelopes and encode each once, for all of its attempts.

        :returns: For each its wire form, or an `EnvelopeError` if it can never be stored as it is.
        """

    def route(self, topic: str) -> Route | None:
        """The route that takes batches of a topic; None if each message must go as a single."""

    def duplicate_window(self, topic: str) -> float | None:
        """For how many seconds a topic's stream remembers event ids, also of singles; None where
        that is not known, or where the broker remembers none.
        """

    def send(self, outgoing: Outgoing) -> None:
        """Write it; the answers come through the events."""

    def flush_hint(self) -> float:
        """Somebody waits until nothing is unsettled: send what lingers to share a request.

        The one method that is called on the waiting thread, again and again; it may block for a
        millisecond. Returns the seconds after which to call it again while the wait lasts.
        """

    def transit(self) -> tuple[int, int]:
        """How many bytes were written so far, and how many of them the peer has not taken; zeros
        where that is not known.
        """

    async def close(self) -> None:
        """Let go of the connection within a bounded time; nothing is waited for."""

    def statistics(self) -> dict[str, int]:
        """Counters of this broker's connection."""
