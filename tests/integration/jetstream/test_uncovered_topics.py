"""A topic that no listed stream covers: a stream made since, one mapped or imported, or none."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg

from bytewax_jetstream.envelope import Envelope, Outcome, PublishResult
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import (
    FLAWLESS,
    Names,
    api,
    audit,
    change_stream,
    envelopes,
    make_stream,
    message_ids,
)
from tests.support.waiting import PATIENCE, until

STORED, REJECTED, UNKNOWN = Outcome.STORED, Outcome.REJECTED, Outcome.UNKNOWN


@pytest.mark.parametrize("batched", [False, True], ids=["singles", "batches"])
def test_first_envelopes_on_a_stream_made_while_running_are_stored(
    nats_server: NatsServer, names: Names, batched: bool
) -> None:
    name = names()
    with opened(jetstream(nats_server.url)) as (_, lane):
        make_stream(nats_server.url, name, f"{name}.>", allow_batched=batched)
        batch = envelopes(500, f"{name}.a")
        results = settle(lane, batch)

    assert {result.outcome for result in results.values()} == {STORED}
    assert audit(nats_server.url, name, batch) == FLAWLESS


def test_first_envelopes_on_a_subject_added_while_running_are_stored(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    make_stream(nats_server.url, name, f"{name}.old")
    with opened(jetstream(nats_server.url)) as (_, lane):
        assert settle(lane, envelopes(1, f"{name}.old"))["e-0"].outcome is STORED
        change_stream(nats_server.url, name, subjects=[f"{name}.old", f"{name}.new"])
        results = settle(lane, envelopes(500, f"{name}.new", first=1))

    assert {result.outcome for result in results.values()} == {STORED}


def test_first_group_on_a_stream_made_while_running_is_stored(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    with opened(jetstream(nats_server.url, atomic=True)) as (_, lane):
        make_stream(nats_server.url, name, f"{name}.>", allow_atomic=True)
        results = settle(lane, envelopes(60, f"{name}.a", aggregates=6))

    assert {result.outcome for result in results.values()} == {STORED}


@pytest.mark.parametrize("fixed", [False, True], ids=["still no_ack", "fixed"])
def test_stream_too_weak_when_last_listed_is_looked_at_again(
    nats_server: NatsServer, names: Names, fixed: bool
) -> None:
    name = names()
    make_stream(nats_server.url, name, name, no_ack=True)
    with opened(jetstream(nats_server.url)) as (_, lane):
        change_stream(nats_server.url, name, no_ack=not fixed)
        results = settle(lane, envelopes(100, name))

    assert {result.outcome for result in results.values()} == {STORED if fixed else REJECTED}
    assert len(message_ids(nats_server.url, name)) == (100 if fixed else 0)


@pytest.mark.parametrize("atomic", [False, True], ids=["singles", "groups"])
def test_without_a_stream_one_message_is_tried_and_all_are_rejected(
    nats_server: NatsServer, names: Names, atomic: bool
) -> None:
    topic = names()
    with Proxy(nats_server.url) as proxy:
        results = publish(jetstream(proxy.url, atomic=atomic), *envelopes(500, topic))

        assert proxy.requests.messages_to(topic.encode()) == (10 if atomic else 1)
        # Two lists; the server for all tests may have so many streams that a list has pages.
        assert 2 <= sum(b"STREAM.LIST" in line for line in proxy.requests.frames) <= 12
    assert {result.outcome for result in results.values()} == {REJECTED}
    for result in results.values():
        assert f"no stream covers topic {topic}: add it to the subjects" in str(result.reason)


def test_group_with_a_topic_that_no_stream_covers_is_rejected_as_a_whole(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    make_stream(nats_server.url, name, name, allow_atomic=True)
    batch = envelopes(9, name, aggregates=3)
    batch[4] = batch[4]._replace(topic=f"nowhere-{name}")

    results = publish(jetstream(nats_server.url, atomic=True), *batch)

    rejected = {each: result for each, result in results.items() if result.outcome is REJECTED}
    assert set(rejected) == {"e-1", "e-4", "e-7"}
    assert str(rejected["e-1"].reason).startswith(
        f"envelope 'e-4' of the same group cannot be stored: no stream covers topic nowhere-{name}"
    )
    assert set(message_ids(nats_server.url, name)) == set(results) - set(rejected)


def test_stream_made_after_a_rejected_envelope_stores_the_next(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    with opened(jetstream(nats_server.url)) as (_, lane):
        assert settle(lane, envelopes(1, name))["e-0"].outcome is REJECTED
        make_stream(nats_server.url, name, name)
        assert settle(lane, envelopes(1, name, first=1))["e-1"].outcome is STORED


def test_uncovered_topics_do_not_hold_up_what_is_covered(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    make_stream(nats_server.url, name, f"{name}.>")
    with Proxy(nats_server.url) as proxy, opened(jetstream(proxy.url)) as (pool, lane):
        proxy.answers.loses = lambda frame: b"stream_list_response" in frame
        lane.submit(envelopes(10, f"nowhere-{name}", first=1_000, aggregates=None))
        lane.submit(envelopes(500, f"{name}.a"))
        stored: list[PublishResult] = []

        def all_stored() -> bool:
            stored.extend(lane.collect())
            return len(stored) == 500

        until(all_stored, 30)
        assert {result.outcome for result in stored} == {STORED}
        assert broker_of(pool)["in_flight"] <= 10
        proxy.answers.loses = lambda frame: False
        assert {result.outcome for result in lane.flush()} == {REJECTED}


def test_held_envelopes_are_stored_although_the_connection_is_lost(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    listed = threading.Event()

    def lose(frame: bytes) -> bool:
        lost = b"stream_list_response" in frame
        if lost:
            listed.set()
        return lost

    batch = envelopes(500, f"{name}.a")
    with Proxy(nats_server.url) as proxy, opened(jetstream(proxy.url, ack_timeout=20)) as (_, lane):
        make_stream(nats_server.url, name, f"{name}.>")
        proxy.answers.loses = lose
        lane.submit(batch)
        assert listed.wait(20)
        proxy.answers.loses = lambda frame: False
        proxy.cut_all()
        results = lane.flush()

    assert {result.outcome for result in results} == {STORED}
    assert audit(nats_server.url, name, batch) == FLAWLESS


def _stored_fields(results: dict[str, PublishResult]) -> set[Any]:
    return {(result.outcome, result.stream, result.duplicate) for result in results.values()}


ACCOUNTS = """
    accounts {
      OWNER {
        users: [ { user: owner, password: owner } ]
        jetstream: enabled
        exports: [ { service: "orders.>" } ]
      }
      GUEST {
        users: [ { user: guest, password: guest } ]
        jetstream: enabled
        imports: [ { service: { account: OWNER, subject: "orders.>" }, to: "theirs.orders.>" } ]
      }
      MAPPED {
        users: [ { user: mapped, password: mapped } ]
        jetstream: enabled
        mappings: { "in.*": "store.$1" }
      }
    }
"""


@pytest.fixture(scope="module")
def accounts() -> Iterator[NatsServer]:
    """A server with an account that imports, and one that maps."""
    with NatsServer(config=ACCOUNTS) as server:
        for user, stream, subject in (("owner", "ORDERS", "orders"), ("mapped", "STORE", "store")):
            config = {"name": stream, "subjects": [f"{subject}.>"], "allow_atomic": True}
            api(server.url, f"STREAM.CREATE.{stream}", config, user=user, password=user)
        yield server


@pytest.mark.parametrize(
    ("user", "topic", "stream"),
    [("mapped", "in.a", "STORE"), ("guest", "theirs.orders.a", "ORDERS")],
    ids=["mapped", "imported"],
)
@pytest.mark.parametrize("declared", [False, True], ids=["undeclared", "declared"])
def test_mapped_and_imported_topics_are_stored(
    accounts: NatsServer,
    user: str,
    topic: str,
    stream: str,
    declared: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch = [
        each._replace(event_id=f"{declared}-{each.event_id}") for each in envelopes(500, topic)
    ]
    settings = jetstream(
        accounts.url,
        user=user,
        password=user,
        topics=(topic,) if declared else (),
        ack_timeout=PATIENCE / 2,  # so that a busy machine makes no retries
        delivery_timeout=PATIENCE,
    )
    with caplog.at_level(logging.WARNING), opened(settings) as (pool, lane):
        results = settle(lane, batch)
        assert broker_of(pool)["retries"] == 0

    assert _stored_fields(results) == {(STORED, stream, False)}
    unchecked = [each for each in caplog.messages if "does not list that stream" in each]
    assert len(unchecked) == (user == "guest")


def test_groups_on_a_mapped_topic_are_stored(accounts: NatsServer) -> None:
    settings = jetstream(accounts.url, user="mapped", password="mapped", atomic=True)
    results = publish(
        settings,
        *(each._replace(event_id=f"g-{each.event_id}") for each in envelopes(60, "in.g")),
    )

    assert {each.outcome for each in results.values()} == {STORED}


@contextmanager
def _listener(url: str, topic: str, answer: bytes | None) -> Iterator[list[bytes]]:
    """Somebody who is no stream: gets what is published on a topic, and may answer."""
    got: list[bytes] = []
    ready, end = threading.Event(), threading.Event()

    async def listen() -> None:
        client = await nats.connect(url)

        async def take(message: Msg) -> None:
            got.append(message.data)
            if answer is not None:
                await message.respond(answer)

        await client.subscribe(topic, cb=take)
        await client.flush()
        ready.set()
        await asyncio.to_thread(end.wait)
        await client.close()

    thread = threading.Thread(target=lambda: asyncio.run(listen()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield got
    finally:
        end.set()
        thread.join(20)


@pytest.mark.parametrize("answer", [None, b"thanks"], ids=["silent", "talks"])
def test_listener_that_is_no_stream_gets_few_messages_and_nothing_is_stored(
    nats_server: NatsServer, names: Names, answer: bytes | None
) -> None:
    topic = names()
    settings = jetstream(nats_server.url, ack_timeout=0.4, delivery_timeout=2)
    with _listener(nats_server.url, topic, answer) as got:
        results = publish(settings, *envelopes(500, topic, aggregates=None))

    assert {result.outcome for result in results.values()} == {UNKNOWN}
    assert 0 < len(got) < 50
    assert any(f"no stream covers topic {topic}" in str(each.reason) for each in results.values())


def test_ack_of_a_stream_that_does_not_exist_does_not_count_on_a_covered_topic(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    make_stream(nats_server.url, name, name, no_ack=True)
    forged = b'{"stream":"FORGED", "seq":7}'
    settings = jetstream(nats_server.url, ack_timeout=0.4, delivery_timeout=1.5)
    with opened(settings) as (_, lane):
        change_stream(nats_server.url, name, no_ack=False)
        assert settle(lane, envelopes(1, name))["e-0"].outcome is STORED
        change_stream(nats_server.url, name, no_ack=True)
        with _listener(nats_server.url, name, forged):
            results = settle(lane, envelopes(1, name, first=1))

    assert {result.outcome for result in results.values()} == {UNKNOWN}


def test_stream_replaced_by_another_name_keeps_storing(
    nats_server: NatsServer, names: Names
) -> None:
    old, new = names(), names()
    topic = f"{old}.a"
    make_stream(nats_server.url, old, topic, allow_batched=True)
    with opened(jetstream(nats_server.url, ack_timeout=20)) as (_, lane):
        assert settle(lane, envelopes(100, topic))["e-0"].stream == old
        api(nats_server.url, f"STREAM.DELETE.{old}")
        make_stream(nats_server.url, new, topic)
        single: list[Any] = [Envelope(topic, b"", event_id="x")]
        result = settle(lane, single)["x"]

    assert (result.outcome, result.stream, result.duplicate) == (STORED, new, False)
    assert result.ack_seconds < 10, "the ack was ignored, and the attempt made again"
