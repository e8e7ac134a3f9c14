"""The progress bar of the demo."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .audit import count_stored
from .brokers import stream_names
from .errors import AuditError
from .readers import open_reader
from .settings import FlightsBroker

__all__ = ["ProgressBar"]

TICK = 0.2
"""Seconds between two counts."""


class ProgressBar:
    """Shows how many rows the streams hold, counted over a connection of its own.

    :arg before: Rows that were stored before this run.
    :arg total: Rows of the input.
    """

    def __init__(self, broker: FlightsBroker, console: Console, *, before: int, total: int) -> None:
        self._progress = Progress(
            TextColumn("flights"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows stored"),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,  # a thread of rich's would be one more that competes for the GIL
        )
        self._task = self._progress.add_task("flights", completed=before, total=total, rate=0.0)
        self._broker = broker
        self._before = before
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="flights-progress", daemon=True)

    def __enter__(self) -> Self:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._progress.stop()

    def _watch(self) -> None:
        names = stream_names(self._broker)
        try:
            with open_reader(self._broker) as reader:
                while not self._over.wait(TICK):
                    self._show(count_stored(reader, names))
                self._show(count_stored(reader, names))
        except (AuditError, OSError):
            return  # the broker is gone: the dataflow itself reports it

    def _show(self, stored: int) -> None:
        rate = (stored - self._before) / (time.monotonic() - self._started)
        self._progress.update(self._task, completed=stored, rate=rate, refresh=True)
