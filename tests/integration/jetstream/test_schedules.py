"""Envelopes that the server shall publish later."""

from datetime import UTC, datetime, timedelta

import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import jetstream, publish
from tests.support.streams import Names, make_stream, stored
from tests.support.waiting import until


def _scheduled(name: str, schedule: datetime | str) -> Envelope:
    options = PublishOptions(
        schedule=schedule, schedule_target=f"{name}.due", schedule_ttl=timedelta(hours=1)
    )
    return Envelope(f"{name}.plan.1", b"payload", "e-1", headers={"a": "b"}, options=options)


@pytest.mark.parametrize("often", [False, True], ids=["once", "again and again"])
def test_scheduled_envelope_is_published_by_the_stream_when_it_is_due(
    nats_server: NatsServer, names: Names, often: bool
) -> None:
    name = names()
    declared = StreamSettings(
        name=name,
        subjects=(f"{name}.>",),
        allow_message_schedules=True,
        allow_message_ttl=True,
    )
    schedule = "@every 1s" if often else datetime.now(UTC) + timedelta(seconds=1)
    envelope = _scheduled(name, schedule)

    results = publish(jetstream(nats_server.url, streams=(declared,)), envelope, envelope)

    assert results["e-1"].outcome is Outcome.STORED
    subject = f"{name}.due"

    def due() -> list[dict[str, str]]:
        return [each.headers for each in stored(nats_server.url, name) if each.subject == subject]

    until(lambda: len(due()) >= (2 if often else 1), 30)
    assert {(each["a"], each["Nats-TTL"]) for each in due()} == {("b", "3600s")}
    if not often:
        assert len(due()) == 1, "one of them was a duplicate"


def test_schedule_on_a_stream_without_schedules_is_rejected(
    nats_server: NatsServer, names: Names
) -> None:
    name = names()
    make_stream(nats_server.url, name, f"{name}.>")

    result = publish(jetstream(nats_server.url), _scheduled(name, "@hourly"))["e-1"]

    assert (result.outcome, result.code) == (Outcome.REJECTED, 10188)
    assert stored(nats_server.url, name) == []
