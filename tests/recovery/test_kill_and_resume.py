"""A dataflow that is killed again and again loses nothing, doubles nothing and keeps the order."""

import logging
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from random import Random
from typing import get_args

import pytest

from bytewax_jetstream.testing import NatsServer
from tests.recovery.board import Slot
from tests.recovery.child import Aim
from tests.recovery.harness import ROOMY, Pipeline
from tests.recovery.judge import FLAWLESS, flaws, proofs

log = logging.getLogger(__name__)

CYCLES = 10
"""Kills with envelopes that had no ack yet."""
ATTEMPTS = 20
POINTS = ((Slot.SUBMITTED, 6_000), (Slot.SETTLED, 6_000), (Slot.BARRIERS, 4), (Slot.COMMITS, 20))
"""What a random kill waits for, and for how many of it at most."""

Kill = Callable[[Pipeline, Random, int], int]
"""Runs the dataflow and kills it; returns how many envelopes had no ack."""


def at_random(pipeline: Pipeline, random: Random, workers: int) -> int:
    slot, most = random.choice(POINTS)
    count = random.randint(1, most)
    pipeline.start(workers=workers).reach(lambda board: board[slot] >= count)
    return pipeline.kill()


def with_the_server_frozen(pipeline: Pipeline, random: Random, workers: int) -> int:
    """What was sent lies in the sockets; the server gets to it when the next run has begun."""
    count = random.randint(1, 6_000)
    pipeline.start(workers=workers).reach(lambda board: board[Slot.SUBMITTED] >= count)
    pipeline.freeze().reach(lambda board: board[Slot.UNSETTLED] > 0)
    return pipeline.kill()


def with_the_server_frozen_in_the_barrier(pipeline: Pipeline, random: Random, workers: int) -> int:
    count = random.randint(1, 6_000)
    pipeline.start(workers=workers, budget=ROOMY).reach(lambda board: board[Slot.SUBMITTED] >= count)
    pipeline.freeze().reach(lambda board: board[Slot.CLOSING] > 0 and board[Slot.UNSETTLED] > 0)
    return pipeline.kill()


def aimed(aim: Aim) -> Kill:
    def kill(pipeline: Pipeline, random: Random, workers: int) -> int:
        return pipeline.start(workers=workers, aim=aim, aim_at=random.randint(1, 4)).await_suicide()

    kill.__name__ = aim
    return kill


KILLS: tuple[Kill, ...] = (
    at_random,
    with_the_server_frozen,
    *map(aimed, get_args(Aim)),
    at_random,
    with_the_server_frozen_in_the_barrier,
    at_random,
)


@pytest.mark.parametrize("whole", [False, True], ids=["one by one", "whole flights"])
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_missing_or_twice_after_ten_kills_in_flight(
    workers: int, whole: bool, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    random = Random(f"{workers} workers")
    counted = 0
    kills = cycle(KILLS)

    with Pipeline(tmp_path, own_nats_server, whole=whole) as pipeline:
        while counted < CYCLES:
            assert pipeline.runs < ATTEMPTS, f"only {counted} of {pipeline.runs} kills came with envelopes in flight"
            kill = next(kills)
            unsettled = kill(pipeline, random, workers)
            counted += unsettled > 0
            log.info("run %d, %s: %d without an ack", pipeline.runs, kill.__name__, unsettled)
        evidence = pipeline.finish(workers=workers)

    log.info("%d kills counted, %d rows, %s", counted, sum(evidence.made), proofs(evidence))
    assert flaws(evidence) == FLAWLESS
    # A whole flight passes over what is known, and says so of none.
    assert proofs(evidence).replayed > 0 or whole
    assert proofs(evidence).restored > 0
