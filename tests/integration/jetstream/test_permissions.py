"""A publish permission that is taken away while a flow runs: nothing that is stored is rejected."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator

import pytest

from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.jetstream.publisher.publisher import JetStreamPublisher
from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import broker_of, jetstream, opened, settle
from tests.support.proxy import Proxy
from tests.support.streams import api, envelopes, message_ids
from tests.support.waiting import until

USERS = """
    authorization {{ users: [
        {{ user: all, password: all }}
        {{ user: some, password: some, permissions: {{ publish: {{ deny: {denied} }} }} }}
    ]}}
"""


class Reloadable:
    """A server whose user `some` may publish on what is not denied."""

    def __init__(self) -> None:
        self.server = NatsServer(config=USERS.format(denied='["never.>"]')).start()

    def deny(self, *subjects: str) -> None:
        """Take away the permission to publish on these subjects."""
        denied = "[" + ", ".join(f'"{subject}"' for subject in ("never.>", *subjects)) + "]"
        run, scratch = self.server._run, self.server._scratch
        assert run is not None
        assert scratch is not None
        (scratch / "server.conf").write_text(USERS.format(denied=denied))
        loaded = self._loaded()
        os.kill(run.pid, signal.SIGHUP)
        until(lambda: self._loaded() != loaded)

    def _loaded(self) -> str:
        with urllib.request.urlopen(f"{self.server.monitor_url}/varz") as answer:
            return str(json.load(answer)["config_load_time"])


@pytest.fixture
def reloadable() -> Iterator[Reloadable]:
    made = Reloadable()
    try:
        yield made
    finally:
        made.server.close()


def _make_stream(server: NatsServer, stream: str, batched: bool) -> None:
    config = {"name": stream, "subjects": [f"{stream}.>"], "allow_batched": batched}
    api(server.url, f"STREAM.CREATE.{stream}", config, user="all", password="all")


def _some(url: str, delivery_timeout: float = 30, ack_timeout: float = 1) -> JetStreamSettings:
    return jetstream(
        url,
        user="some",
        password="some",
        ack_timeout=ack_timeout,
        delivery_timeout=delivery_timeout,
    )


@pytest.mark.parametrize("batched", [True, False], ids=["batches", "singles"])
def test_permission_taken_away_makes_what_is_left_unknown_and_stops_the_run(
    reloadable: Reloadable, batched: bool
) -> None:
    server = reloadable.server
    _make_stream(server, "TAKEN", batched)
    batch = envelopes(300, "TAKEN.x")
    with opened(_some(server.url, delivery_timeout=3)) as (_, lane):
        settle(lane, batch[:100])
        reloadable.deny("TAKEN.x")
        results = settle(
            lane, [*batch[100:], *envelopes(5, "TAKEN.other", first=900, aggregates=None)]
        )

        assert lane.stop_reason is not None
    assert {results[each.event_id].outcome for each in batch[100:]} == {Outcome.UNKNOWN}
    assert {results[f"e-{n}"].outcome for n in range(900, 905)} == {Outcome.STORED}
    assert "this user may no longer publish on TAKEN.x: allow it again" in str(
        results["e-100"].reason
    )


@pytest.mark.parametrize("batched", [True, False], ids=["batches", "singles"])
def test_permission_that_comes_back_in_time_leaves_everything_stored(
    reloadable: Reloadable, batched: bool
) -> None:
    server = reloadable.server
    _make_stream(server, "BACK", batched)
    batch = envelopes(300, "BACK.x")
    with opened(_some(server.url)) as (pool, lane):
        settle(lane, batch[:100])
        reloadable.deny("BACK.x")
        lane.submit(batch[100:])
        until(lambda: broker_of(pool)["retries"] > 0)
        assert lane.unsettled == 200
        reloadable.deny()
        results = lane.flush()

    assert {result.outcome for result in results} == {Outcome.STORED}
    ids = message_ids_of(server, "BACK")
    assert sorted(ids) == sorted(each.event_id for each in batch)


@pytest.mark.parametrize("batched", [True, False], ids=["batches", "singles"])
def test_permission_taken_away_with_messages_out_rejects_none_that_is_stored(
    reloadable: Reloadable, batched: bool
) -> None:
    server = reloadable.server
    _make_stream(server, "OUT", batched)
    with Proxy(server.url) as proxy:
        settings = _some(proxy.url, delivery_timeout=9, ack_timeout=8)
        with opened(settings) as (pool, lane):
            other = pool.lane(JetStreamPublisher(settings), name="other")
            proxy.answers.loses = lambda frame: b"MSG" in frame[:4] and b"OUT" in frame
            lane.submit(envelopes(50, "OUT.x"))
            until(lambda: len(message_ids_of(server, "OUT")) == 50)
            reloadable.deny("OUT.x")
            other.submit([Envelope("OUT.x", b"50", "e-50")])
            # At the denial, the attempts of those that are stored are still awaited.
            until(lambda: b"-ERR" in b"".join(line[:4] for line in proxy.answers.frames))
            assert broker_of(pool)["retries"] == 0
            results = [*lane.flush(), *other.flush()]

            assert lane.stop_reason is not None
    assert len(results) == 51
    rejected = {each.event_id for each in results if each.outcome is Outcome.REJECTED}
    assert not rejected & set(message_ids_of(server, "OUT"))
    assert {each.outcome for each in results} <= {Outcome.STORED, Outcome.UNKNOWN}


@pytest.mark.parametrize("batched", [True, False], ids=["batches", "singles"])
def test_topic_that_was_never_allowed_is_rejected_while_others_flow(
    reloadable: Reloadable, batched: bool
) -> None:
    server = reloadable.server
    _make_stream(server, "never", batched)
    _make_stream(server, "FLOWS", batched)
    with opened(_some(server.url)) as (pool, lane):
        other = pool.lane(JetStreamPublisher(_some(server.url)), name="other")
        for number in range(40):
            lane.submit(envelopes(20, "FLOWS.x", first=20 * number))
            other.submit(envelopes(20, "never.x", first=20 * number))
        stored, denied = lane.flush(), other.flush()

        assert lane.stop_reason is other.stop_reason is None
    assert {each.outcome for each in stored} == {Outcome.STORED}
    assert {each.outcome for each in denied} == {Outcome.REJECTED}
    assert "this user may not publish on never.x" in str(denied[0].reason)


def message_ids_of(server: NatsServer, stream: str) -> list[str]:
    """Read by the user who may read."""
    return message_ids(server.url, stream, user="all", password="all")
