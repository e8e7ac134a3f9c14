"""The settings of this job."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from bytewax_jetstream.settings import JetStreamSettings, KafkaSettings

from .run_directory import RunDirectory

__all__ = ["FlightsBroker", "FlightsSettings"]

FlightsBroker = JetStreamSettings | KafkaSettings
"""Where this job publishes: only of these two can it read back what is stored."""


class FlightsSettings(BaseSettings):
    """This job's own settings (`FLIGHTS_…`); `BYTEWAX_JETSTREAM_…` says how to reach the broker."""

    model_config = SettingsConfigDict(env_prefix="FLIGHTS_")

    broker: Literal["jetstream", "kafka"] = "jetstream"
    """Where the flights go."""
    run_dir: Path = Path(__file__).parents[1] / ".run"
    """Where the run keeps the embedded broker's data, the results and the recovery store."""
    partitions: PositiveInt = 4
    """How many partitions the input has; a run must be resumed with the number it began with."""
    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """How many servers keep each message, at least; only for JetStream."""
    limit: PositiveInt | None = None
    """Read only this many rows, from the beginning of the year."""

    @property
    def directory(self) -> RunDirectory:
        """The run directory, by the names of its files."""
        return RunDirectory(self.run_dir)
