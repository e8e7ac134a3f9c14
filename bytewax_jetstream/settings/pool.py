"""Settings of the process's ACK pool."""

import os

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from .sources import PREFIX, Count, Seconds, Settings

__all__ = ["PoolSettings"]


class PoolSettings(Settings):
    """Sizes and deadlines of the process's one ACK pool (`BYTEWAX_JETSTREAM_POOL_…`)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX + "POOL_")

    ack_workers: Count = Field(default_factory=lambda: 2 * (os.cpu_count() or 1))
    """How many ACK workers settle answered tasks; default twice the CPUs."""
    budget_messages: Count = 16_000
    """How many messages may be unsettled at once, over all lanes and brokers.

    Two windows full: enough that a broker never waits for us, and little enough that the garbage
    collector, which looks at all that is unsettled, does not take from the dataflow what a larger
    one would win (`bench --max-pending`). """
    budget_bytes: Count = 256 * 1024 * 1024
    """How many payload bytes may be unsettled at once, over all lanes and brokers."""
    ack_timeout: Seconds = 5.0
    """Seconds one attempt may wait for its ack before it is sent again with the same event id."""
    delivery_timeout: Seconds = 60.0
    """Seconds an envelope may take with all its attempts; then its outcome is unknown."""
    drain_timeout: Seconds = 20.0
    """Seconds for settling what is in flight after SIGTERM or SIGINT; then the run ends non-zero.
    """
