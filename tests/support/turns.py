"""Test processes side by side, and tests that need the machine for themselves."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["Turns"]


class Turns:
    """What the test processes of one run share: a test runs beside others, or alone.

    :arg folder: The same for all processes of a run, and of no other run.
    """

    def __init__(self, folder: Path) -> None:
        self._gate = (folder / "gate").open("w")
        self._machine = (folder / "machine").open("w")

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Wait for the machine, and keep it for the length of the block."""
        # Whoever waits for the machine holds the gate. Otherwise the others would take turns
        # sharing it, and a test that needs it alone would wait for the last of them.
        with _locked(self._gate, fcntl.LOCK_EX):
            fcntl.flock(self._machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._machine, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let others have the machine."""
        self._gate.close()
        self._machine.close()


@contextmanager
def _locked(file: IO[str], how: int) -> Iterator[None]:
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
