"""`PoolSettings`: sizes and deadlines of the ACK pool. `PublisherSettings`: of any broker."""

import os
from typing import Protocol, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from ..publishing import Publisher
from .sources import PREFIX, Count, Seconds, Settings

__all__ = ["PoolSettings", "PublisherSettings"]


class PoolSettings(Settings):
    """Sizes and deadlines of the process's ACK pool (`BYTEWAX_JETSTREAM_POOL_…`)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX + "POOL_")

    ack_workers: Count = Field(default_factory=lambda: 2 * (os.cpu_count() or 1))
    """How many ACK workers settle answered tasks; by default twice the number of CPUs."""
    budget_messages: Count = 16_000
    """How many messages may be unsettled at once, over all lanes and brokers.

    The default is two windows, which is enough that a broker never waits for us. A larger budget
    brought nothing when measured (C3 in `tests/benchmark/README.md`).
    """
    budget_bytes: Count = 256 * 1024 * 1024
    """How many payload bytes may be unsettled at once, over all lanes and brokers. Each takes about
    two bytes of memory, because a message is kept as it was given and as it is sent; with payloads
    of 1 KB it is 2.5 bytes, and more with smaller ones.
    """
    ack_timeout: Seconds = 5.0
    """Seconds an attempt may be silent; then the message is sent again, with the same id. An answer
    to something sent before it renews them, and so do bytes that the server takes."""
    delivery_timeout: Seconds = 60.0
    """Seconds after an envelope's first failed attempt until its outcome is unknown, and seconds
    without any progress on a connection until everything there is. What waits for its turn has no
    clock: a slow broker never makes an envelope unknown. Always longer than `ack_timeout`."""
    drain_timeout: Seconds = 20.0
    """Seconds to settle what is unsettled after SIGTERM or SIGINT; then the run ends non-zero."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.delivery_timeout <= self.ack_timeout:
            raise ValueError(
                f"delivery_timeout ({self.delivery_timeout:g} s) must be longer than ack_timeout "
                f"({self.ack_timeout:g} s), or a message that was lost once would never be sent "
                "again: raise the one or lower the other"
            )
        return self


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
