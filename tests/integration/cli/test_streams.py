"""`streams plan`, `apply` and `check` beside a real nats-server."""

from collections.abc import Iterator
from typing import Any

import pytest

from bytewax_jetstream.cli import main
from bytewax_jetstream.errors import StreamError
from bytewax_jetstream.planning.jetstream import JetStreamPlanner
from bytewax_jetstream.settings import JetStreamSettings, StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.commands import Ended, Given, call
from tests.support.streams import Names, api, change_stream, make_stream

USERS = """
    authorization { users: [
        { user: all, password: all }
        { user: reader, password: reader, permissions: {
            publish: { deny: ["$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>"] } } }
        { user: stranger, password: stranger, permissions: { publish: { deny: ["$JS.API.>"] } } }
    ]}
"""


@pytest.fixture(scope="module")
def guarded() -> Iterator[NatsServer]:
    with NatsServer(config=USERS) as server:
        yield server


@pytest.fixture
def stream(names: Names, nats_server: NatsServer, given: Given) -> str:
    """The name of a stream that no other test has; the server is set."""
    given(servers=nats_server.url)
    return names().lower()


def _config(server: NatsServer, name: str) -> dict[str, Any]:
    config: dict[str, Any] = api(server.url, f"STREAM.INFO.{name}")["config"]
    return config


def _count(server: NatsServer) -> int:
    return int(api(server.url, "INFO")["streams"])


def _lines(ended: Ended) -> list[str]:
    return [line.strip() for line in ended.out.splitlines()]


def test_missing_stream_is_planned_made_and_then_checked(
    stream: str, nats_server: NatsServer, given: Given
) -> None:
    given(streams=[{"name": stream, "subjects": [f"{stream}.>"]}], topics=f"{stream}.new")
    before = _count(nats_server)

    plan, check = call("streams", "plan"), call("streams", "check")

    assert (plan.code, check.code) == (1, 4)
    assert f"+ stream {stream} is missing, and would be created" in _lines(plan)
    assert f"+ topic {stream}.new would be stored by stream {stream}" in _lines(plan)
    assert check.err.splitlines()[:2] == [
        f"stream {stream} is missing",
        f"no stream covers topic {stream}.new",
    ]
    assert _count(nats_server) == before, "the plan or the check has changed something"

    made = call("streams", "apply")

    assert made.code == 0
    assert f"created stream {stream}" in _lines(made)
    assert _config(nats_server, stream)["subjects"] == [f"{stream}.>"]
    for command, says in [
        ("plan", f"= stream {stream} is as the settings require"),
        ("apply", "Nothing had to be changed."),
        ("check", "The servers have everything that the settings require."),
    ]:
        ended = call("streams", command)
        assert (ended.code, ended.err) == (0, "")
        assert says in _lines(ended)


def test_weaker_stream_is_changed_and_what_is_stronger_stays(
    stream: str, nats_server: NatsServer, given: Given
) -> None:
    make_stream(
        nats_server.url, stream, f"{stream}.a", max_msgs=10, max_bytes=-1, max_age=9_000_000_000_000
    )
    given(
        streams=[
            {
                "name": stream,
                "subjects": [f"{stream}.a", f"{stream}.b"],
                "max_messages": 20,
                "max_bytes": 1000,
                "max_age": "PT1H",
                "discard": "new",
            }
        ]
    )

    plan = call("streams", "plan")
    assert plan.code == 1
    assert f"~ stream {stream} would be changed" in _lines(plan)
    assert "max_msgs: 10 -> 20" in _lines(plan)
    assert _config(nats_server, stream)["max_msgs"] == 10
    made = call("streams", "apply")

    assert made.code == 0
    assert f"changed stream {stream}" in _lines(made)
    config = _config(nats_server, stream)
    assert config["subjects"] == [f"{stream}.a", f"{stream}.b"]
    assert (config["max_msgs"], config["discard"]) == (20, "new")
    assert (config["max_bytes"], config["max_age"]) == (-1, 9_000_000_000_000)


CANNOT = [
    ("storage", {"storage": "memory"}, {}, "no server can change it: make another stream"),
    ("retention", {}, {"retention": "workqueue"}, "no server can change it to or from workqueue"),
    ("no_ack", {"no_ack": True}, {}, "has no_ack set"),
    ("replicas", {}, {"replicas": 3}, "needs a cluster, and this server is not in one"),
    (
        "window",
        {"max_age": 60_000_000_000, "duplicate_window": 60_000_000_000},
        {"duplicate_window": "PT2M"},
        "allows no more",
    ),
]


@pytest.mark.parametrize(
    ("has", "wants", "says"), [each[1:] for each in CANNOT], ids=[each[0] for each in CANNOT]
)
def test_what_cannot_be_changed_is_said_and_nothing_else_is_made(
    stream: str,
    nats_server: NatsServer,
    given: Given,
    has: dict[str, Any],
    wants: dict[str, Any],
    says: str,
) -> None:
    make_stream(nats_server.url, stream, f"{stream}.>", **has)
    other = {"name": f"{stream}-other", "subjects": [f"{stream}-other"]}
    given(streams=[{"name": stream, "subjects": [f"{stream}.>"], **wants}, other])
    before = _count(nats_server), _config(nats_server, stream)

    plan, made = call("streams", "plan"), call("streams", "apply")

    assert plan.code == made.code == 4
    assert f"! stream {stream} cannot be made as the settings require" in _lines(plan)
    assert says in plan.out
    assert _lines(made)[-1] == "Nothing was changed."
    assert (_count(nats_server), _config(nats_server, stream)) == before


def test_stream_whose_subjects_another_stream_has_is_refused_before_anything_changes(
    stream: str, nats_server: NatsServer, given: Given
) -> None:
    make_stream(nats_server.url, stream, f"{stream}.*")
    given(streams=[{"name": f"{stream}-2", "subjects": [f"{stream}.new", f"{stream}.old.>"]}])

    plan = call("streams", "plan")

    assert plan.code == 4
    assert (
        f"subject {stream}.new of stream {stream}-2 overlaps {stream}.* of stream {stream}"
        in plan.out
    )
    assert plan.out.count("overlaps") == 1


def test_topic_that_no_stream_covers_is_a_shortcoming_that_nothing_mends(
    stream: str, given: Given
) -> None:
    given(topics=f"{stream}.new")

    plan = call("streams", "plan", "--json")

    assert plan.code == 4
    (entry,) = plan.json["brokers"][0]["entries"]
    assert (entry["kind"], entry["name"], entry["action"]) == ("topic", f"{stream}.new", "cannot")
    assert "declare a StreamSettings for it" in entry["obstacles"][0]
    assert call("streams", "check", "--json").json["shortcomings"] == [
        f"no stream covers topic {stream}.new"
    ]


def test_change_that_could_remove_messages_needs_yes(
    stream: str, nats_server: NatsServer, given: Given
) -> None:
    make_stream(nats_server.url, stream, f"{stream}.>")
    given(streams=[{"name": stream, "subjects": [f"{stream}.>"], "retention": "interest"}])
    assert "risk" not in call("streams", "plan").out, "nothing is stored yet"
    _store_one(nats_server, f"{stream}.x")

    refused = call("streams", "apply")

    assert refused.code == 2
    assert "risk: with retention interest" in refused.out
    assert "nothing was changed, because of the risks above: add --yes" in refused.err
    assert _config(nats_server, stream)["retention"] == "limits"

    assert call("streams", "apply", "--yes").code == 0
    assert _config(nats_server, stream)["retention"] == "interest"


def _store_one(server: NatsServer, subject: str) -> None:
    import asyncio

    import nats

    async def store() -> None:
        async with await nats.connect(server.url) as client:
            await client.jetstream().publish(subject, b"one")

    asyncio.run(store())


def test_stream_that_somebody_changes_after_the_plan_is_not_touched(
    stream: str, nats_server: NatsServer
) -> None:
    make_stream(nats_server.url, stream, f"{stream}.a", max_msgs=10)
    wanted = StreamSettings(name=stream, subjects=(f"{stream}.a",), max_messages=20, discard="new")
    planner = JetStreamPlanner(JetStreamSettings(servers=(nats_server.url,), streams=(wanted,)))
    change_stream(nats_server.url, stream, discard="new")
    shown = planner.plan()
    change_stream(nats_server.url, stream, discard="old")

    with pytest.raises(StreamError, match="was changed by somebody else since the plan was shown"):
        planner.apply(shown)

    assert _config(nats_server, stream)["max_msgs"] == 10


def test_json_says_what_was_applied(stream: str, given: Given) -> None:
    given(streams=[{"name": stream, "subjects": [f"{stream}.>"]}])

    plan = call("streams", "plan", "--json").json
    made = call("streams", "apply", "--json").json

    assert plan["differs"] is True
    (entry,) = plan["brokers"][0]["entries"]
    assert (entry["action"], entry["name"]) == ("create", stream)
    assert {"field": "storage", "before": None, "after": "file"} in entry["changes"]
    assert (made["applied"], made["differs"]) == (True, False)


FLOW = """
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource
import bytewax_jetstream.operators as jop
from bytewax_jetstream import JetStreamSettings, StreamSettings
from bytewax_jetstream.sinks import JetStreamSink

def settings(name):
    return JetStreamSettings(streams=(StreamSettings(name=name, subjects=(name + ".>",)),))

flow = Dataflow("orders")
envelopes = op.input("in", flow, TestingSource([]))
jop.publish("publish", envelopes, settings("{name}-step"))
op.output("sink", envelopes, JetStreamSink(settings("{name}-sink")))
jop.input("read", flow, settings("{name}-source"), stream="{name}-source")

bare = Dataflow("bare")
op.input("in", bare, TestingSource([]))
"""


def test_flow_brings_the_settings_of_its_steps_sinks_and_sources(
    stream: str, given: Given, tmp_path: Any
) -> None:
    # A module of another name each time: Python imports one only once.
    (tmp_path / f"flow_{stream}.py").write_text(FLOW.replace("{name}", stream))

    made = call("streams", "apply", "--flow", f"flow_{stream}:flow")
    bare = call("streams", "plan", "--flow", f"flow_{stream}:bare")

    assert made.code == 0
    for part in ("step", "sink", "source"):
        assert f"created stream {stream}-{part}" in _lines(made)
    assert bare.code == 2
    assert f"no step of flow_{stream}:bare has settings of JetStream or Kafka" in bare.err


def test_user_who_may_not_make_streams_is_told_so_before_anything_changes(
    guarded: NatsServer, given: Given
) -> None:
    given(servers=guarded.url, streams=[{"name": "X", "subjects": ["x"]}])
    given(user="reader", password="reader")
    plan = call("streams", "plan")
    given(user="stranger", password="stranger")
    stranger = call("streams", "plan")

    assert plan.code == 4
    assert 'Permissions Violation for Publish to "$JS.API.STREAM.CREATE.X": allow' in plan.out
    assert stranger.code == 4
    assert "allow this user to use the JetStream API" in stranger.err


BAD = [
    ("no server", {"servers": "nats://127.0.0.1:9"}, 3, "no connection to nats://127.0.0.1:9"),
    ("no JSON", {"streams": "orders"}, 2, "streams"),
    ("no field", {"streams": [{"name": "X"}]}, 2, "STREAMS, 0, subjects is missing: set it\n"),
    ("misspelt", {"topisc": "x"}, 2, "unknown setting BYTEWAX_JETSTREAM_TOPISC (the nearest is"),
    ("nothing", {"topics": ""}, 2, "name no streams and no topics: set BYTEWAX_JETSTREAM_STREAMS"),
]


@pytest.mark.parametrize(
    ("settings", "code", "says"), [each[1:] for each in BAD], ids=[each[0] for each in BAD]
)
@pytest.mark.parametrize("command", ["plan", "apply", "check"])
def test_wrong_setting_or_server_is_one_sentence(
    given: Given, command: str, settings: dict[str, Any], code: int, says: str
) -> None:
    given(topics="x", connect_timeout=0.2)
    given(**settings)

    ended = call("streams", command)

    assert ended.code == code
    assert says in ended.err
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""


def test_debug_adds_the_traceback(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    given(servers="nats://127.0.0.1:9", topics="x", connect_timeout=0.2)

    assert main(["streams", "plan", "--debug"]) == 3
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_unknown_flow_is_one_sentence(given: Given) -> None:
    given()

    ended = call("streams", "plan", "--flow", "nowhere.at_all:flow")

    assert ended.code == 2
    assert ended.err.startswith("bytewax-jetstream streams plan: there is no flow nowhere.at_all")
