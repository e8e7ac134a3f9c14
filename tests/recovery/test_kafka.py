"""A dataflow into Kafka that is killed again and again loses nothing and keeps the order."""

from pathlib import Path

import pytest

from bytewax_jetstream.testing import KafkaServer
from tests.support.recovery.child import Without
from tests.support.recovery.judge import FLAWLESS, proofs
from tests.support.recovery.kafka_pipeline import KafkaPipeline, kafka_flaws, repeated
from tests.support.recovery.kills import commit_while_the_server_is_silent, kill_again_and_again


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_in_flight_lose_nothing(
    workers: int, tmp_path: Path, own_kafka_server: KafkaServer
) -> None:
    with KafkaPipeline(tmp_path, own_kafka_server) as pipeline:
        evidence = kill_again_and_again(pipeline, workers)

    assert kafka_flaws(evidence) == FLAWLESS
    assert repeated(evidence) > 0, "no kill came between a store and its commit"
    assert proofs(evidence).restored > 0


@pytest.mark.parametrize("without", ["barrier", None])
def test_missing_barrier_loses_rows_of_committed_epochs(
    without: Without | None, tmp_path: Path, own_kafka_server: KafkaServer
) -> None:
    with KafkaPipeline(tmp_path, own_kafka_server) as pipeline:
        found = kafka_flaws(commit_while_the_server_is_silent(pipeline, 1, without))

    if without:
        assert found.left > 0
        assert found.missing > 0
        assert found.unanswered > 0
    else:
        assert found == FLAWLESS
