"""A dataflow in a process of its own, killed and resumed until it ends by itself."""

import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psutil

from bytewax_jetstream.envelope import PublishResult
from tests.support.dataflows import recovery_store
from tests.support.recovery.board import Board, Slot
from tests.support.recovery.child import Orders
from tests.support.recovery.judge import Evidence
from tests.support.recovery.rows import PARTS, STREAM, TOPICS
from tests.support.streams import Stored, make_stream, stored
from tests.support.waiting import PATIENCE, until

__all__ = ["ROOMY", "Pipeline"]

ROOT = Path(__file__).parents[3]
ROOMY = 100_000
"""A budget that an epoch does not spend, so that its end is reached with a server that does not
answer.
"""
DUPLICATE_WINDOW = 600
"""Seconds that no test takes, however busy the machine is."""


class Pipeline:
    """The dataflow, its stream, its recovery store and what it keeps; at most one run at a time.

    :arg batched: Whether the stream takes batches.
    :arg through: URL that the dataflow connects to, if it is not the server's.
    :arg orders: What every run is told, fields of `Orders`.
    """

    def __init__(
        self,
        directory: Path,
        server: Any,
        *,
        batched: bool = False,
        replicas: int = 1,
        through: str | None = None,
        **orders: Any,
    ) -> None:
        self.server = server
        self._batched, self._replicas = batched, replicas
        self._through = through
        self.orders = {**self.orders, **orders}
        self.runs = 0
        self._directory = directory
        self._store = recovery_store(directory / "recovery", 2)
        self._resumed: dict[int, int] = {}
        self._executions = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self.board = Board(directory / "board")
        self._prepare()

    def start(self, **orders: Any) -> Self:
        """Start a run; `orders` are fields of `Orders`. A frozen server thaws when the run has
        reached its socket.
        """
        assert self._process is None, "one run at a time"
        self.runs += 1
        self.board.new_run()
        url = self._through or self._url
        given = Orders(str(self._directory), url, self.runs, **{**self.orders, **orders})
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.recovery.child", given.to_json()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if self._frozen:
            process, run = self._process, psutil.Process(self._process.pid)
            until(lambda: process.poll() is not None or run.net_connections(), PATIENCE)
            self.server.resume()
            self._frozen = False
        return self

    def freeze(self) -> Self:
        """Pause the server, with whatever is on its way to it, until the next run."""
        self.server.pause()
        self._frozen = True
        return self

    def reach(self, condition: Callable[[Board], bool]) -> Self:
        """Wait until the board meets the condition."""
        assert self._process is not None
        process = self._process
        until(lambda: condition(self.board) or process.poll() is not None, PATIENCE)
        assert process.poll() is None, (
            f"it ended by itself, {process.returncode}:\n{self._log.read_text()}"
        )
        return self

    def kill(self) -> int:
        """SIGKILL; returns how many envelopes were without an ack then."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        return self.await_suicide()

    def await_suicide(self) -> int:
        """Wait until it has killed itself; returns how many envelopes were without an ack then."""
        assert self._process is not None
        code = self.await_end(PATIENCE)
        assert code == -signal.SIGKILL, f"it ended by itself, {code}:\n{self._log.read_text()}"
        return self.board[Slot.UNSETTLED]

    @property
    def running(self) -> bool:
        """Whether a run was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send the run a signal, unless it has ended."""
        assert self._process is not None
        self._process.send_signal(number)

    def await_end(self, seconds: float) -> int:
        """Wait until the run has ended; returns its exit code."""
        assert self._process is not None
        code = self._process.wait(seconds)
        self._process = None
        self._read_resumed()
        return code

    def finish(self, **orders: Any) -> Evidence:
        """One more run, to the end of all that was ever made; returns what all runs left behind."""
        self.start(**orders)
        self.board[Slot.STOP] = 1
        code = self.await_end(PATIENCE)
        assert code == 0, f"it failed with {code}:\n{self._log.read_text()}"
        return self.evidence()

    def close(self) -> None:
        """Leave no process behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    orders: Mapping[str, Any] = MappingProxyType({})
    """What every run is told."""

    @property
    def _url(self) -> str:
        return str(self.server.url)

    def _prepare(self) -> None:
        make_stream(
            self.server.url,
            STREAM,
            TOPICS,
            storage="file",
            num_replicas=self._replicas,
            allow_batched=self._batched,
            duplicate_window=int(DUPLICATE_WINDOW * 1e9),
        )

    @property
    def _log(self) -> Path:
        return self._directory / f"log-{self.runs}"

    def evidence(self) -> Evidence:
        """What all runs have left behind."""
        rows = self.orders.get("rows")
        return Evidence(
            made=[self.board.made_by(part) if rows is None else rows for part in range(PARTS)],
            messages=[self._without_padding(message) for message in self._stored()],
            results=self._results(),
            checkpoints=list(self._kept("checkpoints")),
            left=self.board[Slot.LEFT],
            resumed=self._resumed,
        )

    def _stored(self) -> list[Stored]:
        return stored(self.server.url, STREAM)

    def _results(self) -> list[tuple[int, PublishResult]]:
        return [*self._kept("oks"), *self._kept("errs")]

    def _without_padding(self, message: Stored) -> Stored:
        payload = message.payload.rstrip()
        whole = payload.ljust(self.orders.get("size", 0)) == message.payload
        return message._replace(payload=payload) if whole else message

    def _kept(self, what: str) -> Iterator[tuple[int, Any]]:
        for path in sorted(self._directory.glob(f"{what}-*.sqlite3")):
            for run, batch in _query(path, "SELECT run, batch FROM kept ORDER BY number"):
                yield from ((run, kept) for kept in pickle.loads(batch))

    def _read_resumed(self) -> None:
        """Where the run had resumed, as the engine wrote it; one killed before that has done
        nothing that counts.
        """
        executions = [
            execution
            for path in self._store.glob("*.sqlite3")
            for execution in _query(path, "SELECT ex_num, resume_epoch FROM exs")
        ]
        number, epoch = max(executions, default=(-1, 0))
        if number >= self._executions:
            self._executions = number + 1
            self._resumed[self.runs] = epoch


def _query(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()
