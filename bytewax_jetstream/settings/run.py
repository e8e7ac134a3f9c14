"""`RunSettings`: what `bytewax-jetstream run` can be told by variables."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from .sources import PREFIX, Count, Seconds, Settings

__all__ = ["RunSettings"]

Port = Annotated[int, Field(ge=1, le=65_535)]


class RunSettings(Settings):
    """How the command runs a dataflow (`BYTEWAX_JETSTREAM_RUN_…`); an option of the command goes
    before its variable.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX + "RUN_")

    parts: Count | None = None
    """How many parts the recovery store gets when it is made, over all processes."""
    health_host: str = "0.0.0.0"  # probes come from outside of a container
    """The address on which health is served."""
    health_port: Port | None = None
    """The port on which health is served; None: not at all, or 8081 when there are several
    processes, which ask each other there.
    """
    start_timeout: Seconds = 600.0
    """Seconds to wait for the other processes of the dataflow."""
    log_format: Literal["text", "json"] = "text"
    """One line a record, as text or as a JSON object."""
    must_finish: bool = False
    """Whether a run that a signal ends before the end of its input exits with 143 instead of 0: a
    Kubernetes Job counts a pod that exits with 0 as complete.
    """
