"""The pool against a real nats-server: what is stored, and what each result says."""

import hashlib
import time
from datetime import timedelta

import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions
from bytewax_jetstream.jetstream.publisher.publisher import JetStreamPublisher
from bytewax_jetstream.pool.ack_pool import AckPool
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import jetstream, opened, publish
from tests.support.proxy import Proxy
from tests.support.streams import FLAWLESS, api, audit, envelopes, make_stream, stored
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("batched")


def test_a_stored_result_names_where_it_is_stored(nats_server: NatsServer, batched: bool) -> None:
    make_stream(nats_server.url, "NAMED", "named.>")
    first = Envelope("named.a", b"one", event_id="e-1", aggregate_id="a-1", event_type="made")
    second = Envelope("named.b", b"two", event_id="e-2")

    results = publish(jetstream(nats_server.url), first, second)

    assert [message.sequence for message in stored(nats_server.url, "NAMED")] == [1, 2]
    result = results["e-1"]
    assert result.outcome is Outcome.STORED
    assert (result.topic, result.aggregate_id, result.event_type) == ("named.a", "a-1", "made")
    assert (result.broker, result.stream, result.partition) == ("jetstream", "NAMED", None)
    # Of a batch the server says only that it is stored.
    assert (result.sequence, result.duplicate) == ((None, None) if batched else (1, False))
    assert (result.attempts, result.reason, result.code) == (1, None, None)
    assert result.envelope is None
    assert 0 < result.ack_seconds < 60
    assert results["e-2"].sequence == (None if batched else 2)


def test_stored_message_is_what_was_published(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "HEADERS", "headers.>")
    odd_id = "order 7/Ü"
    published = [
        Envelope(
            "headers.a",
            b"\x00\r\n\xff",
            event_id="order:7.made_by-us",
            aggregate_id="customer 7",
            event_type="OrderMade",
            headers={"Trace": "a=b; c", "x-empty": "", "Grüße".encode().hex(): "Grüße"},
        ),
        Envelope("headers.ü.b", b"", event_id=odd_id),
    ]

    publish(jetstream(nats_server.url), *published)

    plain, odd = stored(nats_server.url, "HEADERS")
    assert plain.subject == "headers.a"
    assert plain.payload == b"\x00\r\n\xff"
    assert plain.headers == {
        "Nats-Msg-Id": "order:7.made_by-us",
        "Aggregate-Id": "customer 7",
        "Event-Type": "OrderMade",
        "Trace": "a=b; c",
        "x-empty": "",
        "Grüße".encode().hex(): "Grüße",
    }
    assert odd.subject == "headers.ü.b"
    assert odd.payload == b""
    assert odd.headers == {
        "Nats-Msg-Id": "~" + hashlib.sha256(odd_id.encode()).hexdigest(),
        "Event-Id": odd_id,
    }


def test_the_same_event_id_again_is_a_duplicate_and_stored_once(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "TWICE", "twice")
    envelope = Envelope("twice", b"one", event_id="e-1")

    first = publish(jetstream(nats_server.url), envelope)["e-1"]
    again = publish(jetstream(nats_server.url), envelope)["e-1"]

    assert (first.duplicate, again.duplicate) == (False, True)
    assert (first.sequence, again.sequence) == (1, 1)
    assert again.outcome is Outcome.STORED
    assert len(stored(nats_server.url, "TWICE")) == 1


def test_event_ids_that_differ_only_in_blanks_are_not_duplicates_of_each_other(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "BLANKS", "blanks")
    ids = ["k 1", "k  1", "k_1", "k\u00a01"]

    results = publish(
        jetstream(nats_server.url), *(Envelope("blanks", b"", event_id=each) for each in ids)
    )

    assert [results[each].reason for each in ids[:3]] == [None, None, None]
    assert not any(result.duplicate for result in results.values())
    assert len(stored(nats_server.url, "BLANKS")) == sum(
        r.outcome is Outcome.STORED for r in results.values()
    )


def test_message_with_a_ttl_expires(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "TTL", "ttl", allow_msg_ttl=True)
    make_stream(nats_server.url, "NOTTL", "nottl")
    short = PublishOptions(ttl=timedelta(seconds=1))

    results = publish(
        jetstream(nats_server.url),
        Envelope("ttl", b"", event_id="stays", options=PublishOptions(ttl=timedelta(hours=1))),
        Envelope("ttl", b"", event_id="goes", options=short),
        Envelope("nottl", b"", event_id="refused", options=short),
        Envelope("nottl", b"", event_id="plain"),
    )

    assert (
        results["stays"].outcome
        is results["goes"].outcome
        is results["plain"].outcome
        is Outcome.STORED
    )
    refused = results["refused"]
    assert (refused.outcome, refused.code) == (Outcome.REJECTED, 10166)
    assert "TTL is disabled" in str(refused.reason)
    until(lambda: api(nats_server.url, "STREAM.INFO.TTL")["state"]["messages"] == 1)
    assert [message.headers["Nats-TTL"] for message in stored(nats_server.url, "TTL")] == ["3600"]


def test_envelope_with_a_wrong_expected_sequence_is_rejected_and_not_stored(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "EXPECTED", "expected.>")
    settings = jetstream(nats_server.url)
    first = Envelope(
        "expected.a", b"", event_id="first", options=PublishOptions(expected_last_sequence=0)
    )
    other = Envelope(
        "expected.b",
        b"",
        event_id="other",
        options=PublishOptions(expected_last_subject_sequence=0),
    )
    wrong = Envelope(
        "expected.a", b"", event_id="wrong", options=PublishOptions(expected_last_sequence=7)
    )
    late = Envelope(
        "expected.a", b"", event_id="late", options=PublishOptions(expected_last_subject_sequence=0)
    )

    results = [publish(settings, each)[each.event_id] for each in (first, other, wrong, late)]

    assert [result.outcome for result in results] == [
        Outcome.STORED, Outcome.STORED, Outcome.REJECTED, Outcome.REJECTED,
    ]  # fmt: skip
    assert [result.code for result in results] == [None, None, 10071, 10071]
    assert "wrong last sequence" in str(results[2].reason)
    assert results[2].envelope == wrong
    assert [message.headers["Nats-Msg-Id"] for message in stored(nats_server.url, "EXPECTED")] == [
        "first",
        "other",
    ]


@pytest.mark.parametrize("dedupe", [True, False])
def test_envelope_that_met_its_expectation_before_is_a_duplicate(
    nats_server: NatsServer, dedupe: bool
) -> None:
    # The server checks the expectation before the id, and after the first attempt the expectation
    # is no longer met.
    make_stream(nats_server.url, "AGAIN", "again.>")
    settings = jetstream(nats_server.url, dedupe=dedupe)
    by_stream = Envelope(
        "again.a", b"", event_id="by-stream", options=PublishOptions(expected_last_sequence=0)
    )
    by_subject = Envelope(
        "again.b",
        b"",
        event_id="by-subject",
        options=PublishOptions(expected_last_subject_sequence=0),
    )
    for envelope in (by_stream, by_subject):
        first = publish(settings, envelope)[envelope.event_id]
        publish(settings, Envelope(envelope.topic, b"", event_id=f"after {envelope.event_id}"))

        again = publish(settings, envelope)[envelope.event_id]

        assert (again.outcome, again.sequence, again.duplicate) == (
            Outcome.STORED,
            first.sequence,
            True,
        )


def test_one_lane_publishes_to_several_streams(nats_server: NatsServer) -> None:
    for number in range(3):
        make_stream(nats_server.url, f"SEVERAL{number}", f"several.{number}.*")
    published = [envelopes(200, f"several.{number}.x", first=1_000 * number) for number in range(3)]
    mixed = [envelope for three in zip(*published, strict=True) for envelope in three]

    results = publish(jetstream(nats_server.url), *mixed)

    for number in range(3):
        assert audit(nats_server.url, f"SEVERAL{number}", published[number]) == FLAWLESS
    assert {(result.topic, result.stream) for result in results.values()} == {
        (f"several.{number}.x", f"SEVERAL{number}") for number in range(3)
    }


def test_lanes_of_equal_settings_share_a_connection_and_others_do_not(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "SHARED", "shared.>")
    with AckPool() as pool:
        same = [
            pool.lane(JetStreamPublisher(jetstream(nats_server.url)), name=str(n)) for n in range(3)
        ]
        other = pool.lane(
            JetStreamPublisher(jetstream(nats_server.url, name="other")), name="other"
        )
        for number, lane in enumerate([*same, other]):
            lane.submit(envelopes(100, f"shared.{number}", first=100 * number, aggregates=None))

        results = [result for lane in [*same, other] for result in lane.flush()]

        assert [broker["lanes"] for broker in pool.statistics()["brokers"]] == [3, 1]
        assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(nats_server.url, "SHARED", envelopes(400, "")) == FLAWLESS


def test_a_domain_is_asked_under_its_own_prefix() -> None:
    with NatsServer(config="jetstream { domain: hub }") as server, Proxy(server.url) as proxy:
        make_stream(server.url, "DOMAIN", "domain.>")

        results = publish(
            jetstream(proxy.url, domain="hub", topics=("domain.a",)), *envelopes(100, "domain.a")
        )

        assert {(result.outcome, result.stream) for result in results.values()} == {
            (Outcome.STORED, "DOMAIN")
        }
        assert audit(server.url, "DOMAIN", envelopes(100, "")) == FLAWLESS
        assert proxy.requests.messages_to(b"$JS.hub.API.") > 0
        assert proxy.requests.messages_to(b"$JS.API.") == 0


def test_an_api_prefix_reaches_the_jetstream_of_another_account() -> None:
    accounts = """
        accounts {
            HUB {
                jetstream: enabled
                users: [{ user: hub, password: hub }]
                exports: [{ service: "$JS.API.>" }, { service: "orders.>" }]
            }
            EDGE {
                users: [{ user: edge, password: edge }]
                imports: [
                    { service: { account: HUB, subject: "$JS.API.>" }, to: "hub.API.>" }
                    { service: { account: HUB, subject: "orders.>" } }
                ]
            }
        }
    """
    with NatsServer(config=accounts) as server:
        api(
            server.url,
            "STREAM.CREATE.ORDERS",
            {"name": "ORDERS", "subjects": ["orders.>"]},
            user="hub",
            password="hub",
        )
        settings = jetstream(
            server.url, api_prefix="hub.API", user="edge", password="edge", topics=("orders.a",)
        )

        results = publish(settings, *envelopes(100, "orders.a"))

        assert {(result.outcome, result.stream) for result in results.values()} == {
            (Outcome.STORED, "ORDERS")
        }
        assert len(stored(server.url, "ORDERS", user="hub", password="hub")) == 100


def test_api_requests_do_not_grow_with_the_number_of_messages(
    nats_server: NatsServer, proxy: Proxy
) -> None:
    make_stream(nats_server.url, "COUNTED", "counted.>")
    asked = []
    for count in (10, 10_000):
        before = proxy.requests.messages_to(b"$JS.API")
        batch = envelopes(count, "counted.x", first=100_000 * count)
        publish(jetstream(proxy.url, topics=("counted.x",)), *batch)
        asked.append(proxy.requests.messages_to(b"$JS.API") - before)
        assert proxy.requests.messages_to(b"counted.") >= count

    assert asked[0] == asked[1] > 0


def test_a_full_budget_blocks_the_producer_and_discards_nothing(
    nats_server: NatsServer, proxy: Proxy
) -> None:
    make_stream(nats_server.url, "BUDGET", "budget.>")
    batch = envelopes(2_000, "budget.x")
    with opened(jetstream(proxy.url, pool={"budget_messages": 10})) as (pool, lane):
        most = 0
        for start in range(0, len(batch), 25):
            lane.submit(batch[start : start + 25])
            most = max(most, pool.statistics()["unsettled_messages"])
        results = lane.flush()

        assert pool.statistics()["budget_stalls"] > 0
    assert most <= 10
    assert len(results) == len(batch)
    assert audit(nats_server.url, "BUDGET", batch) == FLAWLESS


def test_closed_pool_returns_unsettled_envelopes_as_unknown(
    nats_server: NatsServer, proxy: Proxy, batched: bool
) -> None:
    make_stream(nats_server.url, "CLOSED", "closed.>")
    with opened(jetstream(proxy.url, ack_timeout=50, delivery_timeout=100)) as (pool, lane):
        proxy.answers.loses = lambda frame: b"CLOSED" in frame
        lane.submit(envelopes(100, "closed.x"))
        # One ack for the batch; or one for the first message of each aggregate, while others wait.
        until(lambda: proxy.answers.lost == (1 if batched else 50))
        began = time.monotonic()
        pool.close(0.2)

        results = lane.collect()

        assert time.monotonic() - began < 60
        assert pool.statistics()["state"] == "closed"
    assert len(results) == 100
    assert {result.outcome for result in results} == {Outcome.UNKNOWN}
    assert "publish it again with the same event id" in str(results[0].reason)
