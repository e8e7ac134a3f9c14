"""The directory of a run: what is in it, who may use it, and when it is cleared."""

import atexit
import fcntl
import shutil
from pathlib import Path
from typing import TextIO

from .errors import RunDirectoryError

__all__ = ["RunDirectory"]


class RunDirectory:
    """Where a run keeps what it must not lose; one run at a time may use it.

    :arg path: The directory; it may hold other files, which are never touched.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recovery = path / "db"
        """Bytewax's recovery store."""
        self.nats = path / "nats"
        """The embedded nats-server's store."""
        self.kafka = path / "kafka"
        """The embedded Kafka broker's logs."""
        self.results = path / "results.sqlite"
        """The database of results and checkpoints."""
        self.summary = path / "summary.json"
        """Written when a run is complete."""

    def claim(self) -> TextIO:
        """Make the directory and lock it, until the returned file is closed or the process ends.

        :raises RunDirectoryError: when it cannot be written, or another run is using it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("w")
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {self.path} cannot be written ({error.strerror}): "
                "make it writable, or set FLIGHTS_RUN_DIR to another directory"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunDirectoryError(
                f"another run is using {self.path}: wait until it ends, stop it, "
                "or set FLIGHTS_RUN_DIR to another directory"
            ) from None
        atexit.register(lock.close)
        return lock

    def has_unfinished_run(self) -> bool:
        """Whether a run was started here and did not complete."""
        return not self.summary.exists() and any(self.recovery.glob("*.sqlite3"))

    def clear(self) -> None:
        """Delete the files of the last run."""
        # The recovery store first: if a crash interrupts this, the next start finds no unfinished
        # run and clears the rest.
        for folder in (self.recovery, self.nats, self.kafka):
            if folder.exists():
                shutil.rmtree(folder)
        wal, shared_memory = (f"{self.results.name}{suffix}" for suffix in ("-wal", "-shm"))
        for name in (self.results.name, wal, shared_memory, self.summary.name):
            (self.path / name).unlink(missing_ok=True)
