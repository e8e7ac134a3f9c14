"""The main job as its users run it: in a process of its own, with an embedded server."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import nats
import pytest

from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.testing import NatsServer
from flows.flights.audit import Counted, count_flights
from flows.flights.brokers import StreamNames
from flows.flights.data import rows
from flows.flights.errors import AuditError
from flows.flights.jetstream import StreamReader
from flows.flights.run_directory import RunDirectory
from tests.support.streams import make_stream
from tests.support.waiting import until

LIMIT = 20_000
DEAD = sum(line.split(",")[3] == "" for line in rows()[:LIMIT])
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLIGHTS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("BYTEWAX_JETSTREAM_SERVERS", raising=False)
    return tmp_path / "run"


@pytest.mark.parametrize("workers", [1, 2])
def test_dataflow_runs_with_bytewax_run(
    run_dir: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLIGHTS_LIMIT", str(LIMIT))
    db = tmp_path / "db"
    db.mkdir()
    python("bytewax.recovery", str(db), "1")
    python("bytewax.run", "flows.flights:flow", f"-w{workers}", "-r", str(db), "-s", "1", "-b", "0")
    with NatsServer(store_dir=run_dir / "nats") as server, StreamReader(to(server)) as reader:
        counted = count_flights(reader, StreamNames("FLIGHTS", "FLIGHTS_DEAD"), rows()[:LIMIT])
    assert counted == Counted(LIMIT - DEAD, DEAD, duplicates=0, missing=0, order_violations=0)
    with closing(sqlite3.connect(run_dir / "results.sqlite")) as results:
        outcomes = results.execute("select outcome, count(*) from results group by 1").fetchall()
        assert outcomes == [("stored", LIMIT - DEAD)]
        assert len(results.execute("select distinct worker from results").fetchall()) == workers
        stored = results.execute("select sum(stored) from checkpoints").fetchone()
        assert stored == (LIMIT - DEAD,)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)])
def test_interrupted_run_resumes_when_started_again(
    run_dir: Path, how: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the source is never far ahead of the stream, and the first commit comes long before
    # the last row.
    monkeypatch.setenv("BYTEWAX_JETSTREAM_POOL_BUDGET_MESSAGES", "4000")
    command = [sys.executable, "-m", "flows.flights", "--limit", "300000"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as first:
        try:
            # The results of the second epoch are written when the first one is committed.
            until(lambda: epochs_in(run_dir) > 1 or first.poll() is not None)
            assert first.poll() is None, "it ended before it could be ended: raise the limit"
        finally:
            first.send_signal(how)
    assert first.returncode == code
    assert not (run_dir / "summary.json").exists()
    python("flows.flights", "--limit", "300000")
    summary = summary_of(run_dir)
    expected = {"missing": 0, "duplicates": 0, "order_violations": 0}
    assert {key: summary[key] for key in expected} == expected
    assert (
        summary["results"] == summary["published"] == summary["acknowledged"] == summary["stored"]
    )
    assert summary["stored"] + summary["dead_lettered"] == 300_000
    assert summary["resumed_from"]["stored"] > 0
    assert len(summary["resumed_from"]["rows"]) == 4


def test_a_completed_run_is_followed_by_a_fresh_one(run_dir: Path) -> None:
    for _ in range(2):
        python("flows.flights", "--limit", "3000", "--workers", "1")
        summary = summary_of(run_dir)
        assert summary["resumed_from"] is None
        assert summary["stored"] + summary["dead_lettered"] == 3_000
        assert summary["duplicates"] == 0


def test_a_configured_server_is_used_and_never_emptied(
    run_dir: Path, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYTEWAX_JETSTREAM_SERVERS", own_nats_server.url)
    python("flows.flights", "--limit", "3000")
    assert not (run_dir / "nats").exists()
    with StreamReader(to(own_nats_server)) as reader:
        assert reader.count("FLIGHTS") == summary_of(run_dir)["stored"]
    assert "delete streams FLIGHTS and FLIGHTS_DEAD" in python(
        "flows.flights", "--limit", "3000", code=1
    )


def test_run_directory_in_use_or_unwritable_is_one_clear_error(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RunDirectory(run_dir).claim()
    assert "another run is using" in python("flows.flights", code=1)
    lock.close()
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLIGHTS_RUN_DIR", str(tmp_path / "file" / "run"))
    assert "cannot be written" in python("flows.flights", code=1)


def test_run_with_another_number_of_partitions_is_not_resumed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python("flows.flights", "--limit", "3000")
    (run_dir / "summary.json").unlink()  # as if it had been killed at the very end
    monkeypatch.setenv("FLIGHTS_PARTITIONS", "2")
    assert "set FLIGHTS_PARTITIONS as it was" in python("flows.flights", "--limit", "3000", code=1)


@pytest.mark.parametrize(
    ("flights", "dead_letters", "counted"),
    [
        (
            [(0, "a"), (1, "b")],
            [(2, "c")],
            Counted(2, 1, duplicates=0, missing=0, order_violations=0),
        ),
        ([(0, "a"), (1, "b")], [], Counted(2, 0, duplicates=0, missing=1, order_violations=0)),
        (
            [(0, "a"), (1, "b"), (1, "d")],
            [(2, "c")],
            Counted(3, 1, duplicates=1, missing=0, order_violations=0),
        ),
        (
            [(0, "a"), (1, "b")],
            [(2, "a")],
            Counted(2, 1, duplicates=1, missing=0, order_violations=0),
        ),
        (
            [(2, "a"), (1, "b"), (0, "c")],
            [],
            Counted(3, 0, duplicates=0, missing=0, order_violations=1),
        ),
    ],
    ids=[
        "nothing",
        "a missing row",
        "a row stored twice",
        "an id stored twice",
        "an aircraft out of order",
    ],
)
def test_the_count_finds_what_is_wrong(
    nats_server: NatsServer,
    names: Callable[[], str],
    flights: list[tuple[int, str]],
    dead_letters: list[tuple[int, str]],
    counted: Counted,
) -> None:
    lines = ["t,c,1,A,o,d,,", "t,c,2,B,o,d,,", "t,c,3,A,o,d,,"]
    streams = StreamNames(names(), names())
    for stream, written in zip(streams, (flights, dead_letters), strict=True):
        make_stream(nats_server.url, stream, stream)
        write(nats_server.url, stream, written)
    with StreamReader(to(nats_server)) as reader:
        assert count_flights(reader, streams, lines) == counted


def test_count_refuses_a_message_that_is_no_row_of_the_input(
    nats_server: NatsServer, names: Callable[[], str]
) -> None:
    stream, dead = names(), names()
    make_stream(nats_server.url, stream, stream)
    make_stream(nats_server.url, dead, dead)
    write(nats_server.url, stream, [(3, "a")])
    with (
        StreamReader(to(nats_server)) as reader,
        pytest.raises(AuditError, match="not a row of the input"),
    ):
        count_flights(reader, StreamNames(stream, dead), ["t,c,1,A,o,d,,"])


def python(module: str, *arguments: str, code: int = 0) -> str:
    """Run a module to its end; returns what it printed."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def epochs_in(run_dir: Path) -> int:
    """How many epochs of an unfinished run have written results."""
    try:
        with closing(
            sqlite3.connect(f"file:{run_dir / 'results.sqlite'}?mode=ro", uri=True)
        ) as results:
            (number,) = results.execute("select count(distinct epoch) from results").fetchone()
            return int(number)
    except sqlite3.OperationalError:  # not there yet, or without its tables
        return 0


def summary_of(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def to(server: NatsServer) -> JetStreamSettings:
    return JetStreamSettings(servers=(server.url,))


def write(url: str, topic: str, messages: Iterable[tuple[int, str]]) -> None:
    """Publish rows with the ids given."""

    async def publish() -> None:
        client = await nats.connect(url)
        for row, key in messages:
            await client.jetstream().publish(
                topic, b'{"row":%d,"x":0}' % row, headers={"Nats-Msg-Id": key}
            )
        await client.close()

    asyncio.run(publish())
