import logging

import pytest

from bytewax_jetstream.kafka.library_log import _Once, library_log


@pytest.fixture(autouse=True)
def nothing_shown_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier tests of this process may have shown the same lines."""
    (once,) = library_log.filters
    monkeypatch.setattr(once, "_shown", {})


REFUSED = (
    "FAIL [me#producer-%d] [thrd:127.0.0.1:1/bootstrap]: 127.0.0.1:1/bootstrap: Connect to "
    "ipv4#127.0.0.1:1 failed: Connection refused (after %dms in state CONNECT%s)"
)


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> None:
    """Other tests of this process have clients, whose lines were shown already."""
    for once in library_log.filters:
        if isinstance(once, _Once):
            once._shown.clear()


def test_repeated_line_is_shown_once(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(200):
        library_log.error(
            REFUSED, number, number, ", 3 identical error(s) suppressed" if number else ""
        )
    library_log.error("FAIL [me#producer-1] [thrd:x]: another address is refused")

    assert len(caplog.records) == 2


def test_line_is_shown_again_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    library_log.error("once a minute")
    now += 59
    library_log.error("once a minute")
    assert len(caplog.records) == 1
    now += 2
    library_log.error("once a minute")
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "line",
    [
        (
            "GETPID [me#producer-1] [thrd:main]: Failed to acquire idempotence PID from broker "
            "127.0.0.1:9092/1: Broker: Coordinator load in progress: retrying"
        ),
        (
            "CONFWARN [me#producer-1] [thrd:app]: Configuration property "
            "enable.gapless.guarantee is experimental: When set to `true`, any error"
        ),
        (
            "FATAL [me#producer-1] [thrd:127.0.0.1:9092/1]: Fatal error: Local: Gap-less ordering "
            "would not be guaranteed if proceeding: ProduceRequest for t [0] with 179 message(s)"
        ),
    ],
    ids=["clean start", "stops at a refused request", "stopped"],
)
def test_harmless_line_is_for_debugging_only(line: str, caplog: pytest.LogCaptureFixture) -> None:
    library_log.warning(line)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, logger=library_log.name):
        library_log.warning(line)
    assert len(caplog.records) == 1


def test_many_different_lines_are_all_shown_and_not_all_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in range(3_000):
        library_log.error("line of topic-%d", number)

    assert len(caplog.records) == 3_000
