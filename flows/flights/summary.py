"""The summary of a complete run: what was published, what the broker holds, what is wrong."""

import json
from dataclasses import asdict, dataclass

from rich.table import Table

__all__ = ["Resumed", "Summary"]


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a resumed run began."""

    stored: int
    """Messages that the broker had already."""
    rows: dict[str, int]
    """The first row of each partition."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What `summary.json` says, in its order."""

    published: int
    acknowledged: int
    stored: int
    dead_lettered: int
    duplicates: int
    missing: int
    order_violations: int
    broker: str
    results: int
    msgs_per_s: int
    seconds: float
    resumed_from: Resumed | None
    setup_seconds: float
    count_seconds: float
    workers: int
    results_by_worker: dict[str, int]

    def as_json(self) -> str:
        """The text of `summary.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def as_table(self) -> Table:
        """A table for the terminal."""
        table = Table(
            title="A year of flights, counted from the broker", show_header=False, min_width=50
        )
        for key, value in asdict(self).items():
            table.add_row(key.replace("_", " "), _text(value))
        return table

    def problems(self) -> list[str]:
        """A sentence for each promise that the run broke; an empty list when all is well."""
        found = (
            (self.missing, "rows are in no stream"),
            (0 if self._may_repeat else self.duplicates, "messages are stored twice"),
            (self.order_violations, "messages are stored before an earlier one of their aircraft"),
        )
        wrong = [f"{number:,} {what}" for number, what in found if number]
        if self.results != self.published:
            wrong.append(
                f"{self.published:,} rows were published, but there are {self.results:,} results"
            )
        if self.resumed_from is None and len(self.results_by_worker) != self.workers:
            wrong.append(f"not every worker published: {self.results_by_worker}")
        return wrong

    @property
    def _may_repeat(self) -> bool:
        """A resumed run publishes its last epoch again; Kafka stores it twice."""
        return self.broker == "kafka" and self.resumed_from is not None


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int | float) else json.dumps(value)
