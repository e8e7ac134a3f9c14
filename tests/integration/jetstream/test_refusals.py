"""What a refusal proves, and what it does not: rejected is only what is definitely not stored."""

import asyncio
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import nats
import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions, PublishResult
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import (
    FLAWLESS,
    api,
    audit,
    change_stream,
    envelopes,
    make_stream,
    message_ids,
)
from tests.support.waiting import until


def _outcomes(results: dict[str, PublishResult]) -> Counter[tuple[Outcome, bool | None]]:
    return Counter((result.outcome, result.duplicate) for result in results.values())


def _expecting(batch: list[Envelope], first: int = 0) -> list[Envelope]:
    """Each expects the one before it to be the last of the stream."""
    return [
        each._replace(options=PublishOptions(expected_last_sequence=first + index))
        for index, each in enumerate(batch)
    ]


# Expected sequences that were stored before


def _nothing(url: str, stream: str) -> None:
    """It stays as it is."""


def _purge(url: str, stream: str) -> None:
    api(url, f"STREAM.PURGE.{stream}")


def _consume(url: str, stream: str) -> None:
    """A work queue removes what was acknowledged."""

    async def take() -> None:
        client = await nats.connect(url)
        try:
            messages = await client.jetstream().pull_subscribe("", durable="w", stream=stream)
            for message in await messages.fetch(5, timeout=5):
                await message.ack_sync()
        finally:
            await client.close()

    asyncio.run(take())
    assert api(url, f"STREAM.INFO.{stream}")["state"]["messages"] == 0


def _expire(url: str, stream: str) -> None:
    until(lambda: api(url, f"STREAM.INFO.{stream}")["state"]["messages"] == 0)


@pytest.mark.parametrize(
    ("config", "afterwards"),
    [
        ({}, _nothing),
        ({"max_msgs_per_subject": 1}, _nothing),
        ({"subject_transform": {"src": "moved.>", "dest": "elsewhere.>"}}, _nothing),
        ({}, _purge),
        ({"retention": "workqueue"}, _consume),
        ({"allow_msg_ttl": True}, _expire),
    ],
    ids=["kept", "one-per-subject", "transform", "purged", "consumed", "expired"],
)
@pytest.mark.parametrize("batched", [True, False])
def test_replayed_expected_sequence_is_a_duplicate_and_not_rejected(
    nats_server: NatsServer, config: dict[str, Any], afterwards: Any, batched: bool, names: Any
) -> None:
    stream, url = names(), nats_server.url
    topic = "moved.x" if "subject_transform" in config else f"{stream}.x"
    subject = "moved.>" if "subject_transform" in config else f"{stream}.>"
    make_stream(url, stream, subject, allow_batched=batched, **config)
    ttl = timedelta(seconds=1) if "allow_msg_ttl" in config else None
    batch = [
        each._replace(options=each.options._replace(ttl=ttl) if each.options else None)
        for each in _expecting(envelopes(5, topic, aggregates=1))
    ]
    try:
        assert _outcomes(publish(jetstream(url), *batch)) == {(Outcome.STORED, False): 5}
        afterwards(url, stream)

        again = publish(jetstream(url), *batch)
        stranger = batch[0]._replace(event_id="stranger")
        (other,) = publish(jetstream(url), stranger).values()
    finally:
        api(url, f"STREAM.DELETE.{stream}")

    assert _outcomes(again) == {(Outcome.STORED, True): 5}
    assert [again[each.event_id].sequence for each in batch] == [1, 2, 3, 4, 5]
    assert other.outcome is Outcome.REJECTED
    assert other.code == 10071


def test_expected_sequence_is_found_in_the_stream_after_its_duplicate_window(
    nats_server: NatsServer,
) -> None:
    url = nats_server.url
    make_stream(url, "WINDOW", "window.>", duplicate_window=100_000_000)
    batch = _expecting(envelopes(5, "window.x", aggregates=1))
    publish(jetstream(url, stream_strategy="skip"), *batch)
    time.sleep(0.3)  # the window is over: nobody says so

    assert _outcomes(publish(jetstream(url, stream_strategy="skip"), *batch)) == {
        (Outcome.STORED, True): 5
    }
    assert len(message_ids(url, "WINDOW")) == 5


def test_a_thousand_expected_sequences_are_looked_up_at_once_on_a_long_link(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "LONG", "long.>")
    batch = [
        Envelope(
            f"long.{number}",
            b"1",
            f"e-{number}",
            f"a-{number}",
            options=PublishOptions(expected_last_subject_sequence=0),
        )
        for number in range(1_500)
    ]
    publish(jetstream(nats_server.url), *batch)
    with Proxy(nats_server.url, opaque=True) as proxy:
        proxy.requests.delay = proxy.answers.delay = 0.015
        began = time.monotonic()

        results = publish(jetstream(proxy.url, ack_timeout=5, delivery_timeout=40), *batch)

    assert time.monotonic() - began < 40, "one after the other takes 45 s at least"
    assert _outcomes(results) == {(Outcome.STORED, True): 1_500}


@pytest.mark.parametrize("lost", [1, 7], ids=["one answer", "all answers of one look-up"])
def test_lost_answer_of_a_look_up_is_asked_for_again(
    nats_server: NatsServer, proxy: Proxy, lost: int, names: Any
) -> None:
    stream = names()
    make_stream(nats_server.url, stream, f"{stream}.>")
    batch = _expecting(envelopes(1, f"{stream}.x"))
    publish(jetstream(nats_server.url), *batch)
    left = [lost]

    def loses(frame: bytes) -> bool:
        is_answer = b".q." in frame and frame.startswith(b"MSG")
        left[0] -= is_answer
        return is_answer and left[0] >= 0

    proxy.answers.loses = loses
    results = publish(jetstream(proxy.url, ack_timeout=0.6), *batch)

    assert proxy.answers.lost >= lost
    assert _outcomes(results) == {(Outcome.STORED, True): 1}


# Limits that were lowered after messages were stored


def test_stored_envelope_is_not_rejected_when_the_streams_size_limit_was_lowered(
    nats_server: NatsServer,
) -> None:
    url = nats_server.url
    make_stream(url, "SMALLER", "smaller.>", allow_batched=True, max_msg_size=5_000)
    batch = envelopes(20, "smaller.x", aggregates=4)
    batch[7] = batch[7]._replace(payload=b"7" * 3_000)
    publish(jetstream(url), *batch)
    change_stream(url, "SMALLER", max_msg_size=1_000)
    too_large = Envelope("smaller.x", b"7" * 3_000, "too large")

    with opened(jetstream(url)) as (pool, lane):
        # New ones first, in a batch: from then on batches go without being asked for.
        first = settle(lane, envelopes(2, "smaller.x", first=50))
        assert broker_of(pool)["batches"] == 1
        results = settle(lane, batch)
        later = settle(lane, [too_large, *envelopes(5, "smaller.x", first=40)])

    assert {result.outcome for result in (first | results).values()} == {Outcome.STORED}
    assert later.pop("too large").outcome is Outcome.REJECTED
    assert {result.outcome for result in later.values()} == {Outcome.STORED}


def test_stored_envelope_is_not_rejected_when_the_servers_max_payload_was_lowered(
    tmp_path: Path,
) -> None:
    large = [
        each._replace(payload=b"%d" % number * 40_000)
        for number, each in enumerate(envelopes(10, "lowered.x", first=1, aggregates=3), start=1)
    ]
    with NatsServer(store_dir=tmp_path) as server:
        make_stream(server.url, "LOWERED", "lowered.>", allow_batched=True)
        publish(jetstream(server.url), *large[:6])
    with (
        NatsServer(store_dir=tmp_path, config="max_payload: 20000") as server,
        opened(jetstream(server.url)) as (_, lane),
    ):
        results = settle(lane, [*large, *envelopes(5, "lowered.x", first=50)])

        assert lane.stop_reason is None
    assert {id_ for id_, each in results.items() if each.outcome is Outcome.REJECTED} == {
        f"e-{number}" for number in range(7, 11)
    }
    assert "the server's limit is 20000" in str(results["e-7"].reason)
    assert results["e-1"].duplicate is True
    assert results["e-1"].sequence == 1
    assert {results[f"e-{n}"].outcome for n in (1, 6, 50, 54)} == {Outcome.STORED}


# A subject that is full


@pytest.mark.parametrize("batched", [True, False])
def test_full_subject_rejects_its_message_at_once_and_the_others_go_on(
    nats_server: NatsServer, batched: bool
) -> None:
    stream, url = f"FULL{batched}".upper(), nats_server.url
    config = {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}
    make_stream(url, stream, f"{stream}.>", allow_batched=batched, **config)
    with opened(jetstream(url, ack_timeout=20)) as (pool, lane):
        settle(lane, [Envelope(f"{stream}.full", b"", "there")])
        batch = [
            Envelope(f"{stream}.{'full' if n == 5 else n}", b"", f"e-{n}", f"a-{n % 3}")
            for n in range(20)
        ]
        results = settle(lane, batch)

        assert lane.stop_reason is None
        assert broker_of(pool)["retries"] == 0
    assert [each.event_id for each in results.values() if each.outcome is not Outcome.STORED] == [
        "e-5"
    ]
    assert results["e-5"].outcome is Outcome.REJECTED
    assert results["e-5"].code == 10077
    assert f"raise max_msgs_per_subject of stream {stream}" in str(results["e-5"].reason)


def test_full_subject_of_a_work_queue_is_retried_until_it_has_room(
    nats_server: NatsServer,
) -> None:
    url = nats_server.url
    config = {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}
    make_stream(url, "QUEUE", "queue.>", retention="workqueue", **config)
    with opened(jetstream(url)) as (pool, lane):
        settle(lane, [Envelope("queue.full", b"", "there")])
        lane.submit([Envelope("queue.full", b"", "waits"), Envelope("queue.other", b"", "goes")])
        until(lambda: broker_of(pool)["retries"] > 1 and lane.unsettled == 1)
        api(url, "STREAM.PURGE.QUEUE")
        results = {result.event_id: result for result in lane.flush()}

    assert {result.outcome for result in results.values()} == {Outcome.STORED}


def test_full_subject_that_gets_no_room_is_rejected_at_its_delivery_timeout(
    nats_server: NatsServer,
) -> None:
    url = nats_server.url
    config = {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}
    make_stream(url, "AGED", "aged.>", max_age=600_000_000_000, **config)
    with opened(jetstream(url, delivery_timeout=3)) as (_, lane):
        settle(lane, [Envelope("aged.full", b"", "there")])
        results = settle(lane, [Envelope("aged.full", b"", "late"), Envelope("aged.x", b"", "ok")])

        assert lane.stop_reason is None
    assert results["ok"].outcome is Outcome.STORED
    assert results["late"].outcome is Outcome.REJECTED
    assert results["late"].attempts > 2
    assert "(refused at each of " in str(results["late"].reason)


# Payloads of a second run under the ids of the first


@pytest.mark.parametrize("count", [1, 4, 2_000])
def test_second_run_under_the_same_ids_is_told_that_all_are_duplicates(
    nats_server: NatsServer, count: int
) -> None:
    stream, url = f"SECOND{count}", nats_server.url
    make_stream(url, stream, f"{stream}.>", allow_batched=True)
    batch = envelopes(count, f"{stream}.x")
    publish(jetstream(url), *batch)

    again = publish(jetstream(url), *(each._replace(payload=b"7") for each in batch))

    assert _outcomes(again) == {(Outcome.STORED, True): count}
    assert audit(url, stream, batch) == FLAWLESS


def test_replay_that_goes_beyond_what_is_stored_names_the_known_ones(
    nats_server: NatsServer,
) -> None:
    url = nats_server.url
    make_stream(url, "BEYOND", "beyond.>", allow_batched=True)
    batch = envelopes(3_000, "beyond.x")
    publish(jetstream(url), *batch[:700])

    results = publish(jetstream(url), *batch)

    known = {each.event_id for each in batch[:700]}
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert {id_ for id_, result in results.items() if result.duplicate} == known
    assert audit(url, "BEYOND", batch) == FLAWLESS
