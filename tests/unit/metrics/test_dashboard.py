"""The Grafana dashboard is what its script makes, and asks for what there is."""

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bytewax_jetstream.metrics import table
from k8s.components.monitoring.panels import ROWS
from tests.support.metrics import names_in, promtool

PATH = Path(__file__).parents[3] / "k8s/components/monitoring/dashboard.json"
GIVEN = {"namespace", "job", "instance", "le"}
"""Labels that Prometheus gives, and that of buckets."""
SUFFIXES = ("", "_bucket", "_sum", "_count")


def _panels() -> list[dict[str, Any]]:
    panels = json.loads(PATH.read_text())["panels"]
    return [panel for panel in panels if panel["type"] != "row"]


def _queries() -> list[str]:
    return [target["expr"] for panel in _panels() for target in panel["targets"]]


def test_dashboard_is_what_its_script_makes() -> None:
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        if os.environ.get("REQUIRE_BROKERS") == "1":
            pytest.fail("the dependency group dashboard is required here")
        pytest.skip("the dependency group dashboard is not installed: make metrics installs it")
    from k8s.components.monitoring.dashboard import as_json

    assert PATH.read_text() == as_json(), "run: make metrics"


def test_dashboard_has_every_panel_with_all_of_its_queries() -> None:
    wanted = [panel for _, panels in ROWS for panel in panels]
    assert [panel["title"] for panel in _panels()] == [panel.title for panel in wanted]
    assert _queries() == [query.promql for panel in wanted for query in panel.queries]
    numbers = [panel["id"] for panel in _panels()]
    assert len(set(numbers)) == len(numbers) > 10


def test_every_query_asks_for_a_metric_and_labels_that_there_are() -> None:
    known = {
        f"{each.name}{suffix}": set(each.labels)
        for each in table.METRICS
        for suffix in (SUFFIXES[1:] if each.kind == "histogram" else SUFFIXES[:1])
    }
    for query in _queries():
        names = names_in(query)
        assert names, query
        assert names <= known.keys(), query
        labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", query))
        for group in re.findall(r"by \(([^)]*)\)", query):
            labels |= {each.strip() for each in group.split(",")}
        assert labels <= set.union(*(known[name] for name in names)) | GIVEN, query


def test_legends_name_labels_that_their_query_keeps() -> None:
    for panel in _panels():
        for target in panel["targets"]:
            kept = {
                label.strip()
                for group in re.findall(r"by \(([^)]*)\)", target["expr"])
                for label in group.split(",")
            }
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, target


def test_promtool_understands_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(_queries())
    ]
    groups = {"groups": [{"name": "panels", "rules": rules}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    said = promtool("check", "rules", "rules.yaml", cwd=tmp_path)
    assert f"{len(rules)} rules found" in said
