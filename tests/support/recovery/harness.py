"""A dataflow in a process of its own, killed and resumed until it ends by itself."""

import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil

from tests.support.dataflows import recovery_store
from tests.support.recovery.board import Board, Slot
from tests.support.recovery.child import Orders
from tests.support.recovery.judge import Evidence
from tests.support.recovery.rows import PARTS, STREAM, TOPICS
from tests.support.streams import make_stream, stored
from tests.support.waiting import PATIENCE, until

__all__ = ["ROOMY", "Pipeline"]

ROOT = Path(__file__).parents[3]
ROOMY = 100_000
"""A budget that an epoch does not spend, so that its end is reached with a server that does not
answer.
"""


class Pipeline:
    """The dataflow, its stream, its recovery store and what it keeps; at most one run at a time.

    :arg batched: Whether the stream takes batches.
    """

    def __init__(self, directory: Path, server: Any, *, batched: bool = False) -> None:
        self.server = server
        self._batched = batched
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
        given = Orders(str(self._directory), self._url, self.runs, **{**self.orders, **orders})
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
        code = self._process.wait(PATIENCE)
        self._process = None
        assert code == -signal.SIGKILL, f"it ended by itself, {code}:\n{self._log.read_text()}"
        self._read_resumed()
        return self.board[Slot.UNSETTLED]

    def finish(self, **orders: Any) -> Evidence:
        """One more run, to the end of all that was ever made; returns what all runs left behind."""
        self.start(**orders)
        self.board[Slot.STOP] = 1
        assert self._process is not None
        code = self._process.wait(PATIENCE)
        self._process = None
        assert code == 0, f"it failed with {code}:\n{self._log.read_text()}"
        self._read_resumed()
        return self._evidence()

    def close(self) -> None:
        """Leave no process behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    orders: ClassVar[dict[str, Any]] = {}
    """What every run is told."""

    @property
    def _url(self) -> str:
        return str(self.server.url)

    def _prepare(self) -> None:
        make_stream(self.server.url, STREAM, TOPICS, storage="file", allow_batched=self._batched)

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    def _evidence(self) -> Evidence:
        return Evidence(
            made=[self.board.made_by(part) for part in range(PARTS)],
            messages=stored(self.server.url, STREAM),
            results=[*self._kept("oks"), *self._kept("errs")],
            checkpoints=list(self._kept("checkpoints")),
            left=self.board[Slot.LEFT],
            resumed=self._resumed,
        )

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
