"""One cycle: a dataflow runs to its end through faults, and a judge reads what it stored."""

import signal
import time
from collections import deque
from collections.abc import Sequence
from math import inf
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Self

from tests.support.recovery.board import Slot
from tests.support.recovery.faults import Fault, Scene, possible
from tests.support.recovery.harness import Pipeline
from tests.support.recovery.judge import Evidence, Flaws, flaws
from tests.support.recovery.kafka_pipeline import KafkaPipeline, kafka_flaws, repeated
from tests.support.recovery.rows import PARTS
from tests.support.recovery.setup import Broker, Setup, opened
from tests.support.waiting import until

__all__ = ["Cycle", "Played", "play"]

LINKS = (None, 2_000_000, 200_000)
"""Bytes a second; None without a proxy."""
LOAD = {None: 12_000_000, 2_000_000: 4_000_000, 200_000: 500_000}
"""Bytes that a dataflow publishes over each link."""
MOST_ROWS = 8_000
OVERHEAD = 150
"""Bytes of a message beside its payload."""
SIZES = (20, 100, 1_000, 4_000, 20_000)
"""Bytes of a payload."""
DELIVERY_TIMEOUTS = (4, 6, 8, 12, 20, 30, 45, 60)
EPOCHS = (0.05, 0.5, 5)
BUDGETS = (200, 1_000, 16_000)
SECONDS = 300.0
"""How long a cycle may take; then it has failed."""
DRAIN_TIMEOUT = 20.0
"""How long a run that got a SIGTERM may take, by default."""
RECOVERY = {"jetstream": 6.0, "kafka": 12.0, "cluster": 20.0}
"""Seconds after a fault until a broker settles envelopes again, on a busy machine."""


class Cycle(NamedTuple):
    """What a seed says."""

    broker: Broker
    seed: int
    link: int | None
    faults: Sequence[Fault]
    delivery_timeout: float
    rows: int
    """Of each partition."""
    size: int
    epoch: float
    budget: int
    batched: bool

    @classmethod
    def of(cls, broker: Broker, seed: int) -> Self:
        """Seeds that follow each other have all links and all first faults."""
        random = Random(f"{broker} {seed}")
        link = LINKS[seed % len(LINKS)]
        faults = possible(broker, linked=link is not None)
        first = faults[seed // len(LINKS) % len(faults)]
        size = random.choice([each for each in SIZES if LOAD[link] >= 40 * PARTS * each])
        return cls(
            broker,
            seed,
            link,
            [first, *random.sample(faults, random.randint(0, 2))],
            random.choice(DELIVERY_TIMEOUTS),
            min(LOAD[link] // (size + OVERHEAD), MOST_ROWS) // PARTS,
            size,
            random.choice(EPOCHS),
            random.choice(BUDGETS),
            random.random() < 0.7,
        )

    @property
    def ack_timeout(self) -> float:
        """As far below the delivery timeout as by default, and never above the default."""
        return min(5.0, self.delivery_timeout / 4)


class Played(NamedTuple):
    """How a cycle went."""

    happened: Sequence[str]
    """The faults that came while the dataflow ran, with their seconds."""
    runs: int
    seconds: float
    problems: Sequence[str]
    """What must not be; none if it went well."""


def play(cycle: Cycle, directory: Path, **orders: Any) -> Played:
    """Play a cycle with servers of its own; `orders` are more of what every run is told."""
    began = time.monotonic()
    with (
        opened(cycle.broker, cycle.link) as setup,
        _pipeline(cycle, directory, setup, orders) as pipeline,
    ):
        run = _Run(cycle, Scene(setup, pipeline, Random(f"{cycle.broker} {cycle.seed} faults")))
        try:
            run.to_the_end()
            run.problems += _problems(cycle, pipeline.evidence(), pipeline.runs)
        except Exception as error:
            run.problems.append(f"{type(error).__name__}: {error}")
    return Played(run.happened, pipeline.runs, time.monotonic() - began, run.problems)


def _pipeline(cycle: Cycle, directory: Path, setup: Setup, orders: dict[str, Any]) -> Pipeline:
    made = KafkaPipeline if cycle.broker == "kafka" else Pipeline
    return made(
        directory,
        setup.server,
        batched=cycle.batched,
        replicas=len(setup.servers),
        through=setup.through,
        rows=cycle.rows,
        size=cycle.size,
        epoch=cycle.epoch,
        budget=cycle.budget,
        ack_timeout=cycle.ack_timeout,
        delivery_timeout=cycle.delivery_timeout,
        **orders,
    )


class _Run:
    """Runs a dataflow again and again until it has come to the end of its input."""

    def __init__(self, cycle: Cycle, scene: Scene) -> None:
        self._cycle, self._scene, self._pipeline = cycle, scene, scene.pipeline
        self._faults = deque(cycle.faults)
        self._end = time.monotonic() + SECONDS
        self._fault_ended = -inf
        self.happened: list[str] = []
        self.problems: list[str] = []

    def to_the_end(self) -> None:
        scene, pipeline = self._scene, self._pipeline
        while True:
            scene.start()
            soon = time.monotonic() - self._fault_ended < RECOVERY[self._cycle.broker]
            away = self._meet_faults()
            code = pipeline.await_end(self._left)
            if code == 0 and scene.told is None:
                break
            found_no_broker = soon and not pipeline.board[Slot.SUBMITTED]
            may_end = found_no_broker or self._may_give_up(away)
            if code and scene.told != signal.SIGKILL and not may_end:
                self.problems.append(f"run {pipeline.runs} ended with {code} by itself")
        if not self.happened:
            self.problems.append("no fault met the run")

    def _may_give_up(self, away: float) -> bool:
        """Whether a fault of so many seconds may leave an envelope unknown."""
        allowed = self._cycle.delivery_timeout
        if self._scene.told is not None:
            allowed = min(allowed, DRAIN_TIMEOUT)
        return away + RECOVERY[self._cycle.broker] >= allowed

    def _meet_faults(self) -> float:
        """Let faults happen, until the run ends; returns how long one has lasted at most."""
        longest = 0.0
        while self._faults and self._comes_to(self._next_point()):
            fault = self._faults.popleft()
            began = time.monotonic()
            fault(self._scene)
            self._fault_ended = time.monotonic()
            seconds = self._fault_ended - began
            longest = max(longest, seconds)
            self.happened.append(f"{fault.__name__} {seconds:.1f}")
            if self._scene.told is not None:
                break
        return longest

    def _next_point(self) -> int:
        """How many envelopes the run has settled when the next fault comes."""
        board = self._pipeline.board
        done = board[Slot.SETTLED]
        share = self._scene.random.uniform(0.02, 0.5)
        return done + max(1, int(share * (self._cycle.rows * PARTS - done)))

    def _comes_to(self, point: int) -> bool:
        board, pipeline = self._pipeline.board, self._pipeline
        until(lambda: board[Slot.SETTLED] >= point or not pipeline.running, self._left)
        return pipeline.running

    @property
    def _left(self) -> float:
        return max(0.1, self._end - time.monotonic())


def _problems(cycle: Cycle, evidence: Evidence, runs: int) -> list[str]:
    found: Flaws = flaws(evidence)
    if cycle.broker == "kafka":
        found = kafka_flaws(evidence)
        if runs == 1:  # the idempotent producer stores nothing twice; only a replay does
            found = found._replace(duplicates=repeated(evidence))
    return [f"{count} {name}" for name, count in found._asdict().items() if count]
