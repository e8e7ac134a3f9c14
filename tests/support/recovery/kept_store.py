"""Writes the recovery stores that are kept in `tests/recovery/stores`, and has the dataflow that
resumes from them.

A kept store is what a SIGKILL left behind just after an epoch was committed, with nothing published
since: Bytewax's store, in which all of the last batch's results wait to be passed on, and the data
of the nats-server, for a source that reads by sequence and a durable one go on there. In a checkout
of the present code:

    .venv/bin/python -m tests.support.recovery.kept_store tests/recovery/stores/NAME

The code of another commit writes one from a checkout of that commit, with the present script:

    git worktree add ../then 2324a07 && here=$PWD && cd ../then
    PYTHONPATH=$here $here/.venv/bin/python -m tests.support.recovery.kept_store \\
        $here/tests/recovery/stores/unversioned

`unversioned` is from commit 2324a07, the last one whose state had no version; `version-1` is from
the first one whose state had.
"""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http import HTTPMethod
from pathlib import Path
from typing import Any, NamedTuple

import bytewax.operators as op
import nats
from bytewax.dataflow import Dataflow
from bytewax.inputs import StatefulSourcePartition
from bytewax.testing import TestingSink

import bytewax_jetstream
import bytewax_jetstream.operators as jop
from bytewax_jetstream import Envelope, JetStreamSettings, Lane, PublishOptions, PublishResult
from bytewax_jetstream.dataflow.publish_step import PublishLogic
from bytewax_jetstream.jetstream.source import JetStreamSource
from bytewax_jetstream.recovery_state import PublishState
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import Ledger, recovery_store, run
from tests.support.waiting import until

__all__ = ["COUNT", "RECOVERY", "SERVER", "Kept", "envelope_of", "is_good", "kept", "write"]

RECOVERY, SERVER = "recovery", "server"
"""Folders of a kept store."""
COUNT = 60
"""Messages in each of the two streams that are read; a third of QUEUE's is not asked for."""
BATCH = 10
LIMITS = {"READ": 30, "QUEUE/queue.work": 20}
"""How far each partition is read before the kill."""
EVERY_BATCH = timedelta(0)


class Kept(NamedTuple):
    """The dataflow, and what came out of it."""

    flow: Dataflow
    read: list[tuple[str, int]]
    """Stream and sequence of each message, in this run."""
    oks: list[PublishResult]
    errs: list[PublishResult]
    """In this run."""
    results: Ledger
    checkpoints: Ledger
    """In all runs, as far as they were committed."""


def kept(url: str) -> Kept:
    """Publish what two streams hold; no step's name may ever change, for stores know them."""
    settings = JetStreamSettings(servers=(url,))
    made = Kept(Dataflow("kept"), [], [], [], Ledger(), Ledger())
    read = jop.input("read", made.flow, settings, stream="READ", tail=False, batch_size=BATCH)
    queue = jop.input(
        "queue",
        made.flow,
        settings,
        stream="QUEUE",
        subjects="queue.work",
        durable="worker",
        tail=False,
        batch_size=BATCH,
    )

    def envelope(message: Any) -> Envelope:
        made.read.append((message.stream, message.sequence))
        return envelope_of(message.stream, message.sequence)

    envelopes = op.map("envelope", op.merge("both", read.oks, queue.oks), envelope)
    out = jop.publish("publish", envelopes, settings)
    op.output("oks", out.oks, TestingSink(made.oks))
    op.output("errs", out.errs, TestingSink(made.errs))
    counted = op.map(
        "count-result",
        op.merge("results", out.oks, out.errs),
        lambda result: ("all", f"{result.event_id} {result.outcome}"),
    )
    op.output("ledger", counted, made.results)
    checkpoints = op.map(
        "count-checkpoint",
        out.checkpoints,
        lambda one: ("all", f"{one.lane} {one.epoch} {one.stored} {one.rejected}"),
    )
    op.output("checkpoints", checkpoints, made.checkpoints)
    return made


def is_good(sequence: int) -> bool:
    """Whether the message makes an envelope that can be stored."""
    return sequence % 10 not in (3, 5, 7)


def envelope_of(stream: str, sequence: int) -> Envelope:
    """What is published for a message; some are refused by the server, some before that."""
    made = Envelope(
        "out.good",
        b"%d" % sequence,
        event_id=f"{stream}-{sequence}",
        aggregate_id=f"{stream}-{sequence % 5}",
        # A user's own str type, which a state has to keep too.
        event_type=HTTPMethod.POST if sequence % 10 in (3, 4) else "read",
        headers={"Origin": stream},
    )
    match sequence % 10:
        case 3:
            options = PublishOptions(expected_last_subject_sequence=1_000_000)
            return made._replace(topic="out.wrong", options=options)
        case 5:
            return made._replace(payload=bytearray(made.payload))  # type: ignore[arg-type]  # refused
        case 7:
            ttl = timedelta(seconds=90)
            return made._replace(topic="out.ttl", options=PublishOptions(ttl=ttl))
    return made


def write(target: Path) -> None:
    """Make a kept store with the code that is imported, replacing any that is there."""
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        store = recovery_store(Path(scratch, RECOVERY))
        with NatsServer(store_dir=target / SERVER) as server:
            asyncio.run(_fill(server.url))
            command = [sys.executable, "-m", "tests.support.recovery.kept_store", "--child"]
            child = subprocess.run([*command, server.url, str(server.pid), str(store)], check=False)
            assert child.returncode == -signal.SIGKILL, f"it ended by itself, {child.returncode}"
            server.terminate()
        (target / RECOVERY).mkdir()
        for path in store.glob("*.sqlite3"):
            with closing(sqlite3.connect(path, isolation_level=None)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                database.execute("VACUUM INTO ?", (str(target / RECOVERY / path.name),))


async def _fill(url: str) -> None:
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        await stream.add_stream(name="OUT", subjects=["out.>"])
        await stream.add_stream(name="READ", subjects=["read"])
        await stream.add_stream(name="QUEUE", subjects=["queue.>"], retention="workqueue")
        for number in range(1, COUNT + 1):
            await stream.publish("read", b"%d" % number)
            await stream.publish("queue.other" if number % 3 == 0 else "queue.work", b"")
    finally:
        await client.close()


class _Kill:
    """Kills this process when an epoch is committed with results that were not passed on, after
    every partition got to its limit.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self.read: Counter[str] = Counter()
        self._paused = False
        self.pending = False
        """Whether the last state of the publish step has results of stored envelopes."""

    @property
    def all_read(self) -> bool:
        return all(self.read[part] >= limit for part, limit in LIMITS.items())

    def install(self) -> None:
        build, wait = JetStreamSource.build_part, Lane.wait
        snapshot = PublishLogic.snapshot

        def watched_build(source: JetStreamSource, step: str, part: str, state: Any) -> Any:
            return _Watched(self, part, build(source, step, part, state))

        def watched_wait(lane: Lane, below: int, until: float) -> bool:
            self._let_the_server_go_on()
            return wait(lane, below, until)

        def watched_snapshot(logic: PublishLogic) -> PublishState:
            state = snapshot(logic)
            self.pending = bool(state[2])
            return state

        patch: Callable[[object, str, object], None] = setattr
        patch(PublishLogic, "snapshot", watched_snapshot)
        patch(JetStreamSource, "build_part", watched_build)
        patch(Lane, "wait", watched_wait)

    def stop_the_server(self) -> None:
        """So that no result comes before the epoch's end waits for it, too late to be passed on."""
        os.kill(self._server, signal.SIGSTOP)
        self._paused = True

    def _let_the_server_go_on(self) -> None:
        if self._paused:
            self._paused = False
            os.kill(self._server, signal.SIGCONT)


class _Watched(StatefulSourcePartition[Any, Any]):
    def __init__(self, kill: _Kill, name: str, part: StatefulSourcePartition[Any, Any]) -> None:
        self._kill, self._name, self._part = kill, name, part
        self._last_closed = False

    def next_batch(self) -> Iterable[Any]:
        if self._last_closed and self._kill.pending:
            # Asked again after a snapshot, so that is committed.
            os.kill(os.getpid(), signal.SIGKILL)
        if self._kill.read[self._name] >= LIMITS[self._name] and not self._last_closed:
            return []
        batch = self._whole_batch()
        self._kill.read[self._name] += len(batch)
        if self._kill.all_read:
            self._kill.stop_the_server()
        return batch

    def _whole_batch(self) -> list[Any]:
        """At least so many messages that some of them can be stored: on a busy machine they come
        one by one.
        """
        batch: list[Any] = []

        def is_whole() -> bool:
            batch.extend(self._part.next_batch())
            return len(batch) >= BATCH

        until(is_whole)
        return batch

    def next_awake(self) -> datetime | None:
        return self._part.next_awake() or datetime.now(UTC) + timedelta(milliseconds=2)

    def snapshot(self) -> Any:
        self._last_closed = self._kill.all_read
        return self._part.snapshot()

    def close(self) -> None:
        self._part.close()


def _child(url: str, server: int, store: Path) -> None:
    _Kill(server).install()
    run(kept(url).flow, store=store, epoch=EVERY_BATCH)


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        _child(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        sys.stdout.write(f"written by {Path(bytewax_jetstream.__file__).parent}\n")
        write(Path(sys.argv[1]).absolute())
