"""Plays kill and fault cycles on real servers, and goes on where it stopped: `make soak`."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self, get_args

from tests.support.recovery.cycle import Cycle, Played, play
from tests.support.recovery.setup import Broker

__all__ = ["Line", "Log", "chosen", "table", "version"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".soak"
DEFAULT = "jetstream:70,cluster:30,kafka:50"
GOOD = "good"


class Line(NamedTuple):
    """One played cycle, as it is logged."""

    version: str
    broker: str
    seed: int
    link: str
    faults: Sequence[str]
    timeout: float
    runs: int
    seconds: float
    verdict: str

    @classmethod
    def of(cls, version: str, cycle: Cycle, played: Played) -> Self:
        """What is kept of a cycle."""
        return cls(
            version,
            cycle.broker,
            cycle.seed,
            "no proxy" if cycle.link is None else f"{cycle.link / 1e6:g} MB/s",
            played.happened,
            cycle.delivery_timeout,
            played.runs,
            round(played.seconds, 1),
            "; ".join(played.problems) or GOOD,
        )

    @property
    def good(self) -> bool:
        """Whether nothing was wrong."""
        return self.verdict == GOOD

    def __str__(self) -> str:
        return (
            f"{self.broker} {self.seed}, {self.link}, timeout {self.timeout:g} s: "
            f"{', '.join(self.faults) or 'no fault'}: {self.runs} runs, {self.seconds:.0f} s, "
            f"{self.verdict.splitlines()[0]}"
        )


class Log:
    """Every cycle that was ever played, a JSON line each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, line: Line) -> None:
        """Keep a line, whatever happens next."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line._asdict()) + "\n")

    def good(self, version: str) -> dict[tuple[str, int], Line]:
        """The cycles that went well with this version of the code."""
        return {
            (line.broker, line.seed): line
            for line in self._lines()
            if line.good and line.version == version
        }

    def _lines(self) -> Iterator[Line]:
        if not self._path.exists():
            return
        for text in self._path.read_text().splitlines():
            try:
                yield Line(**json.loads(text))
            except (ValueError, TypeError):  # cut off by a kill, or of another form
                continue


def version() -> str:
    """The commit, and what was changed since."""
    commit = _git("rev-parse", "--short=12", "HEAD").decode().strip()
    changes = _git("diff", "HEAD")
    return f"{commit}+{sha256(changes).hexdigest()[:8]}" if changes else commit


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def chosen(words: str) -> list[Cycle]:
    """The cycles of `jetstream:20,kafka:5`; `kafka:7-7` is the one of seed 7. Brokers take turns.

    :raises ValueError: when a part is of another form.
    """
    queues = []
    for part in words.split(","):
        broker, _, seeds = part.strip().partition(":")
        known = {str(each): each for each in get_args(Broker)}
        if broker not in known:
            raise ValueError(f"{broker!r} is none of {', '.join(known)}")
        first, dash, last = seeds.partition("-")
        numbers = range(int(first), int(last) + 1) if dash else range(int(first))
        queues.append([Cycle.of(known[broker], seed) for seed in numbers])
    # In proportion, so that a run that is cut off has some of each.
    places = [
        ((number + 0.5) / len(queue), cycle)
        for queue in queues
        for number, cycle in enumerate(queue)
    ]
    return [cycle for _, cycle in sorted(places, key=lambda place: place[0])]


def table(lines: Iterable[Line]) -> str:
    """How many cycles went well on each broker and link."""
    rows: dict[tuple[str, str], list[Line]] = {}
    for line in sorted(lines):
        rows.setdefault((line.broker, line.link), []).append(line)
    text = [f"{'broker':10} {'link':10} {'cycles':>6} {'good':>6} {'runs':>6} {'seconds':>8}"]
    for (broker, link), group in rows.items():
        good, runs = sum(line.good for line in group), sum(line.runs for line in group)
        mean = sum(line.seconds for line in group) / len(group)
        text.append(f"{broker:10} {link:10} {len(group):6} {good:6} {runs:6} {mean:8.1f}")
    return "\n".join(text)


def _play(cycle: Cycle, version: str, log: Log) -> Line:
    directory = Path(tempfile.mkdtemp(prefix=f"soak-{cycle.broker}-{cycle.seed}-"))
    line = Line.of(version, cycle, play(cycle, directory))
    if not line.good:
        kept = FOLDER / "failed" / f"{version}-{cycle.broker}-{cycle.seed}-{int(time.time())}"
        shutil.copytree(directory, kept)
    shutil.rmtree(directory)
    log.append(line)
    return line


def main() -> int:
    """Play what was chosen and is not logged as good; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cycles", nargs="?", default=DEFAULT, help=f"such as {DEFAULT}")
    parser.add_argument("--jobs", type=int, default=2, help="how many cycles at a time")
    given = parser.parse_args()
    log, now = Log(FOLDER / "cycles.jsonl"), version()
    try:
        cycles = chosen(given.cycles)
    except ValueError as error:
        parser.error(f"{error}: write it as in {DEFAULT}")
    before = log.good(now)
    lines = [
        before[cycle.broker, cycle.seed] for cycle in cycles if (cycle.broker, cycle.seed) in before
    ]
    left = [cycle for cycle in cycles if (cycle.broker, cycle.seed) not in before]
    print(f"soak: {now}: {len(left)} cycles to play, {len(lines)} good before", flush=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        futures = [pool.submit(_play, cycle, now, log) for cycle in left]
        try:
            for future in as_completed(futures):
                line = future.result()
                lines.append(line)
                failed = sum(not each.good for each in lines)
                print(f"[{len(lines)}/{len(cycles)}, {failed} failed] {line}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print("", table(lines), sep="\n")
    bad = [line for line in lines if not line.good]
    if bad:
        print("", *bad, f"Logs of the failed ones are in {FOLDER / 'failed'}", sep="\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
