"""Groups that cannot be sent as they are, and that an earlier run may have stored in part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, PublishResult
from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import jetstream, opened
from tests.support.streams import Names, envelopes, make_stream, message_ids

KB = 1024
BEFORE = Envelope("", b"", "before", "other")
"""What makes a stream one that was not empty when the run began."""


def _settings(url: str, **more: Any) -> JetStreamSettings:
    return jetstream(url, atomic=True, **more)


def _publish(url: str, *submissions: Sequence[Envelope]) -> list[PublishResult]:
    """The results of the last submission, in order of its envelopes."""
    with opened(_settings(url)) as (_, lane):
        results: list[PublishResult] = []
        for some in submissions:
            lane.submit(some)
            results = lane.flush()
        assert lane.stop_reason is None
        assert len(results) == len(submissions[-1])
        return results


def _of(results: list[PublishResult]) -> dict[str, tuple[Outcome, bool]]:
    return {result.event_id: (result.outcome, bool(result.duplicate)) for result in results}


KNOWN, NEW = (Outcome.STORED, True), (Outcome.STORED, False)
REFUSED = (Outcome.REJECTED, False)


@pytest.mark.parametrize(
    ("known", "others"),
    [((0, 1, 2, 3), KNOWN), ((2,), NEW), ((0, 2), NEW), ((0, 1), REFUSED), ((), REFUSED)],
    ids=str,
)
def test_group_with_an_envelope_above_a_lowered_limit_keeps_what_is_stored(
    tmp_path: Path, known: tuple[int, ...], others: tuple[Outcome, bool]
) -> None:
    batch = envelopes(4, "lowered", aggregates=1)
    batch[2] = batch[2]._replace(payload=b"2" * 40 * KB)
    with NatsServer(store_dir=tmp_path) as server:
        make_stream(server.url, "LOWERED", "lowered", allow_atomic=True)
        before = [BEFORE._replace(topic="lowered")]
        _publish(server.url, before, *([batch[index]] for index in known))
    with NatsServer(store_dir=tmp_path, config=f"max_payload: {20 * KB}") as server:
        results = _publish(server.url, batch)
        ids = message_ids(server.url, "LOWERED")

    assert _of(results) == {
        each.event_id: KNOWN if index in known else others for index, each in enumerate(batch)
    }
    stored = {result.event_id for result in results if result.outcome is Outcome.STORED}
    assert set(ids) == {"before"} | stored
    assert len(ids) == len(set(ids))
    for result in results:
        if result.outcome is Outcome.REJECTED:
            assert "envelope 'e-2' of the same group cannot be stored: " in str(result.reason)
            assert f"the server's limit is {20 * KB}" in str(result.reason)
            assert result.attempts == 0


def test_reason_names_the_large_envelope_that_is_not_stored(tmp_path: Path) -> None:
    batch = envelopes(3, "lowered", aggregates=1)
    batch = [each._replace(payload=bytes(40 * KB)) for each in batch]
    with NatsServer(store_dir=tmp_path) as server:
        make_stream(server.url, "LOWERED", "lowered", allow_atomic=True)
        _publish(server.url, batch[:2])
    with NatsServer(store_dir=tmp_path, config=f"max_payload: {20 * KB}") as server:
        results = {each.event_id: each for each in _publish(server.url, batch)}

    assert {results[event_id].outcome for event_id in ("e-0", "e-1")} == {Outcome.STORED}
    assert str(results["e-2"].reason).startswith(
        "envelope 'e-2' of the same group cannot be stored"
    )


def test_envelope_alone_of_its_aggregate_above_a_lowered_limit_is_found_stored(
    tmp_path: Path,
) -> None:
    large = Envelope("lowered", b"." * 40 * KB, "large", "a")
    with NatsServer(store_dir=tmp_path) as server:
        make_stream(server.url, "LOWERED", "lowered", allow_atomic=True)
        _publish(server.url, [large])
    with NatsServer(store_dir=tmp_path, config=f"max_payload: {20 * KB}") as server:
        results = _publish(server.url, [large, large._replace(event_id="new", aggregate_id="b")])

    assert _of(results) == {"large": KNOWN, "new": REFUSED}


def test_envelope_too_large_for_a_group_was_stored_by_itself(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    make_stream(nats_server.url, name, name, allow_atomic=True)
    batch = envelopes(3, name, aggregates=1)
    batch[1] = batch[1]._replace(payload=b"1" * (1024 * KB - 150))

    assert _of(_publish(nats_server.url, batch[1:2], batch)) == {
        "e-0": NEW,
        "e-1": KNOWN,
        "e-2": NEW,
    }


def test_too_many_envelopes_for_one_group_were_stored_as_two(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    make_stream(nats_server.url, name, name, allow_atomic=True)
    batch = envelopes(1_001, name, aggregates=1)
    results = _publish(nats_server.url, batch[:500], batch[500:], batch)

    assert set(_of(results).values()) == {KNOWN}
    assert len(message_ids(nats_server.url, name)) == 1_001


def test_envelopes_of_two_streams_in_one_group_were_stored_one_by_one(
    nats_server: NatsServer, names: Names
) -> None:
    one, two = names(), names()
    for name in (one, two):
        make_stream(nats_server.url, name, name, allow_atomic=True)
    batch = [Envelope(name, b"", f"in {name}", "a") for name in (one, two)]
    results = _publish(nats_server.url, batch[:1], batch[1:], batch)

    assert set(_of(results).values()) == {KNOWN}


@pytest.mark.parametrize("known", [(0, 3), (0,), ()], ids=str)
def test_group_with_a_bad_envelope_keeps_what_is_stored_and_stores_nothing_else(
    nats_server: NatsServer, names: Names, known: tuple[int, ...]
) -> None:
    name = names()
    make_stream(nats_server.url, name, name, allow_atomic=True)
    batch = envelopes(4, name, aggregates=1)
    bad = [*batch[:2], batch[2]._replace(payload="text"), batch[3]]  # type: ignore[arg-type]
    before = [BEFORE._replace(topic=name)]
    results = _publish(nats_server.url, before, *([batch[index]] for index in known), bad)

    assert _of(results) == {
        f"e-{index}": KNOWN if index in known else REFUSED for index in range(4)
    }
    assert message_ids(nats_server.url, name) == ["before", *(f"e-{index}" for index in known)]


@pytest.mark.parametrize("replayed", [False, True])
def test_envelope_that_is_twice_in_its_group_is_named_unless_it_is_stored(
    nats_server: NatsServer, names: Names, replayed: bool
) -> None:
    name = names()
    make_stream(nats_server.url, name, name, allow_atomic=True)
    batch = envelopes(3, name, aggregates=1)
    earlier = [batch[:2]] if replayed else [[BEFORE._replace(topic=name)]]
    results = _publish(nats_server.url, *earlier, [*batch, batch[0]])

    if replayed:
        assert [result.outcome for result in results] == [Outcome.STORED] * 4
        assert message_ids(nats_server.url, name) == ["e-0", "e-1", "e-2"]
    else:
        assert {result.outcome for result in results} == {Outcome.REJECTED}
        for result in results:
            assert str(result.reason) == (
                "envelope 'e-0' is 2 times in its group, and the server stores no group with an "
                "event id twice: emit it once, or give each of them an id of its own"
            )
            assert result.attempts == 0
        assert message_ids(nats_server.url, name) == ["before"]
