"""Answers of somebody else: other subscribers of the subject, and streams of other domains."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nats
import pytest
from nats.errors import Error as NatsError

from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.testing import NatsServer
from bytewax_jetstream.testing.process import free_ports
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import FLAWLESS, api, audit, envelopes, make_stream, message_ids
from tests.support.waiting import until


@contextmanager
def answering(url: str, subject: str, answer: object) -> Iterator[list[int]]:
    """Somebody who answers each message on a subject; counts them."""
    asked, ready, loop = [0], threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        client = await nats.connect(url)

        async def respond(message: Any) -> None:
            asked[0] += 1
            await message.respond(json.dumps(answer).encode())

        await client.subscribe(subject, cb=respond)
        await client.flush()
        ready.set()
        await asyncio.to_thread(loop_ended.wait)
        await client.close()

    loop_ended = threading.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(20)
    try:
        yield asked
    finally:
        loop_ended.set()
        thread.join(20)
        loop.close()


IS_ACK = re.compile(rb'MSG _INBOX(?!.*"error").*"seq":\s?\d', re.DOTALL).match


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "no"},
        {"error": {"code": 404, "description": "no"}},
        {"error": {"code": 503, "description": "no"}},
        {"error": {"code": 400, "err_code": "10054", "description": "no"}},
        {"error": {"code": 400, "err_code": 17, "description": "no"}, "stream": "?"},
        {"error": {"code": 400, "err_code": 10060, "description": "no"}},
        {"error": {"message": "no"}, "stream": "?"},
        {"type": "err", "seq": 3, "error": {"code": 1}},
        {"stream": "?", "seq": None},
        [],
        "no",
    ],
    ids=str,
)
@pytest.mark.parametrize("batched", [True, False], ids=["batches", "singles"])
def test_error_of_somebody_who_answers_on_the_subject_rejects_nothing(
    nats_server: NatsServer, names: Any, answer: Any, batched: bool
) -> None:
    stream, url = names(), nats_server.url
    make_stream(url, stream, f"{stream}.>", allow_batched=batched)
    if isinstance(answer, dict) and "stream" in answer:
        answer = {**answer, "stream": stream}
    batch = envelopes(50, f"{stream}.x")
    with (
        Proxy(url) as proxy,
        answering(url, f"{stream}.>", answer) as asked,
        opened(jetstream(proxy.url, ack_timeout=0.5)) as (pool, lane),
    ):
        # The somebody is quicker than the stream, whose acks of the first attempts are lost.
        proxy.answers.loses = lambda frame: (
            IS_ACK(frame) is not None and not broker_of(pool)["retries"]
        )
        results = settle(lane, batch)

        assert proxy.answers.lost > 0
        until(lambda: asked[0] >= 50)
        assert lane.stop_reason is None
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert audit(url, stream, batch) == FLAWLESS


@pytest.fixture
def leaf_and_hub() -> Iterator[tuple[NatsServer, NatsServer]]:
    """A hub and a leaf with JetStream domains of their own, and a stream SAME in both."""
    (port,) = free_ports(1)
    hub_config = f"""
        jetstream {{ domain: hub }}
        leafnodes {{ listen: "127.0.0.1:{port}" }}
    """
    leaf_config = f"""
        jetstream {{ domain: leaf }}
        leafnodes {{ remotes: [{{ url: "nats-leaf://127.0.0.1:{port}" }}] }}
    """
    with (
        NatsServer(config=hub_config, name="hub") as hub,
        NatsServer(config=leaf_config, name="leaf") as leaf,
    ):
        for server in (leaf, hub):
            make_stream(server.url, "SAME", "same.>", allow_batched=True)
        until(lambda: _reaches(leaf.url))
        yield leaf, hub


def _reaches(url: str) -> bool:
    async def ask() -> bool:
        client = await nats.connect(url)
        try:
            await client.request("$JS.hub.API.INFO", b"", timeout=1)
        except NatsError:
            return False
        finally:
            await client.close()
        return True

    return asyncio.run(ask())


def test_ack_of_another_domain_does_not_count(leaf_and_hub: tuple[NatsServer, NatsServer]) -> None:
    leaf, hub = leaf_and_hub
    batch = envelopes(50, "same.x")
    settings = jetstream(leaf.url, domain="hub", ack_timeout=0.5, delivery_timeout=3)

    results = publish(settings, *batch)
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert set(message_ids(hub.url, "SAME")) == {each.event_id for each in batch}

    api(hub.url, "STREAM.UPDATE.SAME", {
        "name": "SAME", "subjects": ["same.>"], "max_msgs": 50, "discard": "new",
        "allow_batched": True,
    })  # fmt: skip
    full = publish(settings, *envelopes(20, "same.x", first=100))

    assert {result.outcome for result in full.values()} == {Outcome.UNKNOWN}
    assert len(message_ids(hub.url, "SAME")) == 50


def test_batch_names_the_stream_that_acknowledged_it() -> None:
    config = """
        accounts { A {
            jetstream: enabled
            users: [{ user: a, password: a }]
            mappings: { "from.>": "to.>" }
        } }
        no_auth_user: a
    """
    with NatsServer(config=config) as server:
        make_stream(server.url, "FROM", "from.>", allow_batched=True)
        make_stream(server.url, "TO", "to.>", allow_batched=True)
        batch = [
            Envelope("from.x", b"%d" % number, f"e-{number}", f"a-{number % 5}")
            for number in range(2_000)
        ]
        with opened(jetstream(server.url)) as (_, lane):
            first = settle(lane, batch[:100])
            later = settle(lane, batch[100:])

        assert {(each.outcome, each.stream) for each in (first | later).values()} == {
            (Outcome.STORED, "TO")
        }
        assert len(message_ids(server.url, "TO")) == 2_000
