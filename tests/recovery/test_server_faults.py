"""The server dies or stalls while the dataflow runs and is killed, and comes back with another
number of workers.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from bytewax_jetstream.testing import NatsServer
from tests.support.recovery.board import Slot
from tests.support.recovery.harness import ROOMY, Pipeline
from tests.support.recovery.judge import FLAWLESS, flaws, proofs

log = logging.getLogger(__name__)

ENOUGH = 1_500
"""Envelopes settled before, and again after a fault: several epochs."""


def _run_on(pipeline: Pipeline) -> None:
    settled = pipeline.board[Slot.SETTLED]
    pipeline.reach(lambda board: board[Slot.SETTLED] >= settled + ENOUGH)


def _kill_in_flight(pipeline: Pipeline) -> int:
    return pipeline.freeze().reach(lambda board: board[Slot.UNSETTLED] > 0).kill()


def server_dies_then_the_dataflow(pipeline: Pipeline) -> int:
    pipeline.server.kill()
    pipeline.reach(lambda board: board[Slot.UNSETTLED] > 0)
    unsettled = pipeline.kill()
    pipeline.server.start()
    return unsettled


def server_dies_and_comes_back(pipeline: Pipeline) -> int:
    pipeline.server.kill()
    pipeline.reach(lambda board: board[Slot.UNSETTLED] > 0)
    pipeline.server.start()
    _run_on(pipeline)
    return _kill_in_flight(pipeline)


def server_stalls_until_all_is_sent_again(pipeline: Pipeline) -> int:
    pipeline.server.pause()
    pipeline.reach(lambda board: board[Slot.RETRIED] > 0)
    pipeline.server.resume()
    _run_on(pipeline)
    return _kill_in_flight(pipeline)


def server_stalls_and_both_die(pipeline: Pipeline) -> int:
    """What lies in the sockets is lost with the server."""
    pipeline.server.pause()
    pipeline.reach(lambda board: board[Slot.CLOSING] > 0 and board[Slot.UNSETTLED] > 0)
    unsettled = pipeline.kill()
    pipeline.server.kill()
    pipeline.server.start()
    return unsettled


CYCLES: tuple[tuple[Callable[[Pipeline], int], int], ...] = (
    (server_dies_then_the_dataflow, 1),
    (server_dies_and_comes_back, 2),
    (server_stalls_until_all_is_sent_again, 1),
    (server_stalls_and_both_die, 2),
    (server_dies_then_the_dataflow, 2),
    (server_stalls_and_both_die, 1),
    (server_dies_and_comes_back, 1),
)


@pytest.mark.parametrize("batched", [False, True], ids=["singles", "batches"])
def test_kills_and_server_faults_together_lose_and_duplicate_nothing(
    tmp_path: Path, own_nats_server: NatsServer, batched: bool
) -> None:
    counted = 0
    with Pipeline(tmp_path, own_nats_server, batched=batched) as pipeline:
        for fault, workers in CYCLES:
            _run_on(pipeline.start(workers=workers, budget=ROOMY))
            unsettled = fault(pipeline)
            counted += unsettled > 0
            log.info("%s, %d workers: %d without an ack", fault.__name__, workers, unsettled)
        evidence = pipeline.finish(workers=2)

    log.info("%d kills counted, %d rows, %s", counted, sum(evidence.made), proofs(evidence))
    assert flaws(evidence) == FLAWLESS
    assert counted >= len(CYCLES) - 2
    assert (
        proofs(evidence).replayed > 0 or batched
    )  # the server skips the known messages of a batch and does not say which
