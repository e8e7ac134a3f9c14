"""Processes of one dataflow, laid out as the pods of a StatefulSet, on loopback addresses."""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.request import urlopen

import psutil

from tests.support.child import FLOW
from tests.support.waiting import until

__all__ = ["Process", "Processes", "free_port", "start_run"]

ROOT = Path(__file__).parents[2]


PORTS = range(20_000, 32_000)
"""Systems give none of these to outgoing connections, so a free one stays free."""


def free_port() -> int:
    """A port that is free on all addresses."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


class Process:
    """A running `bytewax-jetstream run`, with its log."""

    def __init__(
        self, running: subprocess.Popen[bytes], log: Path, health: str, *, inside: bool = False
    ) -> None:
        self.running = running
        self._log = log
        self._health = health
        self._inside = inside

    @property
    def log(self) -> str:
        """What it and those before it in its place have logged."""
        return self._log.read_text()

    def state(self) -> str:
        """What its health port says it is doing; empty while nothing is served."""
        return str(self.ask("readyz")[1].get("state", ""))

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and answer of its health port; 0 and nothing while nothing is served."""
        try:
            with urlopen(f"http://{self._health}/{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except OSError as error:
            read = getattr(error, "read", None)
            return (error.code, json.loads(read())) if read is not None else (0, {})  # type: ignore[attr-defined]

    def until(self, condition: Callable[[], object], seconds: float = 180) -> None:
        """Wait until something is so while it runs."""
        until(lambda: condition() or self.running.poll() is not None, seconds)
        assert condition(), self.log

    def says(self, words: str, seconds: float = 180) -> None:
        """Wait until it has logged or printed these words."""
        until(lambda: words in self.log or self.running.poll() is not None, seconds)
        assert words in self.log, self.log

    def signal(self, number: int) -> None:
        """Send a signal to it, not to the command before it."""
        process = psutil.Process(self.running.pid)
        (process.children()[0] if self._inside else process).send_signal(number)

    def end(self, seconds: float = 180) -> int:
        """Its exit code; it must end within that time."""
        return self.running.wait(seconds)


@contextmanager
def start_run(
    flow: str,
    *options: object,
    log: Path,
    environment: dict[str, str],
    health: str = "",
    before: Sequence[str] = (),
    cwd: Path = ROOT,
) -> Iterator[Process]:
    """Start `bytewax-jetstream run`; killed at the end of `with` unless it has ended."""
    with log.open("ab") as file:
        running = subprocess.Popen(
            [*before, sys.executable, "-m", "bytewax_jetstream.cli", "run", flow]
            + [str(option) for option in options],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=file,
            stderr=file,
            cwd=cwd,
        )
    try:
        yield Process(running, log, health, inside=bool(before))
    finally:
        running.kill()
        running.wait()


class Emitting(Protocol):
    """What a dataflow is told, and what it has emitted since."""

    @property
    def environment(self) -> dict[str, str]: ...
    @property
    def emitted(self) -> Sequence[object]: ...


class Processes:
    """All processes of a dataflow.

    :arg told: What the dataflow is told.
    :arg folder: Gets `store-0`, `store-1` and so on, and the logs.
    :arg parts: Of the recovery store; each process has a directory of its own. None: there is none.
    """

    def __init__(
        self, told: Emitting, folder: Path, *, flow: str = FLOW, parts: int | None = 6
    ) -> None:
        self._told = told
        self._folder = folder
        self._flow = flow
        self._parts = parts

    def store(self, process: int) -> Path:
        """The recovery directory of a process."""
        return self._folder / f"store-{process}"

    @contextmanager
    def started(self, count: int, **environment: str) -> Iterator[list[Process]]:
        """Start so many; killed at the end of `with` unless they have ended."""
        hosts = [f"127.0.0.{2 + process}" for process in range(count)]
        port, health = free_port(), free_port()
        with ExitStack() as stack:
            yield [
                stack.enter_context(
                    start_run(
                        self._flow,
                        *(("--parts", self._parts, "-s", 1) if self._parts else ()),
                        log=self._folder / f"log-{process}",
                        health=f"{host}:{health}",
                        environment={
                            **self._told.environment,
                            "BYTEWAX_STATEFULSET_NAME": "orders",
                            "BYTEWAX_POD_NAME": f"orders-{process}",
                            "BYTEWAX_ADDRESSES": ";".join(f"{each}:{port}" for each in hosts),
                            "BYTEWAX_RECOVERY_DIRECTORY": (
                                str(self.store(process)) if self._parts else ""
                            ),
                            "BYTEWAX_JETSTREAM_RUN_HEALTH_HOST": host,
                            "BYTEWAX_JETSTREAM_RUN_HEALTH_PORT": str(health),
                            **environment,
                        },
                    )
                )
                for process, host in enumerate(hosts)
            ]

    def wait_for(self, count: int, running: list[Process]) -> None:
        """Wait until so many envelopes were emitted in all runs, or a process has ended."""
        until(
            lambda: (
                len(self._told.emitted) >= count
                or any(each.running.poll() is not None for each in running)
            ),
            300,
        )
        assert len(self._told.emitted) >= count, "\n".join(each.log for each in running)
