"""Commands of `bytewax-jetstream`, called in this process or started as a process of their own."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bytewax_jetstream.cli import main
from tests.support.waiting import PATIENCE, until

__all__ = ["Ended", "Given", "Started", "call", "start"]

Given = Callable[..., None]
"""Sets variables of ours: `given(servers=…, kafka_brokers=…)`."""


class Ended(NamedTuple):
    """How a command ended, and what it has printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it has printed, read."""
        return json.loads(self.out)


def call(*arguments: str) -> Ended:
    """Call a command in this process; never with a traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return Ended(code, out.getvalue(), err.getvalue())


class Started:
    """A command that runs, with its output in files."""

    def __init__(self, running: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.running = running
        self._out, self._err = out, err

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it has said so far."""
        return self._err.read_text()

    def wait_until_it_says(self, text: str) -> None:
        """Wait until it has said that, or has ended; a Kafka may have to start first."""
        until(lambda: text in self.err or self.running.poll() is not None, 3 * PATIENCE)
        assert text in self.err, self.err

    def end(self, signal: int) -> int:
        """Send a signal; returns the exit code."""
        self.running.send_signal(signal)
        return self.running.wait(60)


@contextlib.contextmanager
def start(*arguments: str, folder: Path, **variables: str) -> Iterator[Started]:
    """Start a command; killed at the end of `with` unless it has ended."""
    number = len(list(folder.glob("*.out")))
    out, err = folder / f"{number}.out", folder / f"{number}.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        running = subprocess.Popen(
            [sys.executable, "-m", "bytewax_jetstream.cli", *arguments],
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **variables},
        )
    try:
        yield Started(running, out, err)
    finally:
        running.kill()
        running.wait()
