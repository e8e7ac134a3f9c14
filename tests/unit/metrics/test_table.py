"""Names, labels and meanings of the metrics, and the page that has them."""

import re
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from bytewax_jetstream.dispatch.retries import Retries, Why
from bytewax_jetstream.metrics import page, table
from bytewax_jetstream.metrics.meters import _family
from bytewax_jetstream.metrics.spread import Spread
from tests.support.metrics import promtool

ROOT = Path(__file__).parents[3]
BOUNDED = {
    "broker",
    "partition",
    "reason",
    "result",
    "step_id",
    "stream",
    "worker_index",
}


def test_page_has_the_table_of_this_code() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    assert text == page.fill(text), "run: make metrics"


def test_page_without_the_marks_is_not_filled() -> None:
    with pytest.raises(ValueError, match="0 found"):
        page.fill("no marks")


def test_names_are_unique_and_say_what_they_count() -> None:
    names = [each.name for each in table.METRICS]
    assert len(set(names)) == len(names) > 30
    for each in table.METRICS:
        assert re.fullmatch(r"bytewax_jetstream_[a-z_]+", each.name)
        assert each.name.endswith("_total") == (each.kind == "counter"), each.name
        assert (each.kind == "histogram") == bool(each.buckets), each.name
        assert each.help.endswith("."), each.name


def test_labels_have_few_values() -> None:
    assert {label for each in table.METRICS for label in each.labels} == BOUNDED
    for each in table.METRICS:
        assert "stream" not in each.labels or each.labels == table.SOURCE, each.name


def test_reasons_of_retries_are_those_that_are_counted() -> None:
    assert list(table.RETRY_REASONS) == list(get_args(Why)) == list(Retries().by_reason)


def test_promtool_finds_nothing_wrong_with_the_names() -> None:
    class All:
        def collect(self) -> object:
            for metric in table.METRICS:
                labels = tuple("x" for _ in metric.labels)
                value = Spread(metric.buckets) if metric.buckets else 1.0
                yield _family(metric, {labels: value})

    registry = CollectorRegistry()
    registry.register(All())  # type: ignore[arg-type]
    assert promtool("check", "metrics", given=generate_latest(registry).decode()) == ""
