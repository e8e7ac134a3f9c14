"""Settings of a broker that this package does not know."""

from typing import Protocol

from ..publishing import Publisher
from .pool import PoolSettings

__all__ = ["PublisherSettings"]


class PublisherSettings(Protocol):
    """Settings that make their own publisher, as those of the broker in memory do.

    Envelopes go wherever that publisher sends them; the pool treats it like any other. Settings of
    the same broker must be hashable and equal.
    """

    @property
    def pool(self) -> PoolSettings:
        """Sizes and deadlines of the ACK pool."""

    def publisher(self) -> Publisher:
        """Make a publisher; the pool uses one for all whose identities are equal."""
