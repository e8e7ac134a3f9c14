"""Recovery stores of former code, and of the present, resumed by the present: see
`tests/support/recovery/kept_store.py` for what is in them and how they were written.
"""

import pickle
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from bytewax_jetstream.recovery_state import (
    DurableState,
    SequenceState,
    read_publish_state,
    read_source_state,
)
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import run
from tests.support.reading import write as write_frames
from tests.support.recovery.kept_store import (
    COUNT,
    RECOVERY,
    SERVER,
    envelope_of,
    is_good,
    kept,
    write,
)
from tests.support.recovery.plain import plain
from tests.support.streams import api, stored

STORES = Path(__file__).parent / "stores"
ASKED = [("READ", number) for number in range(1, COUNT + 1)] + [
    ("QUEUE", number) for number in range(1, COUNT + 1) if number % 3
]
"""Every message that the dataflow reads."""
PUBLISH, READ, QUEUE = "kept.publish.settle", "kept.read.source", "kept.queue.source"


@pytest.fixture(params=["unversioned", "version-1", "of the present code"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A kept store to resume from."""
    target = tmp_path / "kept"
    if request.param == "of the present code":
        write(target)
    else:
        shutil.copytree(STORES / request.param, target)
    return target


def _pickles(folder: Path) -> dict[str, bytes]:
    """The committed state of each step that is this package's."""
    (path,) = (folder / RECOVERY).glob("*.sqlite3")
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT step_id, ser_change FROM snaps").fetchall()
    return {step: state for step, state in rows if step in (PUBLISH, READ, QUEUE)}


def _deliver_again(url: str) -> None:
    """Redeliver unacknowledged messages now; the server would wait for ack_wait."""
    last = api(url, "CONSUMER.INFO.QUEUE.worker")["delivered"]["consumer_seq"]
    write_frames(
        url,
        [
            b"PUB $JS.ACK.QUEUE.worker.1.%d.%d.0.0 4\r\n-NAK\r\n" % (sequence, last)
            for sequence in range(1, COUNT + 1)
        ],
    )


def _in_queue(url: str) -> set[int]:
    """Sequences of the work queue that are not acknowledged: no second consumer may read it."""
    state = api(url, "STREAM.INFO.QUEUE", {"deleted_details": True})["state"]
    return {*range(state["first_seq"], state["last_seq"] + 1)} - {*state.get("deleted", ())}


def test_kept_store_resumes_with_nothing_lost_and_nothing_repeated(folder: Path) -> None:
    states = {step: pickle.loads(state) for step, state in _pickles(folder).items()}
    pending = read_publish_state(states[PUBLISH], PUBLISH)
    read, queue = (read_source_state(states[step], step) for step in (READ, QUEUE))
    assert isinstance(read, SequenceState)
    assert isinstance(queue, DurableState)
    position, ranges = read.position, queue.ranges
    emitted = {number for first, last, _ in ranges for number in range(first, last + 1)}
    assert len(pending.oks) >= 3
    assert {result.topic for result in pending.errs} >= {"out.wrong", "out.ttl"}
    assert pending.checkpoints
    assert 1 < position < COUNT
    assert emitted

    with NatsServer(store_dir=folder / SERVER) as server:
        in_queue = _in_queue(server.url)
        assert emitted & in_queue, "the server has all acks, so that it needs no state"
        _deliver_again(server.url)
        made = kept(server.url)

        run(made.flow, store=folder / RECOVERY, epoch=timedelta(seconds=0.05))

        published = [message.headers["Nats-Msg-Id"] for message in stored(server.url, "OUT")]
        assert _in_queue(server.url) == {
            number for number in range(1, COUNT + 1) if number % 3 == 0
        }

    assert made.oks[: len(pending.oks)] == pending.oks
    assert made.errs[: len(pending.errs)] == pending.errs
    assert made.results.counts == {
        f"{stream}-{number} {'stored' if is_good(number) else 'rejected'}": 1
        for stream, number in ASKED
    }
    assert [result.envelope for result in made.errs] == [
        envelope_of(stream, int(number))
        for stream, _, number in (result.event_id.partition("-") for result in made.errs)
    ]
    good = [f"{stream}-{number}" for stream, number in ASKED if is_good(number)]
    assert sorted(published) == sorted(good)
    assert set(made.checkpoints.counts.values()) == {1}
    assert sum(int(one.split()[2]) for one in made.checkpoints.counts) == len(good)
    assert [number for stream, number in made.read if stream == "READ"] == [
        *range(position, COUNT + 1)
    ]
    assert sorted(number for stream, number in made.read if stream == "QUEUE") == [
        number for stream, number in ASKED if stream == "QUEUE" and number in in_queue - emitted
    ]


def test_kept_stores_have_the_form_that_their_name_says() -> None:
    unversioned, first = _pickles(STORES / "unversioned"), _pickles(STORES / "version-1")

    assert b"bytewax_jetstream.operators" in unversioned[PUBLISH]
    assert b"_Report" in unversioned[PUBLISH]
    assert type(pickle.loads(unversioned[READ])) is int
    assert all(type(one) is tuple for one in pickle.loads(unversioned[QUEUE]))
    assert {step: pickle.loads(state)[:2] for step, state in first.items()} == {
        PUBLISH: ("publish", 1),
        READ: ("sequence", 1),
        QUEUE: ("durable", 1),
    }


def test_present_state_names_no_class_of_this_package(tmp_path: Path) -> None:
    write(tmp_path / "kept")

    states = {step: plain(state) for step, state in _pickles(tmp_path / "kept").items()}

    _, _, oks, errs, checkpoints = states[PUBLISH]
    assert oks
    assert {row[14][0] for row in errs} == {"envelope"}
    assert checkpoints
    assert set(states) == {PUBLISH, READ, QUEUE}


def test_check_for_classes_fails_on_a_state_that_names_one() -> None:
    with pytest.raises(AssertionError, match=r"bytewax_jetstream\.operators\._Report is in"):
        plain(_pickles(STORES / "unversioned")[PUBLISH])
