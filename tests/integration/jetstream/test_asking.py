"""What may be stored already is asked for, many at once, before it is sent again."""

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import broker_of, jetstream, opened, publish
from tests.support.proxy import Proxy
from tests.support.streams import FLAWLESS, audit, envelopes, make_stream
from tests.support.waiting import until


def test_aggregate_that_a_reset_cut_off_goes_on_in_a_few_writes(
    nats_server: NatsServer, proxy: Proxy
) -> None:
    make_stream(nats_server.url, "CUT", "cut.>", allow_batched=True)
    batch = envelopes(4_000, "cut.x", aggregates=1)
    with opened(jetstream(proxy.url)) as (pool, lane):
        proxy.requests.delay = 0.001
        lane.submit(batch)
        until(lambda: broker_of(pool)["in_flight"] > 1_000)
        proxy.cut_all()
        proxy.requests.delay = 0.0
        until(lambda: broker_of(pool)["reconnects"] > 0)
        writes = broker_of(pool)["socket_writes"]
        results = lane.flush()
        writes = broker_of(pool)["socket_writes"] - writes

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert writes < 100
    assert audit(nats_server.url, "CUT", batch) == FLAWLESS


def test_replay_of_an_aggregate_is_known_in_a_few_writes_without_batches(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "AGAIN", "again.>", allow_batched=False)
    batch = envelopes(3_000, "again.x", aggregates=1)
    publish(jetstream(nats_server.url), *batch[:2_990])
    with opened(jetstream(nats_server.url)) as (pool, lane):
        writes = broker_of(pool)["socket_writes"]
        lane.submit(batch)
        results = lane.flush()
        writes = broker_of(pool)["socket_writes"] - writes

    assert [result.duplicate for result in results] == [True] * 2_990 + [False] * 10
    assert [result.event_id for result in results] == [each.event_id for each in batch]
    assert writes < 50
