"""A missing, full, sealed or deleted stream ends in one clear error, and nothing is lost."""

import re
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from bytewax.errors import BytewaxRuntimeError

from bytewax_jetstream.envelope import Envelope, Outcome, PublishResult
from bytewax_jetstream.errors import PublishError, StreamError
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import Envelopes, publishing, recovery_store, root_cause, run
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
from tests.support.waiting import until
from tests.support.ways import both_ways, publish_by


@both_ways
def test_missing_stream_is_one_clear_error(nats_server: NatsServer, way: str) -> None:
    settings = jetstream(
        nats_server.url,
        stream_strategy="validate",
        streams=(StreamSettings(name="NONE", subjects=("none",)),),
    )

    with pytest.raises(
        StreamError, match=r"^stream NONE is missing: create it, or use stream_strategy=create$"
    ):
        publish_by(way, settings, envelopes(10, "none"))


@both_ways
def test_declared_topic_without_a_stream_is_one_clear_error(
    nats_server: NatsServer, way: str
) -> None:
    with pytest.raises(
        StreamError, match=r"^no stream covers topic nowhere\.a: add it to the subjects of a stream"
    ):
        publish_by(
            way, jetstream(nats_server.url, topics=("nowhere.a",)), envelopes(10, "nowhere.a")
        )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"no_ack": True}, "no_ack set, so it never confirms what it stored: set no_ack to false"),
        ({"sealed": True}, "is sealed and accepts no messages: publish to another stream"),
        ({"persist_mode": "async"}, "acknowledges before it writes"),
    ],
    ids=["no_ack", "sealed", "async"],
)
def test_unsuitable_stream_rejects_only_its_own_topics(
    nats_server: NatsServer, config: dict[str, Any], says: str
) -> None:
    stream = f"UNFIT-{'-'.join(config)}"
    make_stream(nats_server.url, stream, f"{stream}.>", **{**config, "sealed": False})
    make_stream(nats_server.url, f"FIT-{stream}", f"FIT-{stream}.>")
    if config.get("sealed"):
        _seal(nats_server.url, stream)
    batch = [
        Envelope(f"{stream}.x", b"", event_id="unfit"),
        Envelope(f"FIT-{stream}.x", b"", event_id="fit"),
    ]

    with pytest.raises(StreamError, match=rf"^topic {stream}\.x: .*{says}"):
        publish(jetstream(nats_server.url, topics=(f"{stream}.x",)))
    results = publish(jetstream(nats_server.url), *batch)

    assert results["fit"].outcome is Outcome.STORED
    assert results["unfit"].outcome is Outcome.REJECTED
    assert says in str(results["unfit"].reason)


def _seal(url: str, stream: str) -> None:
    change_stream(url, stream, sealed=True)


def test_envelopes_without_acks_are_unknown_at_the_delivery_timeout(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "NOACK", "noack", no_ack=True)
    settings = jetstream(
        nats_server.url, stream_strategy="skip", ack_timeout=0.2, delivery_timeout=1
    )

    results = publish(settings, *envelopes(200, "noack", aggregates=10))

    assert {result.outcome for result in results.values()} == {Outcome.UNKNOWN}
    assert max(result.ack_seconds for result in results.values()) < 20
    assert "(no ack within 0.2 s): check the broker" in str(results["e-0"].reason)


def test_envelopes_for_a_full_stream_are_unknown_with_what_to_do(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "FULL", "full", discard="new", max_msgs=50)
    with opened(jetstream(nats_server.url, ack_timeout=0.5, delivery_timeout=1)) as (pool, lane):
        results = settle(lane, envelopes(100, "full"))

        assert broker_of(pool)["reconnects"] == 0
    unknown = [result for result in results.values() if result.outcome is Outcome.UNKNOWN]
    assert len(unknown) == 50
    for result in unknown:
        assert result.code == 10077
        assert "not settled " in str(result.reason)
        assert (
            "maximum messages exceeded (10077): make room in the stream or raise its limits"
            in str(result.reason)
        )
        assert result.envelope is not None


@pytest.mark.parametrize("batched", [True, False], ids=["batches", "singles"])
def test_nothing_is_stored_behind_an_unknown_envelope_of_its_aggregate(
    nats_server: NatsServer, names: Names, batched: bool
) -> None:
    full, other, url = names(), names(), nats_server.url
    make_stream(url, full, full, discard="new", max_msgs=1, allow_batched=batched)
    make_stream(url, other, f"{other}.>", allow_batched=batched)
    publish(jetstream(url), Envelope(full, b"", "there"))
    created, paid = Envelope(full, b"", "created", "order"), Envelope(f"{other}.x", b"", "paid")
    found: dict[str, PublishResult] = {}
    with opened(jetstream(url, delivery_timeout=2)) as (_, lane):
        lane.submit([created, paid._replace(aggregate_id="order"), paid._replace(event_id="else")])

        lane.submit([paid._replace(event_id="shipped", aggregate_id="order")])
        traffic = count()

        def all_ended() -> bool:
            # Other traffic is stored all the while, so that only the clock of `created` ends.
            lane.submit([Envelope(f"{other}.traffic", b"", f"traffic-{next(traffic)}")])
            found.update((result.event_id, result) for result in lane.collect())
            return {"created", "paid", "shipped"} <= found.keys()

        until(all_ended)
        lane.submit([paid._replace(event_id="after", aggregate_id="order")])
        found.update((result.event_id, result) for result in lane.flush())

    assert found["created"].outcome is Outcome.UNKNOWN
    for event_id in ("paid", "shipped"):
        assert (found[event_id].outcome, found[event_id].attempts) == (Outcome.UNKNOWN, 0)
        assert "not sent: an envelope before it in aggregate order is unknown" in str(
            found[event_id].reason
        )
    assert found["else"].outcome is found["after"].outcome is Outcome.STORED
    ids = [id_ for id_ in message_ids(url, other) if not id_.startswith("traffic")]
    assert ids == ["else", "after"]


def test_a_full_stream_stops_a_dataflow_and_its_epoch_is_replayed(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    make_stream(nats_server.url, "FULLFLOW", "fullflow", discard="new", max_msgs=50)
    batch = envelopes(100, "fullflow")
    store = recovery_store(tmp_path / "store")
    settings = jetstream(nats_server.url, ack_timeout=0.5, delivery_timeout=1)
    made = publishing(Envelopes(batch), settings)

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(made.flow, store=store)
    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert re.match(
        r"flow\.publish stops without committing its epoch: "
        r"envelope e-\d+ on fullflow is unknown: .*make room in",
        str(cause),
    )

    change_stream(nats_server.url, "FULLFLOW", max_msgs=1_000)
    run(made.flow, store=store)

    assert audit(nats_server.url, "FULLFLOW", batch) == FLAWLESS
    assert not made.errs
    assert {result.event_id for result in made.oks} == {envelope.event_id for envelope in batch}


@both_ways
def test_full_stream_stores_the_rest_when_room_is_made_in_time(
    nats_server: NatsServer, way: str
) -> None:
    stream = f"ROOM-{way}"
    make_stream(nats_server.url, stream, stream, discard="new", max_bytes=5_000)
    batch = envelopes(300, stream)
    with Proxy(nats_server.url) as proxy:

        def make_room() -> None:
            until(
                lambda: proxy.requests.messages_to(stream.encode()) > len(batch)
            )  # so something was refused
            change_stream(nats_server.url, stream, max_bytes=5_000_000)

        thread = threading.Thread(target=make_room)
        thread.start()
        results = publish_by(way, jetstream(proxy.url), batch)
        thread.join()

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(nats_server.url, stream, batch) == FLAWLESS


def _delete(url: str, stream: str) -> None:
    api(url, f"STREAM.DELETE.{stream}")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (
            _delete,
            r"(rejected|unknown): no stream covers topic \S+ any more: add it to the subjects",
        ),
        (
            _seal,
            r"(rejected|unknown): the server refused it: .*sealed.*\(10109\): publish to another",
        ),
    ],
    ids=["deleted", "sealed"],
)
@pytest.mark.parametrize("batched", [False, True], ids=["singles", "batches"])
def test_stream_deleted_or_sealed_mid_run_stops_the_dataflow_without_a_commit(
    nats_server: NatsServer, tmp_path: Path, harm: Any, says: str, batched: bool
) -> None:
    stream = f"GOES{harm.__name__}{batched}"
    make_stream(nats_server.url, stream, stream, allow_batched=batched)
    batch = envelopes(1_000, stream)
    gone = threading.Event()

    def before(index: int) -> None:
        if index == 500 and not gone.is_set():
            harm(nats_server.url, stream)
            gone.set()

    store = recovery_store(tmp_path / "store")
    made = publishing(Envelopes(batch, before=before), jetstream(nats_server.url, ack_timeout=0.5))
    began = time.monotonic()

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(made.flow, store=store)

    assert time.monotonic() - began < 60
    assert re.search(says, str(root_cause(stopped.value)))
    assert "stops without committing its epoch" in str(root_cause(stopped.value))
    assert not made.errs, "an envelope was dead-lettered"
    if gone.is_set() and harm is _delete:
        make_stream(nats_server.url, stream, stream)
        run(made.flow, store=store)
        ids = set(message_ids(nats_server.url, stream))
        assert ids >= {envelope.event_id for envelope in batch[500:]}


def test_deleted_stream_rejects_its_envelopes_within_seconds(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "DELETED", "deleted")
    make_stream(nats_server.url, "STAYS", "stays")
    with opened(jetstream(nats_server.url, ack_timeout=0.5, delivery_timeout=120)) as (pool, lane):
        settle(lane, envelopes(10, "deleted"))
        _delete(nats_server.url, "DELETED")

        results = settle(
            lane, [*envelopes(100, "deleted", first=10), *envelopes(100, "stays", first=1_000)]
        )

        assert broker_of(pool)["reconnects"] == 0
    for event_id, result in results.items():
        assert result.outcome is (
            Outcome.STORED if result.topic == "stays" else Outcome.REJECTED
        ), event_id
        assert result.ack_seconds < 60
    assert "no stream covers topic deleted any more" in str(results["e-10"].reason)
