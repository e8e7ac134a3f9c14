"""What `/metrics` says: of this process, or of another over HTTP; and Prometheus's tools."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client import REGISTRY
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Scrape", "names_in", "promtool", "scrape", "scraped"]


class Scrape:
    """The values of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {name for name, _, _ in self._samples}

    def each(self, name: str, **labels: str) -> list[float]:
        """The values of a metric with at least these labels, without the package's prefix."""
        return [
            value
            for found, its, value in self._samples
            if found == f"bytewax_jetstream_{name}" and labels.items() <= its.items()
        ]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of these; 0 if there are none."""
        return sum(self.each(name, **labels))

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of each."""
        return [its for found, its, _ in self._samples if found == f"bytewax_jetstream_{name}"]


def scrape() -> Scrape:
    """What this process would serve."""
    return Scrape(generate_latest(REGISTRY).decode())


def scraped(port: int) -> Scrape:
    """What another process serves; empty while it serves nothing."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return Scrape(answer.read().decode())
    except OSError:
        return Scrape("")


def promtool(*arguments: str, given: str = "", cwd: Path | None = None) -> str:
    """Run it; returns what it says, which fails the test if it finds anything wrong."""
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("REQUIRE_BROKERS") == "1":
            raise FileNotFoundError("promtool is required here: install the package prometheus")
        pytest.skip("promtool is not installed: it is in Debian's package prometheus")
    done = subprocess.run(
        [found, *arguments], input=given, capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def names_in(query: str) -> set[str]:
    """The names of the metrics in a PromQL query."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    words = re.findall(r"(?<![\w:$])[a-z_:][\w:]*(?!\s*\()(?![\w:])", bare)
    return set(words) - {"and", "by", "offset", "on", "or", "unless"}
