"""What a publisher asks of the dispatch: how much to send, what to wait for, when to retry."""

from typing import NamedTuple

__all__ = ["Policy", "Route"]


class Policy(NamedTuple):
    """How envelopes for one broker are sent and retried."""

    delivery_timeout: float
    """Seconds an envelope may take with all its attempts; then its outcome is unknown."""
    ack_timeout: float | None
    """Seconds an attempt may wait; None where the broker's library retries and gives up itself."""
    one_per_aggregate: bool
    """Whether a single must be settled before the next envelope of its aggregate is sent."""
    window: int
    """How many messages may be in flight, over all lanes."""
    window_bytes: int
    """How many payload bytes may be in flight: more than a slow link carries within an ack timeout
    is of no use."""
    max_send: int
    """How many messages a lane may send in one turn."""
    atomic: bool = False
    """Whether the envelopes of one aggregate in one submission are stored all or none."""
    flow_interval: int = 0
    """The broker acknowledges an open batch after at most this many messages (a flow ack); of fewer
    it says nothing until the batch ends. A publisher with routes must set it: an open batch with
    no more messages than this in flight is ended, to get an answer."""
    first_backoff: float = 0.05
    longest_backoff: float = 2.0


class Route(NamedTuple):
    """A stream that takes batches: it stores their messages in order, and none after a refused
    one.
    """

    name: str
    replicated: bool
    """Whether it counts an id as stored that is only in process there, and may still be lost."""
    fresh: bool
    """Whether this publisher made it, so that no earlier run can have left anything in process."""
