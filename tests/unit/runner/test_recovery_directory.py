"""A recovery directory is made, checked and locked before a run."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from bytewax.recovery import init_db_dir

from bytewax_jetstream.errors import RunError
from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.runner.cluster import Cluster
from bytewax_jetstream.runner.recovery_directory import Recovery, RecoveryDirectory, Store

HOLD = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
print(flush=True)
time.sleep(60)
"""


def _directory(
    path: Path, *, parts: int | None = None, process: int = 0, of: int = 1
) -> RecoveryDirectory:
    cluster = Cluster(process, tuple(f"p{i}:1" for i in range(of)) if of > 1 else ())
    return RecoveryDirectory(Recovery(path, parts, timedelta(0)), cluster)


def _make(path: Path, *, parts: int | None = None, process: int = 0, of: int = 1) -> None:
    directory = _directory(path, parts=parts, process=process, of=of)
    directory.claim()
    directory.make()
    directory.release()


def _use(part: Path) -> None:
    with closing(sqlite3.connect(part)) as store, store:
        store.execute("INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (1, 1, 1)")


def _names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir() if each.name.endswith(".sqlite3"))


def test_a_directory_that_is_not_there_is_made(tmp_path: Path) -> None:
    directory = _directory(tmp_path / "a" / "b", parts=2)

    assert directory.claim() is Store.EMPTY
    directory.make()
    directory.release()

    assert _names(tmp_path / "a" / "b") == ["part-0.sqlite3", "part-1.sqlite3"]
    assert _directory(tmp_path / "a" / "b").claim() is Store.MADE


@pytest.mark.parametrize("size", [2, 3, 5])
def test_each_process_makes_its_share_and_together_they_make_all(tmp_path: Path, size: int) -> None:
    made = []
    for process in range(size):
        folder = tmp_path / str(process)
        _make(folder, parts=7, process=process, of=size)
        made += _names(folder)
        assert _names(folder) == sorted(f"part-{i}.sqlite3" for i in range(process, 7, size))
    assert sorted(made) == sorted(f"part-{i}.sqlite3" for i in range(7))


def test_a_store_is_used_when_a_run_has_written_to_it(tmp_path: Path) -> None:
    _make(tmp_path, parts=2)
    _use(tmp_path / "part-1.sqlite3")

    assert _directory(tmp_path).claim() is Store.USED


def test_the_number_of_parts_is_that_of_the_store(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 3)
    directory = _directory(tmp_path)

    assert directory.claim() is Store.MADE
    assert directory.parts == 3


def test_another_number_of_parts_is_refused(tmp_path: Path) -> None:
    _make(tmp_path, parts=3)

    with pytest.raises(RunError, match="run with --parts 3"):
        _directory(tmp_path, parts=4).claim()


def test_parts_of_another_process_are_refused_and_nothing_is_made(tmp_path: Path) -> None:
    _make(tmp_path, parts=6, process=0, of=3)
    before = _names(tmp_path)

    with pytest.raises(RunError, match="holds part 3, which belongs to process 1 of 2"):
        _directory(tmp_path, process=0, of=2).claim()
    assert _names(tmp_path) == before


def test_a_full_set_is_refused_by_one_of_several_processes(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 3)

    with pytest.raises(RunError, match="belongs to process 1 of 3, not to process 0"):
        _directory(tmp_path, process=0, of=3).claim()


def test_a_lost_part_of_a_used_store_is_not_made_again(tmp_path: Path) -> None:
    _make(tmp_path, parts=3)
    _use(tmp_path / "part-0.sqlite3")
    (tmp_path / "part-1.sqlite3").unlink()

    with pytest.raises(RunError, match="lacks part 1 of the recovery store"):
        _directory(tmp_path).claim()


def test_what_a_killed_run_had_begun_to_make_is_made_again(tmp_path: Path) -> None:
    _make(tmp_path, parts=3)
    (tmp_path / "part-2.sqlite3").unlink()
    (tmp_path / ".making-x").mkdir()
    directory = _directory(tmp_path)

    assert directory.claim() is Store.EMPTY
    directory.make()

    assert len(_names(tmp_path)) == 3
    assert not list(tmp_path.glob(".making*"))


def test_more_processes_than_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="2 parts, and the dataflow 3 processes"):
        _directory(tmp_path, parts=2, process=0, of=3).claim()


def test_a_renamed_part_is_refused(tmp_path: Path) -> None:
    _make(tmp_path, parts=2)
    (tmp_path / "part-1.sqlite3").rename(tmp_path / "part-5.sqlite3")

    with pytest.raises(RunError, match=r"part-5\.sqlite3 is part 1"):
        _directory(tmp_path).claim()


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_part_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "part-0.sqlite3").write_bytes(content)

    with pytest.raises(RunError, match="is not a part of a recovery store"):
        _directory(tmp_path).claim()


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(RunError, match="cannot be written"):
        _directory(tmp_path / "file" / "store").claim()


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first = _directory(tmp_path)
    first.claim()

    with pytest.raises(RunError, match="another process uses") as raised:
        _directory(tmp_path).claim()
    assert raised.value.exit_code is ExitCode.LOCKED
    first.release()
    _directory(tmp_path).claim()


def test_kill_9_frees_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLD,
            str(tmp_path / ".lock"),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        with pytest.raises(RunError, match="another process uses"):
            _directory(tmp_path).claim()
    finally:
        holder.kill()
        holder.communicate()
    _directory(tmp_path).claim()


FORK = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
from bytewax_jetstream.runner.cluster import Cluster
from bytewax_jetstream.runner.recovery_directory import Recovery, RecoveryDirectory
RecoveryDirectory(Recovery(Path(sys.argv[1]), 1, timedelta(0)), Cluster()).claim()
child = os.fork()
if not child:
    os.closerange(1, 3)
    time.sleep(60)
print(child, flush=True)
os._exit(0)
"""


def test_a_forked_child_that_lives_on_does_not_keep_the_lock(tmp_path: Path) -> None:
    forked = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    try:
        assert _directory(tmp_path).claim() is Store.EMPTY
    finally:
        os.kill(int(forked.stdout), signal.SIGKILL)


def test_a_path_may_have_characters_that_addresses_may_not(tmp_path: Path) -> None:
    path = tmp_path / "a#b?c%20d"
    _make(path, parts=1)
    _use(path / "part-0.sqlite3")

    assert _directory(path).claim() is Store.USED
