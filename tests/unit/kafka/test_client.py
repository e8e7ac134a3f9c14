"""Librdkafka's producer with its polling thread, without a broker."""

from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException

from bytewax_jetstream.kafka.producer import Client, _Noting
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


@pytest.mark.parametrize(
    ("kind", "text", "cut"),
    [
        ("FAIL", "Disconnected: connection closed by peer (after 9ms in state UP)", True),
        ("FAIL", "1 request(s) timed out: disconnect (after 9ms in state UP)", True),
        ("FAIL", "Disconnected (after 9ms in state REAUTH)", True),
        ("FAIL", "words that another version of the library says", True),
        ("REQTMOUT", "Timed out ProduceRequest in flight (after 1500ms, timeout #0)", True),
        ("FAIL", "Connect to ipv6#[::1]:9092 failed: refused (after 0ms in state CONNECT)", False),
        ("FAIL", "SSL handshake failed (after 2ms in state SSL_HANDSHAKE)", False),
        ("FAIL", "refused (after 3ms in state AUTH_REQ, 3 identical error(s))", False),
        ("GETPID", "Failed to acquire idempotence PID", False),
    ],
)
def test_only_a_cut_connection_puts_what_was_with_the_library_in_doubt(
    kind: str, text: str, cut: bool, opened: _Opened, caplog: pytest.LogCaptureFixture
) -> None:
    opened.client._cut_at = float("-inf")

    _Noting(opened.client._on_line).log(20, "%s [%s] %s", kind, "me#producer-1", text)

    assert opened.client.may_have_been_sent(0.05) is cut
    assert opened.client.may_have_retried(5.0) is cut
    assert not opened.client.may_have_retried(0.05), "too soon for another attempt"


def test_stopped_producer_is_told_of_and_has_not_failed(opened: _Opened) -> None:
    stops: list[int] = []
    opened.client._on_stop = lambda: stops.append(1)
    gap = KafkaException(KafkaError(KafkaError._GAPLESS_GUARANTEE, "a gap", fatal=True))

    opened.client._guarded(_raising(gap), 0)

    assert stops
    assert opened.failures == []
