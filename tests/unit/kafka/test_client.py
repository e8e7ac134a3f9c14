"""Librdkafka's producer with its polling thread, without a broker."""

from collections.abc import Callable, Iterator

import pytest

from bytewax_jetstream.kafka.producer import Client
from bytewax_jetstream.settings import KafkaSettings


class _Opened:
    def __init__(self) -> None:
        self.failures: list[str] = []
        self.reports = 0
        self.client = Client(
            KafkaSettings(brokers=("127.0.0.1:1",)), self._reported, self.failures.append
        )

    def _reported(self) -> None:
        self.reports += 1


@pytest.fixture
def opened() -> Iterator[_Opened]:
    made = _Opened()
    try:
        yield made
    finally:
        made.client.close(5)


def _raising(error: BaseException) -> Callable[[float], int]:
    def serve(seconds: float) -> int:
        raise error

    return serve


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_signal_while_reports_are_served_ends_the_caller_and_not_the_producer(
    error: BaseException, opened: _Opened
) -> None:
    with pytest.raises(type(error)):
        opened.client._guarded(_raising(error), 0)

    opened.client.serve()
    assert opened.failures == []
    assert opened.client._thread.is_alive()


def test_error_while_reports_are_served_fails_the_producer_once(opened: _Opened) -> None:
    for _ in range(2):
        opened.client._guarded(_raising(ValueError("odd")), 0)

    assert len(opened.failures) == 1
    assert "the Kafka producer has failed (ValueError('odd'))" in opened.failures[0]
