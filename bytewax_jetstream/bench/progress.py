"""The terminal: a progress bar during a run, and the tables at its end."""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich import box, progress
from rich.console import Console
from rich.table import Table as RichTable

from .cases import Case
from .tables import Table

__all__ = ["Progress", "show_tables"]


class Progress:
    """A bar that is drawn between rounds only, so that no thread disturbs the measurement."""

    def __init__(self, cases: int, rounds: int) -> None:
        self._rounds = rounds
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=cases * (rounds + 1))
        self._begun = 0

    def show(self, case: Case, number: int) -> None:
        """Show which round begins."""
        which = f"round {number} of {self._rounds}" if number else "practice"
        text = (
            f"{case.scenario}: {case.broker} {case.strategy}, {case.storage}, {case.ids}, {which}"
        )
        self._bar.update(self._task, completed=self._begun, description=f"{text:58}")
        self._begun += 1
        self._bar.refresh()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


def show_tables(found: Iterable[Table], about: str) -> None:
    """Print tables to stdout; in full width when it is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = 320
    console.print(about, markup=False)
    for table in found:
        drawn = RichTable(
            title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for number, name in enumerate(table.header):
            drawn.add_column(name, justify="right" if number else "left", overflow="fold")
        for line in table.lines:
            drawn.add_row(*line)
        console.print(drawn)
