"""A dataflow into Kafka that is killed again and again loses nothing and keeps the order."""

import logging
from itertools import cycle
from pathlib import Path
from random import Random

import pytest

from bytewax_jetstream.testing import KafkaServer
from tests.recovery.board import Slot
from tests.recovery.child import Without
from tests.recovery.harness import ROOMY
from tests.recovery.judge import FLAWLESS, proofs
from tests.recovery.kafka_pipeline import KafkaPipeline, kafka_flaws, repeated
from tests.recovery.rows import PARTS
from tests.recovery.test_kill_and_resume import ATTEMPTS, CYCLES, KILLS

log = logging.getLogger(__name__)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_missing_after_ten_kills_in_flight(
    workers: int, tmp_path: Path, own_kafka_server: KafkaServer
) -> None:
    random = Random(f"{workers} workers")
    counted = 0
    kills = cycle(KILLS)

    with KafkaPipeline(tmp_path, own_kafka_server) as pipeline:
        while counted < CYCLES:
            assert pipeline.runs < ATTEMPTS, f"only {counted} of {pipeline.runs} kills came with envelopes in flight"
            kill = next(kills)
            unsettled = kill(pipeline, random, workers)
            counted += unsettled > 0
            log.info("run %d, %s: %d without a report", pipeline.runs, kill.__name__, unsettled)
        evidence = pipeline.finish(workers=workers)

    log.info("%d kills counted, %d rows, %d repeated", counted, sum(evidence.made), repeated(evidence))
    assert kafka_flaws(evidence) == FLAWLESS
    assert repeated(evidence) > 0, "no kill came between a store and its commit"
    assert proofs(evidence).restored > 0


@pytest.mark.parametrize("without", ["barrier", None])
def test_without_the_barrier_rows_of_committed_epochs_are_lost(
    without: Without | None, tmp_path: Path, own_kafka_server: KafkaServer
) -> None:
    with KafkaPipeline(tmp_path, own_kafka_server) as pipeline:
        pipeline.start(budget=ROOMY, without=without)
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
        found = kafka_flaws(pipeline.finish())

    if without:
        assert found.left > 0
        assert found.missing > 0
        assert found.unanswered > 0
    else:
        assert found == FLAWLESS
