"""What is read at a scrape, what stays of what has ended, and what a forked child has."""

import logging
import os
from collections.abc import Iterable, Iterator

import pytest
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from bytewax_jetstream.metrics import (
    Sample,
    Spread,
    barrier_waited,
    lane_counts,
    retire,
    table,
    watch,
)
from tests.support.metrics import scrape


class Fixed:
    """A meter with these values."""

    def __init__(self, *samples: Sample) -> None:
        self._samples = samples

    def samples(self) -> Iterable[Sample]:
        return self._samples


class Broken:
    """A meter that cannot be read."""

    def samples(self) -> Iterator[Sample]:
        yield Sample(table.LATE_ACKS, ("broken",), 3)
        raise RuntimeError("the queue changed meanwhile")


class Failing:
    """A meter that can be read for a while."""

    fails = False

    def samples(self) -> Iterator[Sample]:
        if self.fails:
            raise RuntimeError("the queue changed meanwhile")
        yield Sample(table.LATE_ACKS, ("failing",), 3)


def test_equal_labels_are_one_value() -> None:
    two = [
        Fixed(
            Sample(table.LATE_ACKS, ("one-value",), count),
            Sample(table.OLDEST_UNSETTLED, ("one-value",), age),
            Sample(table.CONNECTED, ("one-value",), connected),
        )
        for count, age, connected in ((2, 7.0, 1), (3, 5.0, 0))
    ]
    for meter in two:
        watch(meter)
        watch(meter)  # which counts once
    try:
        seen = scrape()
        assert seen.each("late_acks_total", broker="one-value") == [5]
        assert seen.each("oldest_unsettled_seconds", broker="one-value") == [7]
        assert seen.each("connected", broker="one-value") == [0]
    finally:
        for meter in two:
            retire(meter)


def test_counts_of_what_has_ended_stay_and_its_gauges_go() -> None:
    spread = Spread(table.BARRIER_WAIT.buckets)
    spread.add(0.3, 2)
    for _ in range(2):
        meter = Fixed(
            Sample(table.RETRIES, ("ended", "timeout"), 4),
            Sample(table.LANES, ("ended",), 1),
            Sample(table.BARRIER_WAIT, ("ended",), spread),
        )
        watch(meter)
        retire(meter)
        retire(meter)  # which counts once

    seen = scrape()
    assert seen.each("retries_total", broker="ended", reason="timeout") == [8]
    assert seen.each("lanes", broker="ended") == []
    assert seen.each("barrier_wait_seconds_bucket", step_id="ended", le="0.25") == [0]
    assert seen.each("barrier_wait_seconds_bucket", step_id="ended", le="0.5") == [4]
    assert seen.each("barrier_wait_seconds_sum", step_id="ended") == [pytest.approx(1.2)]


def test_meter_that_cannot_be_read_hides_no_other_and_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = scrape().sum("scrape_errors_total")
    broken, good = Broken(), Fixed(Sample(table.LATE_ACKS, ("good",), 1))
    watch(broken)
    watch(good)
    try:
        with caplog.at_level(logging.ERROR):
            seen = scrape()
    finally:
        retire(broken)
        retire(good)

    assert seen.each("late_acks_total", broker="good") == [1]
    assert seen.sum("scrape_errors_total") == before + 1
    assert "the queue changed meanwhile" in caplog.text


def test_counter_of_a_meter_that_cannot_be_read_any_more_does_not_go_down() -> None:
    meter = Failing()
    watch(meter)
    try:
        assert scrape().each("late_acks_total", broker="failing") == [3]
        meter.fails = True
        assert scrape().each("late_acks_total", broker="failing") == [3]
    finally:
        retire(meter)
    assert scrape().each("late_acks_total", broker="failing") == [3]


def test_metrics_are_registered_once() -> None:
    watch(Fixed())
    watch(Fixed())
    types = [line for line in scrape().text.splitlines() if line.startswith("# TYPE bytewax_jet")]
    assert len(set(types)) == len(types) > 0
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        REGISTRY.register(Named("bytewax_jetstream_submitted"))


class Named(Collector):
    """Claims a name of ours."""

    def __init__(self, name: str) -> None:
        self._name = name

    def describe(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, "")

    def collect(self) -> Iterator[Metric]:
        return iter(())


def test_forked_child_begins_at_zero_and_reads_nothing_of_its_parent() -> None:
    lane_counts("fake", "forked", 0).submitted(5)
    barrier_waited("forked", 0.1)
    meter = Fixed(Sample(table.LATE_ACKS, ("forked",), 3))
    watch(meter)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        lane_counts("fake", "forked", 0).submitted(1)
        seen = scrape()
        figures = (
            seen.each("submitted_total", step_id="forked"),
            seen.each("late_acks_total", broker="forked"),
            seen.each("barrier_wait_seconds_count", step_id="forked"),
        )
        os.write(writing, repr(figures).encode())
        os._exit(0)
    os.waitpid(child, 0)
    retire(meter)

    assert os.read(reading, 1000).decode() == "([1.0], [], [])"
    assert scrape().each("submitted_total", step_id="forked") == [5]
