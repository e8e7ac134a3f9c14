"""Which brokers count as configured, and what is named for each."""

import os
from pathlib import Path

import pytest

from bytewax_jetstream.planning import from_environment


@pytest.fixture(autouse=True)
def _nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("BYTEWAX_JETSTREAM_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, {}),
        ({"TOPICS": "a,b"}, {"JetStreamSettings": ("a", "b")}),
        ({"KAFKA_TOPICS": "a"}, {"KafkaSettings": ("a",)}),
        ({"SERVERS": "nats://h"}, {"JetStreamSettings": ()}),
        ({"SERVERS": "", "KAFKA_BROKERS": "h:1"}, {"KafkaSettings": ()}),
        ({"POOL_ACK_TIMEOUT": "3", "RUN_PARTS": "4"}, {}),
        (
            {
                "STREAMS": '[{"name": "S", "subjects": ["s"]}]',
                "TOPICS": "s",
                "KAFKA_BROKERS": "h:1",
            },
            {"JetStreamSettings": ("S", "s"), "KafkaSettings": ()},
        ),
        (
            {"KAFKA_TOPIC_SETTINGS": '[{"name": "t"}]', "KAFKA_TOPICS": "t,u"},
            {"KafkaSettings": ("t", "u")},
        ),
    ],
    ids=str,
)
def test_broker_is_configured_when_a_variable_of_it_says_something(
    variables: dict[str, str], found: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"BYTEWAX_JETSTREAM_{name}", value)

    wanted = from_environment()

    assert {type(each.settings).__name__: each.names for each in wanted} == found


def test_dotenv_configures_a_broker() -> None:
    Path(".env").write_text("BYTEWAX_JETSTREAM_KAFKA_TOPICS=a\n")

    assert [each.names for each in from_environment()] == [("a",)]
