"""`Life`: what this process is doing, for its health port, its peers and its logs."""

import secrets
from enum import StrEnum

from .. import drain

__all__ = ["Life", "Phase"]


class Phase(StrEnum):
    """Where a run is between its start and its end."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"


class Life:
    """The state of one run; written by the runner, read by the health port.

    :arg process: The number of this process in its dataflow.
    """

    def __init__(self, process: int) -> None:
        self.process = process
        self.instance = secrets.token_hex(8)
        """Another at each start, so that peers see a restart that was too fast to be missed."""
        self.step = "the command line is read"
        """What is being done while it starts."""
        self.store: str | None = None
        """What the recovery directory held at the start; None without recovery, or not yet known.
        """
        self.parts = 0
        self.peers: dict[str, str] = {}
        """The instances that it runs with, by the numbers of their processes; empty while it waits
        for them."""
        self.refusal: str | None = None
        """Why the dataflow cannot run, as this process found."""
        self.is_ready_to_run = False
        """Whether it has nothing to wait for but its peers."""

    @property
    def phase(self) -> Phase:
        """What the engine and a signal have made of it."""
        if drain.requested():
            return Phase.DRAINING
        return Phase.RUNNING if drain.running() else Phase.STARTING
