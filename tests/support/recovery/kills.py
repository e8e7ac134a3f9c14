"""The ways in which a dataflow is killed, the same for both brokers."""

import logging
from collections.abc import Callable
from itertools import cycle
from random import Random
from typing import get_args

from tests.support.recovery.board import Slot
from tests.support.recovery.child import Aim, Without
from tests.support.recovery.harness import ROOMY, Pipeline
from tests.support.recovery.judge import Evidence
from tests.support.recovery.rows import PARTS

__all__ = ["commit_while_the_server_is_silent", "kill_again_and_again"]

log = logging.getLogger(__name__)

CYCLES = 10
"""Kills with envelopes that had no ack yet."""
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
    pipeline.start(workers=workers, budget=ROOMY).reach(
        lambda board: board[Slot.SUBMITTED] >= count
    )
    pipeline.freeze().reach(lambda board: board[Slot.CLOSING] > 0 and board[Slot.UNSETTLED] > 0)
    return pipeline.kill()


def aimed(aim: Aim) -> Kill:
    def kill(pipeline: Pipeline, random: Random, workers: int) -> int:
        # On a busy machine an epoch as short as the others has one hand-over, and nothing before.
        epoch = 1.0 if aim == "submitting" else 0.05
        return pipeline.start(
            workers=workers, epoch=epoch, aim=aim, aim_at=random.randint(1, 4)
        ).await_suicide()

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


def kill_again_and_again(pipeline: Pipeline, workers: int, cycles: int = CYCLES) -> Evidence:
    """Kill until enough kills came with envelopes in flight; then run to the end."""
    random = Random(f"{workers} workers")
    counted = 0
    kills = cycle(KILLS)
    while counted < cycles:
        assert pipeline.runs < 2 * cycles, (
            f"only {counted} of {pipeline.runs} kills came with envelopes in flight"
        )
        kill = next(kills)
        unsettled = kill(pipeline, random, workers)
        counted += unsettled > 0
        log.info("run %d, %s: %d without an ack", pipeline.runs, kill.__name__, unsettled)
    evidence = pipeline.finish(workers=workers)
    log.info("%d kills counted, %d rows", counted, sum(evidence.made))
    return evidence


def commit_while_the_server_is_silent(
    pipeline: Pipeline, workers: int, without: Without | None
) -> Evidence:
    """Let epochs end with a server that answers nothing, and then lose both it and the dataflow."""
    pipeline.start(workers=workers, budget=ROOMY, without=without)
    pipeline.reach(lambda board: board[Slot.SETTLED] >= 1_000)
    pipeline.server.pause()
    if without:
        # Whatever is submitted from here on is never stored, and yet its epoch is committed.
        commits = pipeline.board[Slot.COMMITS] + 4 * PARTS
        pipeline.reach(lambda board: board[Slot.COMMITS] >= commits)
    else:
        pipeline.reach(lambda board: board[Slot.CLOSING] > 0 and board[Slot.UNSETTLED] > 0)
    pipeline.kill()
    pipeline.server.kill()
    pipeline.server.start()
    return pipeline.finish(workers=workers)
