"""`RecoveryDirectory`: its part files are made, checked, and used by one process at a time.

A store has a fixed number of parts. Bytewax reads them wherever they are, and does not notice when
there are two sets: then every source starts at its beginning. So each process of a cluster keeps
its own share in its own directory, and nothing else: of `n` processes, process `i` keeps the parts
`i`, `i + n`, `i + 2n` and so on. Empty directories get their parts only when no process of the
dataflow has a used one.
"""

import fcntl
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from bytewax.recovery import RecoveryConfig, init_db_dir

from ..errors import RunError
from ..exit_codes import ExitCode
from .cluster import Cluster

__all__ = ["Recovery", "RecoveryDirectory", "Store"]

LOCK = ".lock"
PARTS = 4
"""How many parts a store gets by default."""


class Recovery(NamedTuple):
    """Where the recovery store is, and how it is kept."""

    directory: Path
    parts: int | None
    """How many parts the whole store has, over all processes. None: as many as it has, or 4, and
    at least one for each process, when it is made. The number never changes after that, and limits
    how many processes the dataflow can have.
    """
    backup_interval: timedelta
    """For how long old epochs are kept, for backups of the part files."""


class Store(StrEnum):
    """What a recovery directory holds."""

    EMPTY = "empty"
    MADE = "made"
    """All parts of its share, without any epoch."""
    USED = "used"


class RecoveryDirectory:
    """The share of the recovery store that one process keeps, locked while it lives.

    The lock is the operating system's (`flock`): it ends with the process, also at kill -9.

    :arg recovery: What the options say.
    :arg cluster: Which share this process keeps.
    """

    def __init__(self, recovery: Recovery, cluster: Cluster) -> None:
        self._directory = recovery.directory
        self._asked = recovery.parts
        self.parts = 0
        """How many parts the whole store has, or is going to have; known once it is claimed."""
        self._backup_interval = recovery.backup_interval
        self._cluster = cluster
        self._lock: int | None = None

    def claim(self) -> Store:
        """Make the directory, lock it, and look what it holds.

        :raises RunError: when it cannot be written, another process uses it, or it holds anything
            else than the share of this process.
        """
        directory = self._directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(
                f"the recovery directory {directory} cannot be written ({error.strerror}): mount a "
                "volume there that this user may write to, or name another directory",
                directory=str(directory),
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise RunError(
                f"another process uses the recovery directory {directory}: two runs of one "
                "dataflow would repeat and lose messages; end the other, or name another directory",
                exit_code=ExitCode.LOCKED,
                directory=str(directory),
            ) from None
        except OSError as error:
            self.release()
            raise RunError(
                f"the recovery directory {directory} cannot be locked ({error.strerror}): name one "
                "on a file system that supports flock",
                directory=str(directory),
            ) from None
        os.register_at_fork(after_in_child=self.release)  # or a child would keep it locked
        return self._look()

    def release(self) -> None:
        """Let another process use it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def make(self) -> None:
        """Make the parts that are not there.

        They are complete before they get their names, so a crash leaves no broken part.
        """
        try:
            with tempfile.TemporaryDirectory(dir=self._directory, prefix=".making-") as making:
                init_db_dir(Path(making), self.parts)
                for index in self._share():
                    made, name = Path(making) / _name(index), self._directory / _name(index)
                    if not name.exists():
                        made.rename(name)
        except Exception as error:  # the engine has none of its own for a full disk
            raise RunError(
                f"the recovery store cannot be made in {self._directory} ({error}): mount a volume "
                "there that this user may write to and that has room",
                directory=str(self._directory),
            ) from error

    def config(self) -> RecoveryConfig:
        """What the engine is given."""
        return RecoveryConfig(self._directory, self._backup_interval)

    def _share(self) -> set[int]:
        return set(range(self._cluster.process, self.parts, self._cluster.size))

    def _look(self) -> Store:
        directory, size = self._directory, self._cluster.size
        for left in directory.glob(".making-*"):
            # Of a run that was killed; the lock is ours. What cannot be removed does no harm.
            shutil.rmtree(left, ignore_errors=True)
        held: dict[int, int] = {}
        used = False
        for path in sorted(directory.glob("part-*.sqlite3")):
            index, count, rows = self._read(path)
            held[index] = count
            used |= rows
        self.parts = self._asked or next(iter(held.values()), max(PARTS, size))
        if self.parts < size:
            raise RunError(
                f"the recovery store has {self.parts} parts, and the dataflow {size} processes, "
                "each of which keeps at least one: run at most so many processes",
                directory=str(directory),
            )
        share = self._share()
        for index, count in held.items():
            if count != self.parts:
                raise RunError(
                    f"part {index} in {directory} is of a store of {count} parts, not of "
                    f"{self.parts}: the number is fixed when a store is made; run with --parts "
                    f"{count}, or name another directory",
                    directory=str(directory),
                )
            if index not in share:
                raise RunError(
                    f"{directory} holds part {index}, which belongs to process "
                    f"{index % size} of {size}, not to process "
                    f"{self._cluster.process}: after a change of the number of processes, move "
                    "the part files first, with their -wal and -shm files",
                    directory=str(directory),
                )
        missing = sorted(share - held.keys())
        if used and missing:
            raise RunError(
                f"{directory} lacks part {', '.join(map(str, missing))} of the recovery store, and "
                "has others: move the missing files there, with their -wal and -shm files, or "
                "restore a backup",
                directory=str(directory),
            )
        if used:
            return Store.USED
        return Store.MADE if share and not missing else Store.EMPTY

    def _read(self, path: Path) -> tuple[int, int, bool]:
        """Index, count of parts, and whether a run has used it."""
        if not os.access(path, os.R_OK | os.W_OK):
            raise RunError(
                f"{path} cannot be read or written: let this user do so",
                directory=str(self._directory),
            )
        try:
            # Not read-only: the log of a killed process may have to be played first.
            with closing(
                sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=5)
            ) as part:
                (index, count) = part.execute("SELECT part_index, part_count FROM parts").fetchone()
                tables = ("exs", "fronts", "commits", "snaps")
                rows = any(part.execute(f"SELECT 1 FROM {t} LIMIT 1").fetchone() for t in tables)
        except (sqlite3.Error, TypeError) as error:
            raise RunError(
                f"{path} is not a part of a recovery store ({error}): restore it from a backup, or "
                "name another directory",
                directory=str(self._directory),
            ) from None
        if path.name != _name(index):
            raise RunError(
                f"{path} is part {index} of the recovery store under another name: rename it to "
                f"{_name(index)}, unless that is there",
                directory=str(self._directory),
            )
        return index, count, rows


def _name(index: int) -> str:
    return f"part-{index}.sqlite3"
