"""What is loaded when, seen from a fresh interpreter; `lint-imports` checks the rules of the
source.
"""

import subprocess
import sys

import pytest

import bytewax_jetstream


def _loaded_by(module: str) -> set[str]:
    program = (
        f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    )
    return set(
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.split()
    )


@pytest.mark.parametrize(
    "module", ["bytewax_jetstream", "bytewax_jetstream.operators", "bytewax_jetstream.sinks"]
)
def test_a_flow_that_does_not_use_kafka_does_not_load_its_library(module: str) -> None:
    assert "confluent_kafka" not in _loaded_by(module)


def test_the_operators_load_a_brokers_library_only_when_it_is_used() -> None:
    loaded = _loaded_by("bytewax_jetstream.operators")

    assert "bytewax" in loaded
    assert not loaded & {"nats", "confluent_kafka"}


def test_the_pool_needs_neither_a_brokers_library_nor_bytewax() -> None:
    assert not _loaded_by("bytewax_jetstream.pool") & {"nats", "confluent_kafka", "bytewax"}


def test_the_jetstream_publisher_does_not_need_bytewax() -> None:
    loaded = _loaded_by("bytewax_jetstream.jetstream.publisher")

    assert "nats" in loaded
    assert not loaded & {"bytewax", "confluent_kafka"}


def test_the_package_itself_loads_no_brokers_library_and_no_bytewax() -> None:
    assert not _loaded_by("bytewax_jetstream") & {"nats", "confluent_kafka", "bytewax"}


def test_drain_on_signal_is_a_public_name_that_loads_bytewax_when_used() -> None:
    from bytewax_jetstream import drain_on_signal
    from bytewax_jetstream.drain import drain_on_signal as same

    assert drain_on_signal is same
    assert "drain_on_signal" in bytewax_jetstream.__all__
    with pytest.raises(AttributeError, match="no attribute 'drain_on_signals'"):
        _ = bytewax_jetstream.drain_on_signals


def test_the_kafka_publisher_needs_neither_bytewax_nor_nats() -> None:
    loaded = _loaded_by("bytewax_jetstream.kafka.publisher")

    assert "confluent_kafka" in loaded
    assert not loaded & {"bytewax", "nats"}


def test_a_bridge_loads_no_brokers_library() -> None:
    assert not _loaded_by("bytewax_jetstream.bridge") & {"nats", "confluent_kafka"}


def test_the_servers_for_tests_load_without_the_broker_in_memory() -> None:
    program = "import sys, bytewax_jetstream.testing; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()

    assert "bytewax_jetstream.testing.nats" in loaded
    assert "bytewax_jetstream.testing.memory" not in loaded


def test_the_broker_in_memory_needs_no_brokers_library_and_no_bytewax() -> None:
    loaded = _loaded_by("bytewax_jetstream.testing.memory")

    assert not loaded & {"nats", "confluent_kafka", "bytewax", "pytest"}
