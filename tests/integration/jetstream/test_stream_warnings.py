"""A stream that no settings declare: what stops the run, and what is worth one warning."""

import logging
from datetime import timedelta
from typing import Any

import pytest
from bytewax.errors import BytewaxRuntimeError

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.errors import PublishError, StreamError
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import Envelopes, publishing, root_cause, run
from tests.support.lanes import jetstream, opened, publish, settle
from tests.support.streams import Names, api, envelopes, make_stream, message_ids

SECOND = 10**9


@pytest.mark.parametrize(
    "config",
    [{"duplicate_window": SECOND // 2}, {"max_age": SECOND}],
    ids=["window", "maximum age"],
)
def test_stream_that_forgets_ids_too_soon_stops_the_run_before_it_is_sent_anything(
    nats_server: NatsServer, names: Names, config: dict[str, Any]
) -> None:
    name = names()
    make_stream(nats_server.url, name, name, **config)
    made = publishing(Envelopes(envelopes(40, name)), jetstream(nats_server.url))

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(made.flow)

    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert f"stream {name} remembers event ids for" in str(cause)
    assert "raise its duplicate_window to at least 2 s, lower ack_timeout, or set dedupe" in str(
        cause
    )
    assert not made.errs
    assert message_ids(nats_server.url, name) == []
    with pytest.raises(StreamError, match=f"stream {name} remembers event ids for"):
        publish(jetstream(nats_server.url, topics=(name,)))


def test_stream_that_forgets_ids_is_good_enough_without_dedupe(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    make_stream(nats_server.url, name, name, duplicate_window=SECOND // 2)
    declared = StreamSettings(name=name, subjects=(name,), duplicate_window=timedelta(minutes=2))
    settings = jetstream(nats_server.url, dedupe=False, streams=(declared,))

    results = publish(settings, *envelopes(40, name))

    assert {result.outcome for result in results.values()} == {Outcome.STORED}


def test_declared_stream_with_a_short_maximum_age_gets_a_window_as_long(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    declared = StreamSettings(name=name, subjects=(name,), max_age=timedelta(seconds=30))
    settings = jetstream(nats_server.url, streams=(declared,), delivery_timeout=60)

    for _ in range(2):  # made, and there already
        results = publish(settings, *envelopes(40, name))
        assert {result.outcome for result in results.values()} == {Outcome.STORED}

    config = api(nats_server.url, f"STREAM.INFO.{name}")["config"]
    assert config["duplicate_window"] == 30 * SECOND


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"storage": "memory"}, "keeps its messages in memory"),
        ({"retention": "interest"}, "has retention interest and no consumer"),
        ({"duplicate_window": 20 * SECOND}, "remembers event ids for 20 s, less than the delivery"),
        ({}, None),
    ],
    ids=["memory", "interest", "window", "ordinary"],
)
@pytest.mark.parametrize("declared", [False, True], ids=["undeclared", "declared topic"])
def test_stream_whose_acks_promise_less_is_warned_of_once(
    nats_server: NatsServer,
    names: Names,
    config: dict[str, Any],
    says: str | None,
    declared: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = names()
    make_stream(nats_server.url, name, f"{name}.>", **config)
    topics = (f"{name}.a",) if declared else ()
    settings = jetstream(nats_server.url, topics=topics, delivery_timeout=60)

    with caplog.at_level(logging.WARNING), opened(settings) as (_, lane):
        for number, topic in enumerate("abc"):
            results = settle(lane, envelopes(10, f"{name}.{topic}", first=10 * number))
            assert {result.outcome for result in results.values()} == {Outcome.STORED}

    warned = [each for each in caplog.messages if "one message at a time" not in each]
    assert len(warned) == (says is not None)
    assert all(says in each for each in warned if says)


@pytest.mark.parametrize("with_consumer", [False, True], ids=["no consumer", "consumer"])
def test_interest_stream_of_the_settings_is_warned_of_without_a_consumer(
    nats_server: NatsServer,
    names: Names,
    with_consumer: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = names()
    declared = StreamSettings(name=name, subjects=(name,), retention="interest", storage="memory")
    if with_consumer:
        config = {"retention": "interest", "storage": "memory", "duplicate_window": 120 * SECOND}
        make_stream(nats_server.url, name, name, **config)
        consumer = {"durable_name": "reader", "ack_policy": "explicit"}
        body = {"stream_name": name, "config": consumer}
        api(nats_server.url, f"CONSUMER.CREATE.{name}.reader", body)

    with caplog.at_level(logging.WARNING):
        publish(jetstream(nats_server.url, streams=(declared,)))

    assert len(caplog.messages) == (not with_consumer)
