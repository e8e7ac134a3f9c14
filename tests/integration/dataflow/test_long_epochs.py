"""Epochs that are open for so long that a crash could store their older part twice."""

import logging
from datetime import timedelta

import pytest

from bytewax_jetstream.pool import shared_pool
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import Envelopes, publishing, run
from tests.support.lanes import broker_of, jetstream
from tests.support.streams import Names, envelopes, make_stream

SECOND = 10**9


def _long_epochs() -> int:
    pool = shared_pool._shared.pool
    return int(broker_of(pool)["long_epochs"]) if pool is not None else 0


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each for each in caplog.messages if "remember event ids" in each and "epoch" in each]


def test_epoch_longer_than_half_of_the_shortest_duplicate_window_is_counted_and_logged_once(
    nats_server: NatsServer, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    long, short = names(), names()
    make_stream(nats_server.url, long, long)
    make_stream(nats_server.url, short, short, duplicate_window=SECOND)
    batch = [
        each
        for number in range(3_000)
        for topic in (long, short)
        for each in envelopes(1, topic, first=number)
    ]
    seen = 0

    def end_after_two(index: int) -> None:
        nonlocal seen
        seen = _long_epochs()
        if seen >= 2:
            raise StopIteration

    source = Envelopes(batch, batch_size=2, pause=timedelta(milliseconds=10), before=end_after_two)
    made = publishing(source, jetstream(nats_server.url, ack_timeout=0.4))
    run(made.flow, epoch=timedelta(seconds=1))

    assert seen >= 2
    (logged,) = _logged(caplog)
    assert logged.startswith("flow.publish: epoch ")
    assert "and its streams remember event ids for 1 s" in logged
    assert not made.errs


def test_short_epochs_are_neither_counted_nor_logged(
    nats_server: NatsServer, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    name = names()
    make_stream(nats_server.url, name, name)
    seen = []
    source = Envelopes(envelopes(500, name), before=lambda index: seen.append(_long_epochs()))
    made = publishing(source, jetstream(nats_server.url))
    with caplog.at_level(logging.WARNING):
        run(made.flow)

    assert len(made.oks) == 500
    assert set(seen) == {0}
    assert _logged(caplog) == []
