"""What librdkafka has to say comes by Python's logging, once, and nothing when all is well."""

import logging
import time

import pytest

from bytewax_jetstream.kafka.library_log import library_log
from bytewax_jetstream.testing import KafkaServer
from tests.support.kafka import new_topic
from tests.support.kafka_reading import Reading
from tests.support.lanes import kafka, publish
from tests.support.streams import envelopes

LIBRARY = "bytewax_jetstream.kafka.librdkafka"


@pytest.fixture(autouse=True)
def nothing_shown_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier tests of this process may have shown the same lines."""
    (once,) = library_log.filters
    monkeypatch.setattr(once, "_shown", {})


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in caplog.records if line.name == LIBRARY]


def test_reader_of_a_dead_broker_repeats_nothing_and_writes_to_no_terminal(
    own_kafka_server: KafkaServer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    address = own_kafka_server.bootstrap
    topic = new_topic(address, partitions=1)
    capfd.readouterr()
    with caplog.at_level(logging.INFO), Reading(kafka(address), topics=topic) as reading:
        reading.turn()
        own_kafka_server.kill()
        end = time.monotonic() + 4
        reading.until(lambda: time.monotonic() > end)

    assert any("Connection refused" in line for line in _said(caplog))
    assert len(_said(caplog)) <= 6
    assert "|FAIL|bytewax_jetstream#" not in capfd.readouterr().err


def test_clean_start_on_a_new_broker_says_nothing(
    own_kafka_server: KafkaServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = new_topic(own_kafka_server.bootstrap, partitions=1)
    with caplog.at_level(logging.INFO):
        publish(kafka(own_kafka_server.bootstrap), *envelopes(10, topic))
        with Reading(kafka(own_kafka_server.bootstrap), topics=topic, tail=False) as reading:
            reading.to_the_end()

    assert len(reading.values) == 10
    assert _said(caplog) == []
