"""Reading through a durable consumer of a real server: each message is acknowledged
once its epoch is committed.
"""

import logging
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSink

import bytewax_jetstream.jetstream.source.by_durable
import bytewax_jetstream.jetstream.source.reader
import bytewax_jetstream.operators as jop
from bytewax_jetstream.errors import JetStreamPipelineError, SourceError
from bytewax_jetstream.jetstream.message import JetStreamMessage, UnreadableMessage
from bytewax_jetstream.jetstream.source.source import JetStreamSource
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import recovery_store, root_cause, run
from tests.support.proxy import Proxy
from tests.support.reading import AMY, Driver, numbered, put, settings, write
from tests.support.streams import Names, api, make_stream
from tests.support.waiting import until

SOON = timedelta(seconds=1)
"""An ack_wait that a test can wait for."""
WAIT = timedelta(seconds=2)
"""One within which a busy machine still tells the server three times that it works."""


def source(
    url: str, *streams: str, tail: bool = True, durable: str = "reader", **more: Any
) -> JetStreamSource:
    return JetStreamSource(settings(url), streams=streams, tail=tail, durable=durable, **more)


def queue(url: str, stream: str, count: int) -> str:
    """A work queue with the numbers from 1."""
    make_stream(url, stream, f"{stream}.>", retention="workqueue")
    put(url, stream, numbered(f"{stream}.a", count))
    return stream


def info(url: str, stream: str, durable: str = "reader") -> dict[str, Any]:
    return api(url, f"CONSUMER.INFO.{stream}.{durable}")


def left_in(url: str, stream: str) -> int:
    return int(api(url, f"STREAM.INFO.{stream}")["state"]["messages"])


def test_no_message_is_acknowledged_before_its_epoch_is_committed(url: str, names: Names) -> None:
    stream = queue(url, names(), 10)

    with Driver(source(url, stream, batch_size=1)) as driver:
        driver.until(lambda: len(driver.items) == 5)
        driver.part.snapshot()
        before = info(url, stream)
        assert (before["ack_floor"]["stream_seq"], before["num_ack_pending"]) == (0, 10)
        assert left_in(url, stream) == 10

        driver.step()  # the engine asks again: the epoch is committed
        until(lambda: info(url, stream)["ack_floor"]["stream_seq"] == 5)
        assert left_in(url, stream) == 5

        driver.until(lambda: len(driver.items) == 10)
        for _ in range(5):
            driver.step()
        assert info(url, stream)["num_ack_pending"] == 5
        driver.part.snapshot()
        driver.until(lambda: left_in(url, stream) == 0)

    assert driver.numbers == list(range(1, 11))


def test_uncommitted_messages_are_delivered_to_the_next_run_at_once(url: str, names: Names) -> None:
    stream = queue(url, names(), 1000)
    with Driver(source(url, stream, batch_size=1)) as driver:
        driver.until(lambda: len(driver.items) == 200)
        driver.part.snapshot()
        driver.step()
        first = driver.numbers

    with Driver(source(url, stream)) as driver:
        driver.until(lambda: len(driver.items) == 800)

    assert sorted(driver.numbers) == list(range(201, 1001))
    assert first[:200] == list(range(1, 201))


def test_committed_but_unacknowledged_messages_are_not_emitted_again(
    url: str, names: Names
) -> None:
    stream = queue(url, names(), 20)
    with Driver(source(url, stream, batch_size=1)) as driver:
        driver.until(lambda: len(driver.items) == 10)
        state = driver.part.snapshot()
    assert left_in(url, stream) == 20

    with Driver(source(url, stream, tail=False), state=state) as driver:
        driver.to_end(epochs=True)

    assert sorted(driver.numbers) == list(range(11, 21))
    assert left_in(url, stream) == 0


def test_a_work_queue_is_emptied_by_a_dataflow(url: str, names: Names) -> None:
    stream = queue(url, names(), 3000)
    flow, items = Dataflow("flow"), list[Any]()
    op.output("out", op.input("in", flow, source(url, stream, tail=False)), TestingSink(items))

    run(flow)

    assert sorted(int(item.payload) for item in items) == list(range(1, 3001))
    assert left_in(url, stream) == 0
    assert info(url, stream)["num_ack_pending"] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_crashed_run_resumes_from_the_last_committed_epoch(
    url: str, names: Names, tmp_path: Path, workers: int
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>", retention="workqueue")
    for kind in ("a", "b"):
        put(url, stream, numbered(f"{stream}.{kind}", 1000))
    store = recovery_store(tmp_path / "store")
    seen: list[int] = []
    limit = 700

    def look(_: str, item: JetStreamMessage | UnreadableMessage) -> None:
        if len(seen) >= limit:
            raise RuntimeError("crash")
        seen.append(item.sequence)

    def flow() -> Dataflow:
        made = Dataflow("flow")
        subjects = [f"{stream}.a", f"{stream}.b"]
        items = op.input(
            "in", made, source(url, stream, subjects=subjects, tail=False, batch_size=20)
        )
        op.output("out", op.inspect("look", items, look), TestingSink([]))
        return made

    with pytest.raises(BytewaxRuntimeError) as caught:
        run(flow(), workers=workers, store=store, epoch=timedelta(0))
    assert str(root_cause(caught.value)) == "crash"
    limit = 10_000
    run(flow(), workers=workers, store=store, epoch=timedelta(0))

    counts = Counter(seen)
    assert set(counts) == set(range(1, 2001))
    assert (
        sum(counts.values()) - len(counts) <= 2 * 20
    )  # the batch of each partition that was not committed
    assert left_in(url, stream) == 0


def in_progress(frame: bytes) -> bool:
    """Whether it tells the server that a message is being worked on."""
    return frame.startswith(b"PUB $JS.ACK") and frame.endswith(b"+WPI\r\n")


def count_in_progress(proxy: Proxy) -> list[bytes]:
    """What the source tells the server about messages in progress, from now on."""
    seen: list[bytes] = []

    def look(frame: bytes) -> bool:
        if in_progress(frame):
            seen.append(frame)
        return False

    proxy.requests.loses = look
    return seen


def test_message_redelivered_before_its_commit_is_not_emitted_again(url: str, names: Names) -> None:
    stream = queue(url, names(), 5)

    with Proxy(url) as proxy, Driver(source(proxy.url, stream, ack_wait=SOON)) as driver:
        proxy.requests.loses = in_progress
        driver.until(lambda: len(driver.items) == 5)
        driver.until(lambda: info(url, stream)["num_redelivered"] == 5)
        for _ in range(20):
            driver.step()

    assert driver.numbers == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("blocked", [False, True], ids=["engine asks", "engine's thread blocked"])
def test_epoch_of_several_ack_waits_commits_and_nothing_is_delivered_again(
    url: str, names: Names, blocked: bool
) -> None:
    stream = queue(url, names(), 20)

    with Proxy(url) as proxy:
        told = count_in_progress(proxy)
        with Driver(source(proxy.url, stream, batch_size=5, ack_wait=WAIT)) as driver:
            driver.until(lambda: len(driver.items) >= 5)
            # Each message is told of three times in an ack_wait; those not taken yet, too.
            if blocked:
                until(lambda: len(told) >= 8 * 20, timeout=60)
            else:
                driver.until(lambda: len(told) >= 8 * 20, timeout=60)
            driver.until(lambda: len(driver.items) == 20)
            driver.part.snapshot()
            driver.until(lambda: left_in(url, stream) == 0)
            assert info(url, stream)["delivered"]["consumer_seq"] == 20

    assert driver.numbers == list(range(1, 21))


def test_closed_epoch_that_is_not_committed_yet_is_kept_alive(url: str, names: Names) -> None:
    stream = queue(url, names(), 5)

    with Proxy(url) as proxy:
        told = count_in_progress(proxy)
        with Driver(source(proxy.url, stream, ack_wait=WAIT)) as driver:
            driver.until(lambda: len(driver.items) == 5)
            driver.part.snapshot()
            until(lambda: len(told) >= 8 * 5, timeout=60)
            assert info(url, stream)["delivered"]["consumer_seq"] == 5
            driver.until(lambda: left_in(url, stream) == 0)


def test_short_epochs_tell_the_server_nothing_but_acks(url: str, names: Names) -> None:
    stream = queue(url, names(), 200)

    with Proxy(url) as proxy:
        told = count_in_progress(proxy)
        with Driver(source(proxy.url, stream, tail=False, batch_size=10)) as driver:
            driver.to_end(epochs=True)

    assert not told
    assert len(driver.items) == 200


def test_messages_are_kept_alive_for_the_shortest_backoff_of_a_consumer(
    url: str, names: Names
) -> None:
    stream = queue(url, names(), 5)
    config = {
        "durable_name": "reader",
        "ack_policy": "explicit",
        "max_ack_pending": 100_000,
        "backoff": [2 * 10**9, 4 * 10**9],
    }
    body = {"stream_name": stream, "config": config}
    api(url, f"CONSUMER.DURABLE.CREATE.{stream}.reader", body)

    with Proxy(url) as proxy:
        told = count_in_progress(proxy)
        with Driver(source(proxy.url, stream, ack_wait=WAIT)) as driver:
            driver.until(lambda: len(told) >= 8 * 5, timeout=60)
            assert info(url, stream)["delivered"]["consumer_seq"] == 5


def test_epoch_beyond_the_limit_is_kept_from_nobody_and_stops_the_run(
    url: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.by_durable, "HOLD_SECONDS", 0.5)
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.by_durable, "HOLD_WAITS", 0.5)
    stream = queue(url, names(), 5)

    with Driver(source(url, stream, ack_wait=SOON)) as driver:
        driver.until(lambda: len(driver.items) == 5)
        driver.until(lambda: info(url, stream)["num_redelivered"])
        with pytest.raises(
            SourceError,
            match=r"ack_wait of 1 s .* again after 0\.5 s: raise ack_wait, or shorten the epoch",
        ) as caught:
            driver.part.snapshot()
    assert caught.value.limit == 0.5


def test_input_operator_passes_ack_wait_and_max_ack_pending_to_the_consumer(
    url: str, names: Names
) -> None:
    stream = queue(url, names(), 5)
    flow, items = Dataflow("flow"), list[Any]()
    out = jop.input(
        "in",
        flow,
        settings(url),
        stream=stream,
        durable="reader",
        tail=False,
        ack_wait=timedelta(seconds=7),
        max_ack_pending=11,
    )
    op.output("out", out.oks, TestingSink(items))

    run(flow)

    config = info(url, stream)["config"]
    assert (config["ack_wait"], config["max_ack_pending"]) == (7 * 10**9, 11)
    assert len(items) == 5


def test_epoch_reads_at_most_max_ack_pending_messages_and_says_so(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = queue(url, names(), 30)

    with (
        caplog.at_level(logging.WARNING),
        Driver(source(url, stream, max_ack_pending=10)) as driver,
    ):
        for count in (10, 20, 30):
            driver.until(lambda: len(driver.items) == count)  # noqa: B023  # called before the next round
            driver.until(lambda: "raise max_ack_pending" in caplog.text)
            assert len(driver.items) == count
            driver.part.snapshot()
        driver.until(lambda: left_in(url, stream) == 0)

    assert driver.numbers == list(range(1, 31))
    assert caplog.text.count("raise max_ack_pending") == 1


def test_each_subject_has_its_own_consumer(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>", retention="workqueue")
    for kind in ("a", "b", "c"):
        put(url, stream, numbered(f"{stream}.{kind}", 10))
    flow, items = Dataflow("flow"), list[Any]()
    made = source(url, stream, tail=False, subjects=[f"{stream}.a", f"{stream}.b"])
    op.output("out", op.input("in", flow, made), TestingSink(items))

    run(flow, workers=2)

    assert Counter(item.subject for item in items) == {f"{stream}.a": 10, f"{stream}.b": 10}
    assert left_in(url, stream) == 10
    assert len(api(url, f"CONSUMER.NAMES.{stream}")["consumers"]) == 2


def test_an_interest_stream_is_emptied(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream, retention="interest")

    with Driver(source(url, stream)) as driver:
        put(url, stream, numbered(stream, 10))
        driver.until(lambda: len(driver.items) == 10)
        driver.part.snapshot()
        driver.until(lambda: left_in(url, stream) == 0)


@pytest.mark.parametrize(
    ("start", "expected"), [("first", [1, 2, 3, 4]), ("new", [4]), (2, [2, 3, 4])]
)
def test_new_consumer_starts_where_it_is_told_to(
    url: str, names: Names, start: Any, expected: list[int]
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 3))

    with Driver(source(url, stream, start=start)) as driver:
        put(url, stream, numbered(stream, 1, first=4))
        driver.until(lambda: driver.items and driver.numbers[-1] == 4)

    assert driver.numbers == expected


def test_unreadable_message_goes_to_the_errors_and_is_acknowledged(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>", retention="workqueue")
    name = stream.encode()
    bad = [b"HPUB %s.a 8 11\r\nNATS/1.0abc\r\n" % name, b"PUB %s.\xff 3\r\nabc\r\n" % name]
    put(url, stream, [*bad, *numbered(f"{stream}.a", 1)])

    with Driver(source(url, stream, tail=False)) as driver:
        driver.to_end(epochs=True)

    assert [type(item) for item in driver.items] == [
        UnreadableMessage,
        UnreadableMessage,
        JetStreamMessage,
    ]
    assert left_in(url, stream) == 0


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_server_restart_while_reading_loses_and_repeats_nothing(
    own_nats_server: NatsServer, how: str
) -> None:
    server = own_nats_server
    queue(server.url, "S", 3000)

    with Driver(source(server.url, "S", batch_size=100, ack_wait=timedelta(seconds=5))) as driver:
        for round_ in (1, 2, 3):
            # What was on its way when the server ended comes after an ack_wait: no epoch may last
            # that long.
            driver.until(lambda: len(driver.items) >= 400 * round_, epochs=True)  # noqa: B023  # called only here
            driver.step()
            driver.step()
            getattr(server, how)()
            driver.step()
            server.start()
        driver.until(lambda: len(driver.items) == 3000, epochs=True)
        driver.until(lambda: left_in(server.url, "S") == 0)

    assert sorted(driver.numbers) == list(range(1, 3001))


def test_acks_lost_with_the_connection_are_sent_again(url: str, names: Names) -> None:
    stream = queue(url, names(), 10)

    with Proxy(url) as proxy, Driver(source(proxy.url, stream)) as driver:
        driver.until(lambda: len(driver.items) == 10)
        driver.part.snapshot()
        proxy.requests.loses = lambda frame: frame.startswith(b"PUB $JS.ACK")
        driver.until(lambda: proxy.requests.lost == 10)
        assert left_in(url, stream) == 10
        proxy.requests.loses = lambda frame: False
        proxy.cut_all()
        driver.until(lambda: left_in(url, stream) == 0)

    assert driver.numbers == list(range(1, 11))


def test_server_that_confirms_no_ack_stops_the_run(url: str, names: Names) -> None:
    stream = queue(url, names(), 10)

    with Proxy(url) as proxy:
        made = JetStreamSource(settings(proxy.url, outage=0.3), streams=stream, durable="reader")
        with Driver(made) as driver:
            driver.until(lambda: len(driver.items) == 10)
            proxy.requests.loses = lambda frame: frame.startswith(b"PUB $JS.ACK")
            driver.part.snapshot()
            with pytest.raises(SourceError, match=r"confirmed no acknowledgement for 0\.3 s"):
                driver.until(lambda: False)


def test_missing_permission_to_acknowledge_is_named() -> None:
    config = """
        authorization { users: [
            { user: amy, password: a },
            { user: bob, password: b, permissions: { publish: { deny: ["$JS.ACK.>"] } } }
        ] }
    """
    with NatsServer(config=config) as server:
        api(server.url, "STREAM.CREATE.S", {"name": "S", "subjects": ["s"]}, **AMY)
        made = JetStreamSource(
            settings(server.url, user="bob", password="b"), streams="S", durable="reader"
        )
        with Driver(made) as driver:
            write(server.url, numbered("s", 1), user="bob", password="b")
            driver.until(lambda: driver.items)
            driver.part.snapshot()
            with pytest.raises(
                SourceError,
                match=r"Permissions Violation .*\$JS\.ACK\.S\.reader.*: allow this user",
            ):
                driver.until(lambda: False)


def test_a_consumer_deleted_while_reading_ends_the_run(
    url: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytewax_jetstream.jetstream.source.reader, "GONE_SECONDS", 0.3)
    stream = queue(url, names(), 10)

    with Driver(source(url, stream)) as driver:
        driver.until(lambda: len(driver.items) == 10)
        api(url, f"CONSUMER.DELETE.{stream}.reader")
        with pytest.raises(
            SourceError,
            match=r"reader of stream .* was deleted while it was read: start the flow again",
        ):
            driver.until(lambda: False)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"ack_policy": "none"}, "its ack_policy is none, the source requires explicit"),
        ({"ack_wait": 10**9}, "its ack_wait is 0:00:01, the source requires 0:01:30"),
        ({"max_ack_pending": 5}, "its max_ack_pending is 5, the source requires 100000"),
        (
            {"filter_subject": "{stream}.b"},
            "it delivers {stream}.b, the source requires all subjects",
        ),
        ({"max_deliver": 3}, "its max_deliver is 3, so it gives up a message"),
        ({"headers_only": True}, "it delivers headers only"),
        ({"deliver_subject": "push"}, "it is a push consumer, the source requires a pull consumer"),
    ],
)
def test_unsuitable_consumer_is_refused_with_what_is_wrong(
    url: str, names: Names, config: dict[str, Any], reason: str
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>")
    fits = {
        "ack_policy": "explicit",
        "ack_wait": 90 * 10**9,
        "max_ack_pending": 100_000,
        "durable_name": "reader",
    }
    config = {
        key: value.format(stream=stream) if isinstance(value, str) else value
        for key, value in config.items()
    }
    body = {"stream_name": stream, "config": {**fits, **config}}
    api(url, f"CONSUMER.DURABLE.CREATE.{stream}.reader", body)

    with pytest.raises(JetStreamPipelineError) as caught:
        Driver(source(url, stream))

    expected = (
        f"durable consumer reader of stream {stream} cannot be used: {reason.format(stream=stream)}"
    )
    assert str(caught.value).startswith(expected)
    if isinstance(caught.value, SourceError):
        assert (caught.value.stream, caught.value.consumer) == (stream, "reader")


def test_consumer_refused_by_the_server_is_one_clear_error(url: str, names: Names) -> None:
    """A work queue allows no second consumer of a subject."""
    stream = queue(url, names(), 1)
    with Driver(source(url, stream)), pytest.raises(SourceError) as caught:
        Driver(source(url, stream, durable="other"))
    assert (caught.value.stream, caught.value.consumer) == (stream, "other")

    assert str(caught.value).startswith(
        f"stream {stream} cannot be read: the server refused the consumer: "
    )


def test_pull_requests_keep_the_consumers_own_limits(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 100))
    limits = {"max_batch": 7, "max_expires": 10**9, "max_bytes": 2000}
    config = {
        "ack_policy": "explicit",
        "ack_wait": 90 * 10**9,
        "max_ack_pending": 100_000,
        "durable_name": "reader",
    }
    api(
        url,
        f"CONSUMER.DURABLE.CREATE.{stream}.reader",
        {"stream_name": stream, "config": {**config, **limits}},
    )

    with Driver(source(url, stream, tail=False)) as driver:
        driver.to_end(epochs=True)

    assert driver.numbers == list(range(1, 101))


def test_newer_reply_subjects_are_acknowledged() -> None:
    with NatsServer(config="feature_flags { js_ack_fc_v2: true }") as server:
        queue(server.url, "S", 10)
        with Driver(source(server.url, "S", tail=False)) as driver:
            driver.to_end(epochs=True)
        assert driver.numbers == list(range(1, 11))
        assert left_in(server.url, "S") == 0
