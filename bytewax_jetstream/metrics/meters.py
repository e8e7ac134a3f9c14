"""`watch`, `retire`: what is read when somebody scrapes, and the totals of what has ended.

A counter never goes down while its process lives: what ends leaves its counts behind. A forked
child begins at 0 and reads nothing of its parent.
"""

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from . import table
from .spread import Spread
from .table import Metric

__all__ = ["Meter", "Sample", "retire", "watch"]

log = logging.getLogger(__name__)

Value = float | Spread


class Sample(NamedTuple):
    """One value of a metric."""

    metric: Metric
    labels: tuple[str, ...]
    """In the order of the metric's."""
    value: Value


class Meter(Protocol):
    """Something that counts."""

    def samples(self) -> Iterable[Sample]:
        """Its values now. Called on the thread of the scrape, which must not wait for anything."""


class _Process:
    """Everything that counts in this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held while anything is read, so that what is retired is counted once."""
        self.live: dict[Meter, list[Sample]] = {}
        """With what each has said last."""
        self.ended: dict[Metric, dict[tuple[str, ...], Value]] = {}
        """Totals of what was retired."""
        self.failed = 0

    def read(self) -> dict[Metric, dict[tuple[str, ...], Value]]:
        """The value of each metric, by labels."""
        values: dict[Metric, dict[tuple[str, ...], list[Value]]] = {}
        with self.lock:
            for metric, by_labels in self.ended.items():
                for labels, value in by_labels.items():
                    values.setdefault(metric, {}).setdefault(labels, []).append(value)
            for meter in list(self.live):
                for metric, labels, value in self._samples(meter):
                    values.setdefault(metric, {}).setdefault(labels, []).append(value)
            values[table.SCRAPE_ERRORS] = {(): [self.failed]}
        return {
            metric: {labels: _merged(metric, each) for labels, each in by_labels.items()}
            for metric, by_labels in values.items()
        }

    def retire(self, meter: Meter) -> None:
        with self.lock:
            if meter not in self.live:
                return
            samples = self._samples(meter)
            del self.live[meter]
            for metric, labels, value in samples:
                if metric.kind == "gauge":
                    continue
                totals = self.ended.setdefault(metric, {})
                before = [totals[labels]] if labels in totals else []
                totals[labels] = _merged(metric, [*before, value])

    def _samples(self, meter: Meter) -> list[Sample]:
        try:
            self.live[meter] = list(meter.samples())
        except Exception:
            # One that cannot be read must not hide the others, nor Bytewax's own metrics; and a
            # counter must not go down.
            self.failed += 1
            log.exception("the metrics of %r cannot be read", meter)
        return self.live[meter]


class _Collector:
    """What the registry of `prometheus_client` asks at each scrape."""

    def describe(self) -> Iterator[Any]:
        """The families, without a value: the registry looks whether their names are free."""
        return (_family(metric, {}) for metric in table.METRICS)

    def collect(self) -> Iterator[Any]:
        """The families that have a value."""
        values = _process.read()
        return (_family(metric, values[metric]) for metric in table.METRICS if metric in values)


_process = _Process()
_registered = False


def watch(meter: Meter) -> None:
    """Read it at each scrape, from now on; the first one registers the metrics."""
    global _registered
    with _process.lock:
        _process.live.setdefault(meter, [])
        if not _registered:
            _registered = True
            from prometheus_client import REGISTRY  # where a pool is used: it loads a web server

            REGISTRY.register(_Collector())


def retire(meter: Meter) -> None:
    """It has ended: its counts stay, its gauges go. Does nothing if it is not watched."""
    _process.retire(meter)


def _forget_parent() -> None:
    global _process
    _process = _Process()


os.register_at_fork(after_in_child=_forget_parent)


def _merged(metric: Metric, values: list[Value]) -> Value:
    if metric.kind == "histogram":
        total = Spread(metric.buckets)
        for value in values:
            assert isinstance(value, Spread), "a histogram has spreads"
            total += value
        return total
    return metric.merge([value for value in values if not isinstance(value, Spread)])


def _family(metric: Metric, values: dict[tuple[str, ...], Value]) -> Any:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    kinds = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    family: Any = kinds[metric.kind](metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        if isinstance(value, Spread):
            family.add_metric(labels, value.cumulative(), value.sum)
        else:
            family.add_metric(labels, value)
    return family
