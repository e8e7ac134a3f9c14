"""Streams made, checked and changed by strategy, against an API that answers from memory."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from bytewax_jetstream.errors import ConnectError, StreamError
from bytewax_jetstream.jetstream.connection import JetStreamApiError
from bytewax_jetstream.jetstream.streams import (
    REMEDY,
    STREAM_NAME_IN_USE,
    STREAM_NOT_FOUND,
    Coverage,
    ensure_streams,
    read_coverage,
)
from bytewax_jetstream.settings import JetStreamSettings, StreamSettings
from tests.support.stream_configs import MINUTE, ON_THE_SERVER, wanted


class Api:
    """Answers as a server with these streams, and keeps what it was asked."""

    takes_batches = False

    def __init__(self, *configs: dict[str, Any], page: int = 256) -> None:
        self.streams = {config["name"]: config for config in configs}
        self.asked: list[tuple[str, dict[str, Any] | None]] = []
        self.refusals: dict[str, JetStreamApiError] = {}
        self.mapped: dict[str, Any] = {}
        """Topics that no subject covers, with what is answered on each."""
        self._page = page

    async def request(
        self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        self.asked.append((subject, body))
        verb, name = subject.split(".")[1], subject.split(".")[-1]
        if subject in self.refusals:
            raise self.refusals.pop(subject)
        if verb == "LIST":
            assert body is not None
            some = list(self.streams.values())[body["offset"] : body["offset"] + self._page]
            return {
                "total": len(self.streams),
                "streams": [{"config": config} for config in some] or None,
            }
        if verb == "INFO" and name not in self.streams:
            raise JetStreamApiError(STREAM_NOT_FOUND, "stream not found")
        if verb in ("CREATE", "UPDATE"):
            assert body is not None
            self.streams[name] = body
        return {"config": self.streams[name]}

    async def ask(self, topic: str, headers: dict[str, str], seconds: float) -> Any:
        if topic not in self.mapped:
            raise ConnectError("no responders")
        return self.mapped[topic]

    @property
    def verbs(self) -> list[str]:
        return [subject.split(".")[1] for subject, _ in self.asked]


def ensure(api: Api, *streams: StreamSettings, **fields: Any) -> Coverage | None:
    return asyncio.run(ensure_streams(api, JetStreamSettings(streams=streams, **fields)))


def refusal(api: Api, *streams: StreamSettings, **fields: Any) -> str:
    with pytest.raises(StreamError) as caught:
        ensure(api, *streams, **fields)
    return str(caught.value)


def test_missing_stream_is_created_with_exactly_the_settings() -> None:
    api = Api()
    coverage = ensure(
        api, wanted(max_age=timedelta(days=1), allow_message_ttl=True), topics=("orders.new",)
    )

    assert api.asked[1] == (
        "STREAM.CREATE.ORDERS",
        {
            "name": "ORDERS",
            "subjects": ["orders.>"],
            "storage": "file",
            "num_replicas": 1,
            "retention": "limits",
            "duplicate_window": 2 * MINUTE,
            "max_age": 24 * 60 * MINUTE,
            "allow_msg_ttl": True,
        },
    )
    assert coverage is not None
    assert coverage.of("orders.new") is not None


def test_update_is_merged_into_the_servers_configuration() -> None:
    api = Api({**ON_THE_SERVER, "duplicate_window": MINUTE})
    ensure(api, wanted(discard="new"), stream_strategy="create_or_update")

    assert api.verbs == ["INFO", "UPDATE", "LIST"]
    assert api.asked[1][1] == {**ON_THE_SERVER, "duplicate_window": 2 * MINUTE, "discard": "new"}


@pytest.mark.parametrize("strategy", ["create", "validate"])
def test_other_strategies_update_nothing(strategy: str) -> None:
    api = Api({**ON_THE_SERVER, "duplicate_window": MINUTE, "storage": "memory"})
    reason = refusal(api, wanted(duplicate_window=timedelta(minutes=2)), stream_strategy=strategy)

    assert reason.startswith(
        "stream ORDERS is weaker than the settings require: "
        "storage is memory, the settings require file; duplicate"
    )
    assert "stream_strategy=create_or_update" in reason
    assert api.verbs == ["INFO"]


def test_stream_the_server_left_unchanged_is_still_too_weak() -> None:
    class Stubborn(Api):
        async def request(
            self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
        ) -> dict[str, Any]:
            if ".UPDATE." in subject:
                return {"config": self.streams["ORDERS"]}
            return await super().request(subject, body, seconds)

    api = Stubborn({**ON_THE_SERVER, "discard": "old"})

    assert "discard is old" in refusal(
        api, wanted(discard="new"), stream_strategy="create_or_update"
    )


def test_change_refused_by_the_server_is_named() -> None:
    api = Api({**ON_THE_SERVER, "storage": "memory"})
    api.refusals["STREAM.UPDATE.ORDERS"] = JetStreamApiError(
        10052, "stream configuration update can not change storage"
    )

    assert refusal(api, wanted(), stream_strategy="create_or_update") == (
        "stream ORDERS cannot be updated (storage): stream configuration update can not change "
        "storage (10052); change its StreamSettings, or the stream"
    )


def test_validate_does_not_create_a_missing_stream() -> None:
    assert refusal(Api(), wanted(), stream_strategy="validate") == (
        "stream ORDERS is missing: create it, or use stream_strategy=create"
    )


def test_skip_sends_no_request() -> None:
    api = Api()

    assert ensure(api, wanted(), topics=("bills",), stream_strategy="skip") is None
    assert api.asked == []


def test_stream_created_meanwhile_by_another_process_is_checked() -> None:
    class Late(Api):
        async def request(
            self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
        ) -> dict[str, Any]:
            if ".CREATE." in subject:
                self.streams["ORDERS"] = {**ON_THE_SERVER, "storage": "memory"}
                raise JetStreamApiError(STREAM_NAME_IN_USE, "stream name already in use")
            return await super().request(subject, body, seconds)

    assert "storage is memory" in refusal(Late(), wanted())


def test_stream_that_cannot_be_looked_up_or_created_says_why() -> None:
    api = Api()
    api.refusals["STREAM.INFO.ORDERS"] = JetStreamApiError(10118, "stream is offline")
    assert refusal(api, wanted()) == (
        "stream ORDERS cannot be looked up: stream is offline (10118); check the server's log"
    )

    api.refusals["STREAM.CREATE.ORDERS"] = JetStreamApiError(
        10065, "subjects overlap with an existing stream"
    )
    assert refusal(api, wanted()) == (
        "stream ORDERS cannot be created: subjects overlap with an existing stream (10065); "
        "change its StreamSettings, or the server"
    )


def test_a_declared_topic_needs_a_stream_that_covers_it() -> None:
    assert (
        refusal(Api(ON_THE_SERVER), topics=("orders.new", "bills"))
        == f"no stream covers topic bills: {REMEDY}"
    )


def test_a_declared_topic_may_be_one_that_the_account_maps_or_imports() -> None:
    api = Api(ON_THE_SERVER)
    api.mapped["bills"] = {"error": {"code": 400, "err_code": 10060}, "stream": "BILLS"}
    api.mapped["echo"] = {"error": "what?"}
    api.mapped["list"] = [1]

    assert ensure(api, topics=("orders.new", "bills")) is not None
    for topic in ("echo", "list"):
        assert refusal(api, topics=(topic,)) == f"no stream covers topic {topic}: {REMEDY}"


def test_stream_that_is_there_may_have_a_shorter_window_than_the_default() -> None:
    half = {**ON_THE_SERVER, "duplicate_window": MINUTE // 2}

    assert ensure(Api(half), wanted()) is not None
    assert "0:00:30, the settings require 0:02:00" in refusal(
        Api(half), wanted(duplicate_window=timedelta(minutes=2))
    )
    assert (
        ensure(Api(half), wanted(duplicate_window=timedelta(minutes=2)), dedupe=False) is not None
    )


def test_update_raises_the_window_as_far_as_the_maximum_age_allows() -> None:
    half = {**ON_THE_SERVER, "duplicate_window": MINUTE // 2}
    for age, window in ((0, 2 * MINUTE), (MINUTE, MINUTE), (MINUTE // 2, MINUTE // 2)):
        api = Api({**half, "max_age": age})
        ensure(api, wanted(), stream_strategy="create_or_update")
        assert api.streams["ORDERS"]["duplicate_window"] == window


def test_a_declared_topic_on_a_stream_that_forgets_ids_too_soon_fails_at_the_start() -> None:
    api = Api({**ON_THE_SERVER, "duplicate_window": MINUTE // 60})

    assert refusal(api, topics=("orders.new",)).startswith(
        "topic orders.new: stream ORDERS remembers event ids for 1 s, and a retry may come 10 s "
    )
    assert ensure(api, topics=("orders.new",), dedupe=False) is not None


def test_a_declared_topic_needs_a_stream_that_keeps_what_an_ack_promises() -> None:
    api = Api({**ON_THE_SERVER, "sealed": True})

    assert refusal(api, topics=("orders.new",)).startswith(
        "topic orders.new: stream ORDERS is sealed"
    )


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_all_pages_of_the_stream_list_are_read_and_no_more(count: int) -> None:
    api = Api(
        *({"name": f"S{number}", "subjects": [f"s.{number}"]} for number in range(count)), page=2
    )
    coverage = asyncio.run(read_coverage(api))

    assert set(coverage.configs) == {f"S{number}" for number in range(count)}
    assert len(api.asked) == max(1, (count + 1) // 2)


def test_stream_deleted_between_two_pages_does_not_make_reading_endless() -> None:
    class Shrinking(Api):
        async def request(
            self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
        ) -> dict[str, Any]:
            page = await super().request(subject, body, seconds)
            self.streams.popitem()
            return {**page, "total": 99}

    api = Shrinking(*({"name": f"S{number}"} for number in range(4)), page=2)
    asyncio.run(read_coverage(api))

    assert len(api.asked) <= 3


def test_stream_without_a_leader_still_covers_its_topics() -> None:
    """As a cluster of nats-server 2.15.1 lists it: by name, in `missing`."""

    class Leaderless(Api):
        async def request(
            self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
        ) -> dict[str, Any]:
            self.asked.append((subject, body))
            return {
                "total": 2,
                "offset": 0,
                "limit": 256,
                "streams": [],
                "missing": ["ORDERS", "OTHER"],
            }

    api = Leaderless()
    known = Coverage({"ORDERS": {"name": "ORDERS", "subjects": ["orders.>"]}})
    coverage = asyncio.run(read_coverage(api, known))

    assert [subject for subject, _ in api.asked] == ["STREAM.LIST"]
    covered = coverage.of("orders.new")
    assert covered is not None
    assert covered.stream == "ORDERS"
    assert coverage.silent == {"OTHER"}
    assert coverage.knows("OTHER")
    assert not coverage.lacks("bills"), "OTHER may cover it"
    assert refusal(api, topics=("bills",)).startswith(
        "no stream covers topic bills (no leader answers for ORDERS, OTHER): "
    )
