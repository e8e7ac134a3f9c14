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
    "jetstream": (4, 11, 16, 18, 32),
    "cluster": (5, 36),
    "kafka": (8, 13, 30),
}
"""All links, brief and long timeouts, and most faults."""


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
    killed = Cycle.of("jetstream", 21)._replace(rows=1_000, epoch=5)  # killed before it commits

    played = play(killed, tmp_path, without="ids")

    assert played.happened[0].startswith("run_killed")
    assert any(problem.endswith("duplicates") for problem in played.problems)
