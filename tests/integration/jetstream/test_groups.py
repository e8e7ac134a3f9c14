"""Groups on real servers: envelopes of one aggregate submitted together are stored all or none."""

import asyncio
import json
import time
from itertools import pairwise
from typing import Any

import nats
import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions, PublishResult
from bytewax_jetstream.jetstream.publisher.publisher import JetStreamPublisher
from bytewax_jetstream.settings import JetStreamSettings, StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import FLAWLESS, api, audit, envelopes, make_stream, message_ids, stored
from tests.support.waiting import until

LARGE = b"1" * 500


def _settings(url: str, **more: Any) -> JetStreamSettings:
    return jetstream(url, atomic=True, **more)


def _outcomes(results: dict[str, PublishResult]) -> set[Outcome]:
    return {result.outcome for result in results.values()}


@pytest.mark.parametrize("batched", [True, False])
def test_groups_are_stored_contiguously_and_each_result_has_its_sequence(
    nats_server: NatsServer, batched: bool
) -> None:
    stream = f"GROUPS{batched}".upper()
    make_stream(nats_server.url, stream, stream, allow_atomic=True, allow_batched=batched)
    batch = envelopes(3_000, stream, aggregates=7)
    batch[50] = batch[50]._replace(aggregate_id=None)
    batch[51] = batch[51]._replace(aggregate_id="alone")
    with opened(_settings(nats_server.url)) as (_, lane):
        results = settle(lane, batch)

    assert _outcomes(results) == {Outcome.STORED}
    assert {result.attempts for result in results.values()} == {1}
    found = stored(nats_server.url, stream)
    for sequence, message in enumerate(found, start=1):
        alone = "Nats-Batch-Id" not in message.headers
        assert results[message.headers["Nats-Msg-Id"]].sequence in (
            (sequence, None) if alone else (sequence,)
        )
    groups = [message.headers.get("Nats-Batch-Id") for message in found]
    assert len(set(groups)) == 8  # one for each aggregate, and none for the two that are alone
    assert sum(before != after for before, after in pairwise(groups)) <= 9
    assert audit(nats_server.url, stream, batch) == FLAWLESS


def test_refused_group_stores_nothing_and_the_other_groups_are_stored(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "ALLORNONE", "allornone", allow_atomic=True, max_msg_size=400)
    batch = [
        Envelope("allornone", LARGE if at == 8 else b"1", f"e-{at}", f"a-{at % 3}")
        for at in range(15)
    ]
    with opened(_settings(nats_server.url, ack_timeout=20)) as (pool, lane):
        results = settle(lane, batch)
        assert broker_of(pool)["retries"] == 0

    refused = {f"e-{at}" for at in range(15) if at % 3 == 8 % 3}
    assert {id_ for id_, result in results.items() if result.outcome is Outcome.REJECTED} == refused
    assert {results[event_id].code for event_id in refused} == {10054}
    assert set(message_ids(nats_server.url, "ALLORNONE")) == set(results) - refused


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            {"payload": "text"},
            "envelope 'e-4' of the same group cannot be stored: the payload must be bytes or None",
        ),
        (
            {"topic": "elsewhere"},
            "its group goes to streams BADONE and ELSEWHERE, and only one stream can store it",
        ),
        (
            {"payload": b"1" * (1024 * 1024 - 150)},
            (
                "in a group the limit is 1048416: shorten it or raise the server's max_payload of "
                "1048576"
            ),
        ),
    ],
)
def test_impossible_group_is_rejected_before_anything_of_it_is_sent(
    nats_server: NatsServer, bad: dict[str, Any], words: str
) -> None:
    for name in ("BADONE", "ELSEWHERE"):
        if name not in (api(nats_server.url, "STREAM.NAMES")["streams"] or ()):
            make_stream(nats_server.url, name, name.lower(), allow_atomic=True)
    batch = envelopes(9, "badone", aggregates=3)
    batch[4] = batch[4]._replace(**bad)
    with opened(_settings(nats_server.url)) as (_, lane):
        results = settle(lane, batch)

    rejected = {event_id: result.reason for event_id, result in results.items() if result.reason}
    assert set(rejected) == {"e-1", "e-4", "e-7"}
    assert words in str(rejected["e-1"])
    assert {result.attempts for result in results.values() if result.reason} == {0}


def test_group_may_have_a_thousand_envelopes_and_no_more(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "THOUSAND", "thousand", allow_atomic=True)
    most, more = (
        envelopes(1_000, "thousand", aggregates=1),
        envelopes(1_001, "thousand", first=5_000, aggregates=1),
    )
    with opened(_settings(nats_server.url)) as (_, lane):
        assert _outcomes(settle(lane, most)) == {Outcome.STORED}
        results = settle(lane, more)

    assert _outcomes(results) == {Outcome.REJECTED}
    assert "its group has 1001 envelopes, and the limit for storing all or none is 1000" in str(
        results["e-5000"].reason
    )


def test_expectation_of_the_first_envelope_holds_for_the_group(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "EXPECTING", "expecting", allow_atomic=True)
    first, second = (
        envelopes(4, "expecting", aggregates=1),
        envelopes(4, "expecting", first=4, aggregates=1),
    )
    first[0] = first[0]._replace(options=PublishOptions(expected_last_subject_sequence=0))
    second[0] = second[0]._replace(options=PublishOptions(expected_last_subject_sequence=2))
    with opened(_settings(nats_server.url)) as (_, lane):
        assert _outcomes(settle(lane, first)) == {Outcome.STORED}
        assert _outcomes(settle(lane, first)) == {
            Outcome.STORED
        }  # its own message is what fails the expectation
        assert _outcomes(settle(lane, second)) == {Outcome.REJECTED}

    assert audit(nats_server.url, "EXPECTING", first) == FLAWLESS


@pytest.mark.parametrize("index", [0, 2])
def test_unmet_expectation_at_any_index_rejects_the_group(
    nats_server: NatsServer, index: int
) -> None:
    stream = f"UNMET{index}"
    make_stream(nats_server.url, stream, stream, allow_atomic=True)
    batch = envelopes(4, stream, aggregates=1)
    batch[index] = batch[index]._replace(options=PublishOptions(expected_last_subject_sequence=7))
    with opened(_settings(nats_server.url, ack_timeout=20)) as (pool, lane):
        assert _outcomes(settle(lane, batch)) == {Outcome.REJECTED}
        assert broker_of(pool)["retries"] == 0

    assert stored(nats_server.url, stream) == []


@pytest.mark.parametrize("servers", ["nats_server", "cluster"])
@pytest.mark.parametrize("known", [slice(0, 6), slice(0, 1), slice(2, 4), slice(5, 6)], ids=str)
def test_replayed_group_has_duplicates_and_its_rest_is_stored_as_a_group(
    request: pytest.FixtureRequest, servers: str, known: slice
) -> None:
    server = request.getfixturevalue(servers)
    stream = f"KNOWN{known.start}_{known.stop}"
    make_stream(
        server.url, stream, stream, allow_atomic=True, num_replicas=3 if servers == "cluster" else 1
    )
    batch = envelopes(6, stream, aggregates=1)
    batch[3] = batch[3]._replace(event_id="not a plain id")
    with opened(_settings(server.url)) as (_, lane):
        for envelope in batch[known]:
            settle(lane, [envelope])
        results = settle(lane, batch)

    assert _outcomes(results) == {Outcome.STORED}
    assert {id_ for id_, result in results.items() if result.duplicate} == {
        each.event_id for each in batch[known]
    }
    found = stored(server.url, stream)
    order = [*batch[known], *(each for each in batch if each not in batch[known])]
    assert [message.payload for message in found] == [each.payload for each in order]
    assert [results[each.event_id].sequence for each in order] == [1, 2, 3, 4, 5, 6]
    rest = {message.headers.get("Nats-Batch-Id") for message in found[len(batch[known]) :]}
    assert len(rest) <= 1, "the rest was not stored as one group"


def test_named_group_is_the_same_however_the_source_cuts_its_batches(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "NAMED", "named", allow_atomic=True)
    batch = [
        each._replace(options=PublishOptions(group=f"order-{number // 3}"))
        for number, each in enumerate(envelopes(12, "named", aggregates=1))
    ]
    with opened(_settings(nats_server.url)) as (_, lane):
        first = settle(lane, batch[:9])
        again = settle(lane, batch[3:])

    assert _outcomes(first | again) == {Outcome.STORED}
    assert {id_ for id_, each in again.items() if each.duplicate} == {f"e-{n}" for n in range(3, 9)}
    found = stored(nats_server.url, "NAMED")
    assert [message.payload for message in found] == [each.payload for each in batch]
    groups = [message.headers["Nats-Batch-Id"] for message in found]
    assert [groups.count(name) for name in dict.fromkeys(groups)] == [3, 3, 3, 3]


def test_a_thousand_known_groups_are_looked_up_at_once_on_a_long_link(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "KNOWN1000", "known1000", allow_atomic=True, storage="memory")
    batch = envelopes(2_000, "known1000", aggregates=1_000)
    publish(_settings(nats_server.url, ack_timeout=10), *batch)
    with Proxy(nats_server.url, opaque=True) as proxy:
        proxy.requests.delay = proxy.answers.delay = 0.015
        began = time.monotonic()

        results = publish(_settings(proxy.url, ack_timeout=10, delivery_timeout=40), *batch)

    assert time.monotonic() - began < 25, "one after the other takes 30 s at least"
    assert {(each.outcome, each.duplicate) for each in results.values()} == {(Outcome.STORED, True)}


@pytest.mark.parametrize(
    ("group", "atomic", "words"),
    [
        ("order-1", False, "group 'order-1' needs atomic=True in the settings"),
        ("", True, "invalid group '': give a str that is not empty"),
        (7, True, "invalid group 7: give a str that is not empty"),
    ],
)
def test_bad_group_is_rejected_with_what_to_do(
    nats_server: NatsServer, group: Any, atomic: bool, words: str
) -> None:
    stream = f"BADGROUP{atomic}{group}".replace("-", "").upper()
    make_stream(nats_server.url, stream, stream, allow_atomic=True)
    bad = Envelope(stream, b"", "bad", "a", options=PublishOptions(group=group))
    with opened(jetstream(nats_server.url, atomic=atomic)) as (_, lane):
        results = settle(lane, [bad, Envelope(stream, b"", "good", "b")])

    assert results["good"].outcome is Outcome.STORED
    assert results["bad"].outcome is Outcome.REJECTED
    assert words in str(results["bad"].reason)


def test_refused_rest_of_a_replayed_group_leaves_its_known_envelopes_stored(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "REST", "rest", allow_atomic=True, max_msg_size=400)
    batch = envelopes(6, "rest", aggregates=1)
    batch[4] = batch[4]._replace(payload=LARGE)
    with opened(_settings(nats_server.url)) as (_, lane):
        settle(lane, batch[:1])
        results = settle(lane, batch)

        assert lane.stop_reason is None
    assert [results[each.event_id].outcome for each in batch] == [
        Outcome.STORED,
        *[Outcome.REJECTED] * 5,
    ]
    assert message_ids(nats_server.url, "REST") == ["e-0"]


def test_the_same_id_twice_in_a_group_is_rejected(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "TWICE", "twice", allow_atomic=True)
    batch = envelopes(3, "twice", aggregates=1)
    with opened(_settings(nats_server.url)) as (_, lane):
        lane.submit([*batch, batch[0]])
        results = lane.flush()

    assert {result.outcome for result in results} == {Outcome.REJECTED}
    assert {"envelope 'e-0' is 2 times in its group" in str(each.reason) for each in results} == {
        True
    }
    assert stored(nats_server.url, "TWICE") == []


def test_group_whose_answer_is_lost_is_found_stored(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stream(nats_server.url, "UNHEARD", "unheard", allow_atomic=True)
    batch = envelopes(10, "unheard", aggregates=2)
    unheard = iter(range(2))
    answered = JetStreamPublisher._answered

    def deaf(
        self: JetStreamPublisher, subject: bytes, reply: bytes, header: bytes | None, payload: bytes
    ) -> None:
        if b'"batch"' not in payload or next(unheard, None) is None:
            answered(self, subject, reply, header, payload)

    monkeypatch.setattr(JetStreamPublisher, "_answered", deaf)
    with opened(_settings(nats_server.url, ack_timeout=0.3)) as (_, lane):
        results = settle(lane, batch)

    assert {(r.outcome, r.duplicate, r.attempts) for r in results.values()} == {
        (Outcome.STORED, True, 2)
    }
    assert sorted(result.sequence or 0 for result in results.values()) == list(range(1, 11))
    assert audit(nats_server.url, "UNHEARD", batch) == FLAWLESS


@pytest.mark.parametrize("dedupe", [True, False])
def test_groups_stay_complete_when_the_server_is_killed(tmp_path: Any, dedupe: bool) -> None:
    with NatsServer(store_dir=tmp_path / "store") as server:
        make_stream(server.url, "DEATH", "death", allow_atomic=True)
        rounds = [
            envelopes(2_000, "death", first=2_000 * number, aggregates=40) for number in range(6)
        ]
        with opened(_settings(server.url, dedupe=dedupe)) as (pool, lane):
            for number, batch in enumerate(rounds):
                lane.submit(batch)
                if number in (1, 3):
                    until(lambda: pool.statistics()["stored"] > 2_000 * (number - 1))  # noqa: B023  # called here only
                    server.kill()
                    server.start()
            results = lane.flush()

        assert {result.outcome for result in results} == {Outcome.STORED}
        found = stored(server.url, "DEATH")
    at = "Nats-Msg-Id" if dedupe else "Event-Id"
    ids = [message.headers[at] for message in found]
    group_of = {
        each.event_id: (number, each.aggregate_id)
        for number, batch in enumerate(rounds)
        for each in batch
    }
    assert set(ids) == set(group_of)
    if dedupe:
        assert len(ids) == len(set(ids))
    sizes: dict[tuple[str, object], int] = {}
    for message in found:
        key = message.headers["Nats-Batch-Id"], group_of[message.headers[at]]
        sizes[key] = sizes.get(key, 0) + 1
    assert set(sizes.values()) == {50}


def test_stream_without_atomic_publish_stops_the_run_with_what_to_do(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "PLAIN", "plain")
    with opened(_settings(nats_server.url)) as (_, lane):
        results = settle(lane, envelopes(4, "plain", aggregates=1))

        assert _outcomes(results) == {Outcome.REJECTED}
        assert "atomic publish is disabled (10174): set allow_atomic on the stream" in str(
            lane.stop_reason
        )


def test_a_declared_stream_stores_groups(nats_server: NatsServer) -> None:
    stream = StreamSettings(name="DECLARED", subjects=("declared",), allow_atomic=True)
    with opened(_settings(nats_server.url, streams=(stream,))) as (_, lane):
        assert _outcomes(settle(lane, envelopes(4, "declared", aggregates=1))) == {Outcome.STORED}
    with pytest.raises(
        ValueError, match="atomic needs allow_atomic on stream DECLARED: set it there too"
    ):
        _settings(
            nats_server.url, streams=(StreamSettings(name="DECLARED", subjects=("declared",)),)
        )


@pytest.mark.parametrize("servers", ["nats_server", "cluster"])
@pytest.mark.parametrize("rollup", [True, False])
def test_server_checks_the_message_id_before_it_refuses_the_message(
    request: pytest.FixtureRequest, servers: str, rollup: bool
) -> None:
    """The look-up of a group's ids relies on this. If it fails with another server, change the
    look-up.
    """
    server = request.getfixturevalue(servers)
    name = f"LOOK{rollup}".upper()
    replicas = 3 if servers == "cluster" else 1
    make_stream(server.url, name, name, allow_rollup_hdrs=rollup, num_replicas=replicas)

    async def ask() -> list[dict[str, Any]]:
        client = await nats.connect(server.url.split(","))
        try:
            answers = []
            for event_id, more in [
                ("a", {}),
                ("a", {"Nats-Rollup": "none"}),
                ("b", {"Nats-Rollup": "none"}),
                ("b", {}),
            ]:
                headers = {"Nats-Msg-Id": event_id, **more}
                answers.append(
                    json.loads((await client.request(name, b"", timeout=5, headers=headers)).data)
                )
            return answers
        finally:
            await client.close()

    new, known, unknown, alone = asyncio.run(ask())
    assert (new["seq"], known["seq"], known["duplicate"]) == (1, 1, True)
    assert unknown["error"]["err_code"] == 10111
    assert (alone["seq"], alone.get("duplicate")) == (2, None)
