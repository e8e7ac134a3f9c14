"""Small programs in processes of their own, if wanted as process 1 of a PID namespace, as in a
container.
"""

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import until

__all__ = ["AS_PROCESS_1", "Program", "as_process_1"]

ROOT = Path(__file__).parents[2]
AS_PROCESS_1 = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
"""The kernel treats process 1 differently: a signal that it does not handle does nothing."""


@cache
def _may_unshare() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*AS_PROCESS_1, "true"], capture_output=True, check=False).returncode
        == 0
    )


def as_process_1() -> tuple[str, ...]:
    """What to put before a command; skips the test where it is not allowed."""
    if not _may_unshare():
        pytest.skip("this user may not make a PID namespace")
    return AS_PROCESS_1


class Program:
    """A running Python program that logs to a file; killed at the end of `with`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, *, inside: bool) -> None:
        self._process = process
        self._log = log
        self._inside = inside

    @classmethod
    @contextmanager
    def of(
        cls, text: str, *arguments: object, folder: Path, before: tuple[str, ...] = ()
    ) -> Iterator["Program"]:
        """Start a program.

        :arg before: Command that starts the program as its own child.
        """
        log = folder / "log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*before, sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
                cwd=ROOT,
                stdout=file,
                stderr=file,
            )
        try:
            yield cls(process, log, inside=bool(before))
        finally:
            process.kill()
            process.wait()

    @property
    def log(self) -> str:
        """What it printed and logged."""
        return self._log.read_text()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def says(self, words: str, seconds: float = 60) -> None:
        """Wait until it has printed or logged these words."""
        until(lambda: words in self.log or not self.running, seconds)
        assert words in self.log, self.log

    def signal(self, number: int) -> None:
        """Send a signal to the program, not to the command before it."""
        process = psutil.Process(self._process.pid)
        (process.children()[0] if self._inside else process).send_signal(number)

    def signal_child(self, number: int) -> None:
        """Send a signal to the program's only child."""
        (child,) = psutil.Process(self._process.pid).children()
        child.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Its exit code; it must end within that time."""
        return self._process.wait(seconds)
