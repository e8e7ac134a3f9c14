"""What a server, an account or a user allows, learnt late, changed, or met after a loss."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, PublishResult
from bytewax_jetstream.settings import JetStreamSettings, StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.jwt import operator_mode
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import envelopes, make_stream, stored
from tests.support.waiting import until

LIMITED = StreamSettings(name="LIMITED", subjects=("limited.>",))
KB = 1024


@pytest.fixture(params=[False, True], ids=["singles", "batches"])
def settings_for(request: pytest.FixtureRequest) -> Callable[..., JetStreamSettings]:
    """Settings with a stream that takes batches, or does not."""
    stream = LIMITED.model_copy(update={"allow_batched": request.param})
    return partial(jetstream, streams=(stream,))


def _with_one_of(size: int, *, topic: str = "limited.x") -> list[Envelope]:
    """200 envelopes, the one in the middle with a payload of so many bytes, or another topic."""
    some = envelopes(200, "limited.x")
    some[100] = Envelope(topic, b"x" * size, event_id="odd", aggregate_id="a-0")
    return some


def _only_the_odd_one_is_rejected(results: dict[str, PublishResult]) -> str:
    """The reason."""
    outcomes = {name: result.outcome for name, result in results.items()}
    assert outcomes.pop("odd") is Outcome.REJECTED
    assert set(outcomes.values()) == {Outcome.STORED}
    assert len(outcomes) == 199
    return str(results["odd"].reason)


@pytest.mark.parametrize("whose", ["account_payload", "user_payload"])
def test_envelope_above_the_limit_of_account_or_user_is_rejected_alone(
    tmp_path: Path, settings_for: Callable[..., JetStreamSettings], whose: str
) -> None:
    config, creds = operator_mode(tmp_path, **{whose: 64 * KB})
    with NatsServer(config=config) as server, Proxy(server.url) as proxy:
        settings = settings_for(proxy.url, credentials_file=creds)
        with opened(settings) as (pool, lane):
            reason = _only_the_odd_one_is_rejected(settle(lane, _with_one_of(100 * KB)))
            assert broker_of(pool)["reconnects"] == 0

            proxy.cut_all()
            until(lambda: broker_of(pool)["reconnects"] == 1)
            (late,) = settle(
                lane, [Envelope("limited.x", bytes(100 * KB), event_id="late")]
            ).values()
            assert late.outcome is Outcome.REJECTED

        assert proxy.connections == 2
    assert "the server's limit is 65536" in reason


@pytest.mark.parametrize("whose", ["account_payload", "user_payload"])
def test_envelope_accepted_while_disconnected_is_checked_before_it_is_sent(
    tmp_path: Path, settings_for: Callable[..., JetStreamSettings], whose: str
) -> None:
    config, creds = operator_mode(tmp_path, **{whose: 64 * KB})
    with NatsServer(config=config) as server, Proxy(server.url) as proxy:
        settings = settings_for(proxy.url, credentials_file=creds)
        with opened(settings) as (pool, lane):
            settle(lane, envelopes(10, "limited.x", first=1_000))
            server.kill()
            proxy.cut_all()
            until(lambda: not _is_up(pool))
            lane.submit(_with_one_of(100 * KB))
            server.start()

            results = {result.event_id: result for result in lane.flush()}

            assert broker_of(pool)["reconnects"] == 1
    assert "the server's limit is 65536" in _only_the_odd_one_is_rejected(results)


@pytest.mark.parametrize("before", [8, 1], ids=["same server", "server with another limit"])
def test_large_envelope_submitted_while_disconnected_is_stored(
    tmp_path: Path, settings_for: Callable[..., JetStreamSettings], before: int
) -> None:
    first = NatsServer(store_dir=tmp_path, config=f"max_payload: {before}MB")
    with first, opened(settings_for(first.url)) as (pool, lane):
        settle(lane, envelopes(10, "limited.x", first=1_000))
        first.kill()
        until(lambda: not _is_up(pool))
        lane.submit(_with_one_of(2 * KB * KB))
        port = first.port
        with NatsServer(store_dir=tmp_path, port=port, config="max_payload: 8MB"):
            results = lane.flush()
            assert {result.outcome for result in results} == {Outcome.STORED}
            assert len(results) == 200


def test_message_in_flight_above_a_lowered_limit_does_not_hold_the_others_up(
    tmp_path: Path, settings_for: Callable[..., JetStreamSettings]
) -> None:
    """It may have been stored by the first attempt; the next one must not be sent."""
    with (
        NatsServer(store_dir=tmp_path, config="max_payload: 1MB") as first,
        Proxy(first.url) as proxy,
        opened(settings_for(proxy.url, ack_timeout=30, delivery_timeout=60)) as (pool, lane),
    ):
        settle(lane, envelopes(10, "limited.x", first=1_000))
        proxy.requests.loses = lambda frame: frame.startswith((b"HPUB", b"PUB _"))
        batch = _with_one_of(200 * KB)
        batch[100] = batch[100]._replace(aggregate_id="odd")  # what follows one is not sent
        lane.submit(batch)
        until(lambda: proxy.requests.lost)
        first.kill()
        proxy.requests.loses = lambda frame: False
        with NatsServer(store_dir=tmp_path, config="max_payload: 100KB") as second:
            proxy.aim(second.url)
            results = {result.event_id: result for result in lane.flush()}
            assert broker_of(pool)["reconnects"] == 1

    assert results.pop("odd").outcome is not Outcome.STORED
    assert {result.outcome for result in results.values()} == {Outcome.STORED}


LONG = "limited." + "y" * 600
"""A topic that does not fit a control line of 512 bytes."""


def test_topic_that_is_too_long_for_the_server_is_rejected_alone(
    settings_for: Callable[..., JetStreamSettings],
) -> None:
    with NatsServer(config="max_control_line: 512") as server, Proxy(server.url) as proxy:
        with opened(settings_for(proxy.url)) as (pool, lane):
            began = time.monotonic()
            reason = _only_the_odd_one_is_rejected(settle(lane, _with_one_of(10, topic=LONG)))
            took = time.monotonic() - began
            for _ in range(3):
                reason = _only_the_odd_one_is_rejected(
                    settle(lane, [*_renamed(_with_one_of(10, topic=LONG))])
                )
            assert broker_of(pool)["reconnects"] <= 6

        assert proxy.connections <= 15
    assert took < 20
    assert "max_control_line is 512" in reason


@pytest.mark.parametrize("over", [0, 1])
def test_longest_control_line_that_fits_is_stored_and_the_next_is_rejected(
    settings_for: Callable[..., JetStreamSettings], over: int
) -> None:
    with (
        NatsServer(config="max_control_line: 512") as server,
        Proxy(server.url) as proxy,
        opened(settings_for(proxy.url)) as (_, lane),
    ):
        settle(lane, _with_one_of(10, topic=LONG))
        settle(lane, [Envelope("limited.z", b"", event_id="probe")])
        line = next(line for line in proxy.requests.frames if line.startswith(b"HPUB limited.z"))
        # `HPUB <topic> <reply> <headers> <total>`
        rest = len(line) - len(b"HPUB limited.z\r\n")
        topic = "limited." + "z" * (512 - rest - len("limited.") + over)
        (result,) = settle(lane, [Envelope(topic, b"", event_id="edge0")]).values()

    assert (result.outcome is Outcome.REJECTED) == bool(over)


def test_topic_that_fits_as_a_single_and_not_in_a_batch_is_stored() -> None:
    topic = "limited." + "m" * 380
    with NatsServer(config="max_control_line: 512") as server, Proxy(server.url) as proxy:
        make_stream(server.url, "LIMITED", "limited.>", allow_batched=True)
        with opened(jetstream(proxy.url)) as (pool, lane):
            settle(lane, _with_one_of(10, topic=LONG))
            results = settle(lane, envelopes(100, topic, first=1_000))
            assert broker_of(pool)["batches"] > 0
        assert {result.outcome for result in results.values()} == {Outcome.STORED}
        assert sum(each.subject == topic for each in stored(server.url, "LIMITED")) == 100


def test_server_with_another_control_line_limit_is_measured_anew(tmp_path: Path) -> None:
    with (
        NatsServer(store_dir=tmp_path, config="max_control_line: 512") as first,
        opened(jetstream(first.url, streams=(LIMITED,))) as (pool, lane),
    ):
        settle(lane, _with_one_of(10, topic=LONG))
        first.kill()
        until(lambda: not _is_up(pool))
        with NatsServer(store_dir=tmp_path, port=first.port):
            (result,) = settle(lane, [Envelope(LONG, b"", event_id="again")]).values()
    assert result.outcome is Outcome.STORED


def test_group_with_a_topic_that_is_too_long_is_rejected_and_the_others_are_stored() -> None:
    stream = LIMITED.model_copy(update={"allow_atomic": True})
    groups = [
        Envelope(topic, b"%d" % number, event_id=f"{name}-{number}", aggregate_id=name)
        for name, topic in (("a", "limited.a"), ("b", LONG), ("c", "limited.c"))
        for number in range(3)
    ]
    with NatsServer(config="max_control_line: 512") as server:
        results = publish(jetstream(server.url, streams=(stream,), atomic=True), *groups)

    outcomes = {name: results[f"{name}-0"].outcome for name in "abc"}
    assert outcomes == {"a": Outcome.STORED, "b": Outcome.REJECTED, "c": Outcome.STORED}


def _is_up(pool: object) -> bool:
    (shared,) = pool._thread._publishers.values()  # type: ignore[attr-defined]
    return bool(shared.publisher._connection.is_up)


def _renamed(some: list[Envelope]) -> list[Envelope]:
    """The same with new event ids, except for the odd one."""
    return [
        each if each.event_id == "odd" else each._replace(event_id=f"{time.monotonic_ns()}-{at}")
        for at, each in enumerate(some)
    ]
