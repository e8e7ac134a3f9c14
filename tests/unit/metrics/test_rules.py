"""The alert rules are valid, fire when they should, and use metrics that there are."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bytewax_jetstream.metrics import table
from tests.support.metrics import names_in, promtool

ROOT = Path(__file__).parents[3]
RULES = ROOT / "k8s/components/monitoring/rules.yaml"
ALERTS = Path(__file__).with_name("alerts.yaml")
OTHERS = {
    "kube_job_failed",
    "kube_pod_container_status_last_terminated_exitcode",
    "kube_pod_container_status_restarts_total",
    "up",
}
"""Metrics of kube-state-metrics, and of Prometheus itself."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The rules as Prometheus reads them, and what is played against them."""
    spec = yaml.safe_load(RULES.read_text())["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    shutil.copy(ALERTS, tmp_path)
    return tmp_path


def _rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return list(group["rules"])


def test_promtool_accepts_the_rules(folder: Path) -> None:
    assert f"{len(_rules())} rules found" in promtool("check", "rules", "rules.yaml", cwd=folder)


def test_alerts_fire_when_they_should_and_only_then(folder: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts.yaml", cwd=folder)


def test_rules_use_only_metrics_that_there_are() -> None:
    known = {each.name for each in table.METRICS} | OTHERS
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    for rule in _rules():
        used = names_in(rule["expr"]) - recorded
        assert used <= known, used - known
        assert used or recorded & names_in(rule["expr"]), rule


def test_every_alert_is_played_both_ways_and_explained() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    played: dict[str, set[bool]] = {}
    for test in yaml.safe_load(ALERTS.read_text())["tests"]:
        for at in test["alert_rule_test"]:
            played.setdefault(at["alertname"], set()).add("exp_alerts" in at)
    alerts = [rule for rule in _rules() if "alert" in rule]
    for alert in alerts:
        name = alert["alert"]
        if name != "DataflowReconnectStorm":  # silent and firing series are in one test
            assert played[name] == {True, False}, name
        assert re.search(rf"^\| `{name}` \|", page, re.MULTILINE), f"{name} is not in the page"
        assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(played) == {alert["alert"] for alert in alerts}
