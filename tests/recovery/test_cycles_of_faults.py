"""Some of the cycles of `make soak`: a dataflow comes to its end through kills and faults, on slow
links too, and loses, repeats and reorders nothing.
"""

import os
from pathlib import Path

import pytest

from bytewax_jetstream.testing import KafkaUnavailableError
from tests.support.recovery.cycle import Cycle, play
from tests.support.recovery.setup import Broker

SEEDS: dict[Broker, tuple[int, ...]] = {
    "jetstream": (0, 1, 2, 4, 5),
    "cluster": (1, 5),
    "kafka": (0, 1, 2),
}
KILLED = 0
"""A cycle in which the run is killed first of all."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broker", "seed"), [(broker, seed) for broker in SEEDS for seed in SEEDS[broker]]
)
def test_kills_and_faults_while_a_dataflow_runs_leave_a_flawless_stream(
    broker: Broker, seed: int, tmp_path: Path
) -> None:
    try:
        played = play(Cycle.of(broker, seed), tmp_path)
    except KafkaUnavailableError as error:
        if os.environ.get("REQUIRE_BROKERS") == "1":
            raise
        pytest.skip(str(error))

    assert not played.problems, played


def test_cycle_notices_ids_that_change_at_a_replay(tmp_path: Path) -> None:
    cycle = Cycle.of("jetstream", KILLED)

    played = play(cycle, tmp_path, without="ids")

    assert played.happened[0].startswith("run_killed")
    assert any(problem.endswith("duplicates") for problem in played.problems)
