"""Runs the tests phase by phase on every core, and prints the time of each: `make test`."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MOST_PROCESSES = 4
"""Each may start a Kafka broker, so that more would wait for memory."""
COUNTED = {"failures": "failed", "errors": "errors", "skipped": "skipped"}


class Phase(NamedTuple):
    """Tests that run together."""

    name: str
    minutes: int
    """How long they may take on two cores, with everything to be started."""
    patterns: tuple[str, ...]
    """Files below tests/; `*` matches a `/` too."""


PHASES = (
    Phase("unit", 5, ("unit/*",)),
    Phase("integration", 12, ("*",)),  # what no other phase has
    Phase("recovery", 5, ("recovery/*",)),
    Phase("faults", 10, ("*faults*",)),
    Phase(
        "operate",
        8,
        ("integration/runner/*", "integration/cli/*", "integration/metrics/*", "*test_tracing.py"),
    ),
    Phase("container", 5, ("container/*",)),
    Phase("docs", 4, ("docs/*", "benchmark/test_pages.py", "integration/test_readme.py")),
)
BY_CLAIM = ("unit", "docs", "container", "operate", "faults", "recovery", "integration")
"""A file belongs to the first of these that matches it."""


def processes() -> int:
    """How many test processes run side by side."""
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def files_of(phase: Phase) -> list[str]:
    """The test files of a phase, relative to the root of the project."""
    return sorted(
        f"tests/{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        if _owner(name := path.relative_to(ROOT / "tests").as_posix()) == phase
    )


def _owner(name: str) -> Phase:
    by_name = {phase.name: phase for phase in PHASES}
    return next(
        by_name[claim]
        for claim in BY_CLAIM
        if any(fnmatch(name, pattern) for pattern in by_name[claim].patterns)
    )


def _run(files: list[str], counts: Counter[str]) -> bool:
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", f"-n{processes()}", "--dist=worksteal"]
        done = subprocess.run(
            [*command, f"--junit-xml={report.name}", *files], cwd=ROOT, check=False
        )
        try:
            suites = ET.parse(report.name).getroot()
        except ET.ParseError:  # it ended before it had a report
            return False
    for suite in suites:
        found = {word: int(suite.get(key, 0)) for key, word in COUNTED.items()}
        counts.update(found)
        counts["passed"] += int(suite.get("tests", 0)) - sum(found.values())
    return done.returncode == 0


def main() -> int:
    """Run the phases that were named, or all of them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [phase.name for phase in PHASES]
    parser.add_argument("phases", nargs="*", choices=[*known, []], help=", ".join(known))
    asked = parser.parse_args().phases
    lines: list[str] = []
    counts: Counter[str] = Counter()
    all_passed = True
    began = time.monotonic()
    for phase in PHASES:
        files = files_of(phase)
        if not files or (asked and phase.name not in asked):
            continue
        print(f"\n{phase.name}:", flush=True)
        started = time.monotonic()
        passed = _run(files, counts)
        seconds = time.monotonic() - started
        all_passed &= passed
        over = ": too long" if seconds > phase.minutes * 60 else ""
        lines.append(
            f"{phase.name}: {'passed' if passed else 'FAILED'} in {seconds:.0f} s, "
            f"of {phase.minutes * 60} s{over}"
        )
        print(lines[-1], flush=True)
    total = ", ".join(
        f"{counts[word]} {word}"
        for word in ("failed", "passed", "skipped", "errors")
        if counts[word]
    )
    print("", *lines, sep="\n")
    print(f"===== {total or 'no tests ran'} in {time.monotonic() - began:.2f}s =====", flush=True)
    return not all_passed


if __name__ == "__main__":
    sys.exit(main())
