"""A dataflow that is killed again and again loses and duplicates nothing and keeps the order."""

from pathlib import Path

import pytest

from bytewax_jetstream.testing import NatsServer
from tests.support.recovery.harness import Pipeline
from tests.support.recovery.judge import FLAWLESS, flaws, proofs
from tests.support.recovery.kills import kill_again_and_again


@pytest.mark.parametrize("batched", [False, True], ids=["singles", "batches"])
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_in_flight_lose_and_duplicate_nothing(
    workers: int, batched: bool, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    with Pipeline(tmp_path, own_nats_server, batched=batched) as pipeline:
        evidence = kill_again_and_again(pipeline, workers)

    assert flaws(evidence) == FLAWLESS
    # The server skips the known messages of a batch and does not say which.
    assert proofs(evidence).replayed > 0 or batched
    assert proofs(evidence).restored > 0


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("batched", [False, True], ids=["singles", "batches"])
def test_two_hundred_kills_in_flight_lose_and_duplicate_nothing(
    batched: bool, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    with Pipeline(tmp_path, own_nats_server, batched=batched) as pipeline:
        evidence = kill_again_and_again(pipeline, 2, cycles=200)

    assert flaws(evidence) == FLAWLESS
