"""`TracingSettings`: whether batches leave spans."""

from pydantic_settings import SettingsConfigDict

from .sources import PREFIX, Settings

__all__ = ["TracingSettings"]


class TracingSettings(Settings):
    """The one switch for tracing; the rest is in the standard variables `OTEL_…`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    tracing: bool = False
    """Whether a batch with messages of a sampled trace leaves a span (needs the extra `otel`)."""
