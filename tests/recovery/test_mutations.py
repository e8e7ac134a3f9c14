"""Each rule is taken away once, and the test must see the promise broken; a run with the rule is
beside it.
"""

from pathlib import Path

import pytest

from bytewax_jetstream.testing import NatsServer
from tests.support.recovery.board import Slot
from tests.support.recovery.child import Without
from tests.support.recovery.harness import Pipeline
from tests.support.recovery.judge import FLAWLESS, flaws, proofs
from tests.support.recovery.kills import commit_while_the_server_is_silent

NEVER = 600.0
"""Seconds of an epoch that ends only with the input."""


@pytest.mark.parametrize("without", ["barrier", None])
@pytest.mark.parametrize("workers", [1, 2])
def test_missing_barrier_loses_rows_of_committed_epochs(
    workers: int, without: Without | None, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    with Pipeline(tmp_path, own_nats_server) as pipeline:
        found = flaws(commit_while_the_server_is_silent(pipeline, workers, without))

    if without:
        assert found.left > 0
        assert found.missing > 0
        assert found.unanswered > 0
        assert found.duplicates == 0
    else:
        assert found == FLAWLESS


@pytest.mark.parametrize("without", ["ids", None])
def test_changing_ids_store_rows_twice(
    without: Without | None, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    with Pipeline(tmp_path, own_nats_server) as pipeline:
        pipeline.start(epoch=NEVER, without=without).reach(
            lambda board: board[Slot.SETTLED] >= 1_000
        )
        pipeline.kill()
        evidence = pipeline.finish(epoch=NEVER, without=without)

    found = flaws(evidence)
    if without:
        assert found.duplicates >= 900  # one in a hundred is a row that cannot be published
        assert found.missing == 0
    else:
        assert found == FLAWLESS
        assert proofs(evidence).replayed >= 900


@pytest.mark.parametrize("without", ["results", None])
def test_state_without_results_leaves_rows_unanswered(
    without: Without | None, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    with Pipeline(tmp_path, own_nats_server) as pipeline:
        assert pipeline.start(aim="committed", without=without).await_suicide() > 0
        evidence = pipeline.finish()

    found = flaws(evidence)
    if without:
        assert found.unanswered > 0
        assert found.missing == found.duplicates == 0
    else:
        assert found == FLAWLESS
        assert proofs(evidence).restored > 0


@pytest.mark.parametrize("without", ["order", None])
def test_aggregates_not_sent_one_at_a_time_are_reordered_by_a_retry(
    without: Without | None, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    with Pipeline(tmp_path, own_nats_server) as pipeline:
        pipeline.start(epoch=NEVER, budget=4_000, without=without)
        pipeline.reach(lambda board: board[Slot.SETTLED] >= 1_000)
        pipeline.server.pause()
        # So many that every aggregate has several on their way.
        pipeline.reach(lambda board: board[Slot.UNSETTLED] >= 2_000 and board[Slot.RETRIED] > 0)
        pipeline.server.kill()  # with the first attempts, which lie in its sockets in order
        settled = pipeline.board[Slot.SETTLED]
        pipeline.server.start()
        pipeline.reach(lambda board: board[Slot.SETTLED] > settled + 1_000)
        pipeline.kill()
        found = flaws(pipeline.finish())

    if without:
        assert found.inversions > 0
        assert found.missing == found.duplicates == 0
    else:
        assert found == FLAWLESS
