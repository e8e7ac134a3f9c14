"""A dataflow that is killed again and again loses nothing, doubles nothing and keeps the order."""

from pathlib import Path

import pytest

from bytewax_jetstream.testing import NatsServer
from tests.support.recovery.harness import Pipeline
from tests.support.recovery.judge import FLAWLESS, flaws, proofs
from tests.support.recovery.kills import kill_again_and_again


@pytest.mark.parametrize("whole", [False, True], ids=["one by one", "whole flights"])
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_missing_or_twice_after_ten_kills_in_flight(
    workers: int, whole: bool, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    with Pipeline(tmp_path, own_nats_server, whole=whole) as pipeline:
        evidence = kill_again_and_again(pipeline, workers)

    assert flaws(evidence) == FLAWLESS
    # A whole flight passes over what is known, and says so of none.
    assert proofs(evidence).replayed > 0 or whole
    assert proofs(evidence).restored > 0
