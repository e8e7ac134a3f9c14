"""A run goes on only in the stream, and through the consumer, that the last run read."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.errors import SourceError
from bytewax_jetstream.jetstream.source import JetStreamSource
from bytewax_jetstream.testing import NatsServer
from tests.support.reading import AMY, Driver, consumers, numbered, put, settings, source, write
from tests.support.streams import Names, api, make_stream, remake_stream
from tests.support.waiting import until

COUNT = 30


def filled(url: str, stream: str, count: int = COUNT, *, first: int = 1, **config: Any) -> None:
    """A new stream of this name with numbers, in place of any other."""
    remake_stream(url, stream, f"{stream}.>", **config)
    if count:
        put(url, stream, numbered(f"{stream}.a", count, first=first))


def state_after(made: JetStreamSource, count: int) -> Any:
    """The recovery state of a run that has read so many messages."""
    with Driver(made) as driver:
        driver.step()
        driver.until(lambda: len(driver.items) == count)
        state = driver.part.snapshot()
        driver.step()
    return state


def refusal(made: JetStreamSource, state: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        Driver(made, state=state)
    return caught.value


@pytest.mark.parametrize("count", [0, 10, COUNT, 80], ids="{} messages in the new one".format)
@pytest.mark.parametrize("subjects", [(), "*.a"], ids=["all subjects", "one subject"])
def test_stream_made_again_between_runs_is_refused(
    url: str, names: Names, count: int, subjects: str
) -> None:
    stream = names()
    filled(url, stream)
    state = state_after(source(url, stream, tail=True, subjects=subjects), COUNT)
    filled(url, stream, count)

    error = refusal(source(url, stream, subjects=subjects), state)

    assert f"was read to sequence {COUNT} and now ends at {count}, or was created again" in str(
        error
    )
    assert "give the input another step id" in str(error)
    assert (error.stream, error.sequence) == (stream, COUNT)


@pytest.mark.parametrize("start", ["first", "new", 1])
def test_stream_made_again_before_anything_was_read_is_refused(
    url: str, names: Names, start: Any
) -> None:
    stream = names()
    filled(url, stream, 0)
    state = state_after(source(url, stream, tail=True, start=start), 0)
    filled(url, stream, 5)

    assert "was created again" in str(refusal(source(url, stream, start=start), state))


def test_stream_made_again_with_later_sequences_is_refused(url: str, names: Names) -> None:
    stream = names()
    filled(url, stream)
    state = state_after(source(url, stream, tail=True), COUNT)
    filled(url, stream, 10, first_seq=COUNT + 1)

    assert "was created again" in str(refusal(source(url, stream), state))


def test_stream_made_again_is_refused_without_permission_to_look_at_messages() -> None:
    config = """
        authorization { users: [
            { user: amy, password: a },
            { user: bob, password: b,
              permissions: { publish: { deny: ["$JS.API.STREAM.MSG.GET.>"] } } }
        ] }
    """
    with NatsServer(config=config) as server:
        made = JetStreamSource(settings(server.url, user="bob", password="b"), streams="S")
        body = {"name": "S", "subjects": ["s"]}
        api(server.url, "STREAM.CREATE.S", body, **AMY)
        write(server.url, numbered("s", 3), **AMY)
        state = state_after(made, 3)
        assert state_after_resume(made, state) == []
        api(server.url, "STREAM.DELETE.S", **AMY)
        api(server.url, "STREAM.CREATE.S", body, **AMY)
        write(server.url, numbered("s", 9), **AMY)

        assert "was created again" in str(refusal(made, state))


def state_after_resume(made: JetStreamSource, state: Any) -> list[int]:
    with Driver(made, state=state) as driver:
        driver.step()
        return driver.numbers


def test_state_of_version_1_resumes_with_one_warning_and_knows_the_stream_from_then_on(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    filled(url, stream, 5)

    with (
        caplog.at_level(logging.WARNING),
        Driver(source(url, stream), state=("sequence", 1, 4)) as driver,
    ):
        driver.to_end()
        state = driver.part.snapshot()

    assert driver.numbers == [4, 5]
    assert len(caplog.messages) == 1
    assert "the recovery state was written by an older version" in caplog.text
    filled(url, stream, 9)
    assert "was created again" in str(refusal(source(url, stream), state))


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda url, stream: api(url, f"STREAM.PURGE.{stream}"),
        lambda url, stream: api(url, f"STREAM.PURGE.{stream}", {"seq": COUNT + 1}),
        lambda url, stream: api(url, f"STREAM.MSG.DELETE.{stream}", {"seq": COUNT}),
        lambda url, stream: None,
    ],
    ids=["purged", "purged to the position", "last message deleted", "untouched"],
)
def test_stream_that_lost_read_messages_is_read_on(
    url: str, names: Names, meanwhile: Callable[[str, str], object]
) -> None:
    stream = names()
    filled(url, stream)
    state = state_after(source(url, stream, tail=True), COUNT)
    meanwhile(url, stream)
    put(url, stream, numbered(f"{stream}.a", 5, first=COUNT + 1))

    with Driver(source(url, stream), state=state) as driver:
        driver.to_end()

    assert driver.numbers == list(range(COUNT + 1, COUNT + 6))


def test_mirror_made_again_is_read_on(url: str, names: Names) -> None:
    origin, mirror = names(), names()
    filled(url, origin)

    def make_mirror(count: int) -> None:
        config = {"name": mirror, "mirror": {"name": origin}}
        api(url, f"STREAM.CREATE.{mirror}", config)
        until(lambda: api(url, f"STREAM.INFO.{mirror}")["state"]["last_seq"] == count)

    make_mirror(COUNT)
    state = state_after(source(url, mirror, tail=True), COUNT)
    api(url, f"STREAM.DELETE.{mirror}")
    put(url, origin, numbered(f"{origin}.a", 5, first=COUNT + 1))
    make_mirror(COUNT + 5)

    with Driver(source(url, mirror), state=state) as driver:
        driver.to_end()

    assert driver.numbers == list(range(COUNT + 1, COUNT + 6))


@pytest.mark.parametrize("backup_at", [10, COUNT], ids=["older backup", "latest backup"])
def test_restored_stream_is_read_on_only_if_it_holds_what_was_read(
    tmp_path: Path, backup_at: int
) -> None:
    with NatsServer(store_dir=tmp_path / "store") as server:
        filled(server.url, "S", backup_at)
        server.terminate()
        shutil.copytree(tmp_path / "store", tmp_path / "backup")
        server.start()
        if backup_at < COUNT:
            put(server.url, "S", numbered("S.a", COUNT - backup_at, first=backup_at + 1))
        state = state_after(source(server.url, "S", tail=True), COUNT)
        server.terminate()
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(tmp_path / "backup", tmp_path / "store")
        server.start()
        put(server.url, "S", numbered("S.a", 50, first=backup_at + 1))

        if backup_at < COUNT:
            error = refusal(source(server.url, "S"), state)
            assert f"it stores another message as sequence {COUNT}" in str(error)
        else:
            with Driver(source(server.url, "S"), state=state) as driver:
                driver.to_end()
            assert driver.numbers == list(range(COUNT + 1, COUNT + 51))


# Durable consumers


def durable(url: str, stream: str, name: str = "reader", **more: Any) -> JetStreamSource:
    return source(url, stream, tail=True, durable=name, **more)


def make_again(url: str, stream: str) -> None:
    config = {
        "ack_policy": "explicit",
        "ack_wait": 90 * 10**9,
        "max_ack_pending": 100_000,
        "durable_name": "reader",
        "deliver_policy": "new",
    }
    body = {"stream_name": stream, "config": config}
    api(url, f"CONSUMER.DURABLE.CREATE.{stream}.reader", body)


@pytest.mark.parametrize("start", ["first", "new"])
@pytest.mark.parametrize("version", [1, 2])
def test_durable_consumer_deleted_between_runs_is_refused_and_not_made(
    url: str, names: Names, start: Any, version: int
) -> None:
    stream = names()
    filled(url, stream)
    state = state_after(durable(url, stream), COUNT)
    state = state if version == 2 else ("durable", 1, state[2])
    api(url, f"CONSUMER.DELETE.{stream}.reader")
    put(url, stream, numbered(f"{stream}.a", 5, first=COUNT + 1))

    error = refusal(durable(url, stream, start=start), state)

    assert "durable consumer reader of stream" in str(error)
    assert "was deleted after the last run" in str(error)
    assert "another step id" in str(error)
    assert (error.stream, error.consumer, error.code) == (stream, "reader", 10014)
    assert consumers(url, stream) == []


def test_durable_consumer_of_a_stream_made_again_is_refused(url: str, names: Names) -> None:
    stream = names()
    filled(url, stream)
    state = state_after(durable(url, stream), COUNT)
    filled(url, stream)

    assert "was deleted after the last run" in str(refusal(durable(url, stream), state))


def test_durable_consumer_made_again_between_runs_is_refused(url: str, names: Names) -> None:
    stream = names()
    filled(url, stream)
    state = state_after(durable(url, stream), COUNT)
    api(url, f"CONSUMER.DELETE.{stream}.reader")
    put(url, stream, numbered(f"{stream}.a", 5, first=COUNT + 1))
    make_again(url, stream)

    assert "was deleted and created again (at " in str(refusal(durable(url, stream), state))


def test_durable_consumer_made_again_while_reading_ends_the_run(url: str, names: Names) -> None:
    stream = names()
    filled(url, stream)

    with Driver(durable(url, stream)) as driver:
        driver.until(lambda: len(driver.items) == COUNT)
        api(url, f"CONSUMER.DELETE.{stream}.reader")
        make_again(url, stream)
        with pytest.raises(SourceError, match=r"was deleted and created again \(at "):
            driver.until(lambda: False)


def test_durable_consumer_is_made_again_for_an_input_without_state(url: str, names: Names) -> None:
    stream = names()
    filled(url, stream)
    state_after(durable(url, stream), COUNT)
    api(url, f"CONSUMER.DELETE.{stream}.reader")

    state_after(durable(url, stream), COUNT)

    assert consumers(url, stream) == ["reader"]


def test_another_durable_consumer_than_before_is_refused(url: str, names: Names) -> None:
    stream = names()
    filled(url, stream)
    state = state_after(durable(url, stream), COUNT)

    error = refusal(durable(url, stream, "other"), state)

    assert "was read with a durable consumer (reader) by step flow.in before" in str(error)
    assert consumers(url, stream) == ["reader"]


@pytest.mark.parametrize("version", [1, 2])
def test_durable_consumer_resumes_after_a_server_restart(
    own_nats_server: NatsServer, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_nats_server
    filled(server.url, "S")
    state = state_after(durable(server.url, "S"), COUNT)
    state = state if version == 2 else ("durable", 1, state[2])
    server.terminate()
    server.start()
    put(server.url, "S", numbered("S.a", 5, first=COUNT + 1))

    with (
        caplog.at_level(logging.WARNING, logger="bytewax_jetstream"),
        Driver(durable(server.url, "S"), state=state) as driver,
    ):
        driver.until(lambda: len(driver.items) == 5)

    assert driver.numbers == list(range(COUNT + 1, COUNT + 6))
    assert len(caplog.messages) == (version == 1)


def test_run_after_run_goes_on_in_the_same_stream(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>")
    state: Any = None
    for round_ in range(3):
        put(url, stream, numbered(f"{stream}.a", 4, first=4 * round_ + 1))
        with Driver(source(url, stream), state=state) as driver:
            driver.to_end()
            state = driver.part.snapshot()
        assert driver.numbers == list(range(4 * round_ + 1, 4 * round_ + 5))
