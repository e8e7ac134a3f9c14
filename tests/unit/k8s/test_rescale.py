"""Parts of a recovery store come to the processes that keep them, and none is lost."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from bytewax_jetstream.runner.cluster import Cluster
from bytewax_jetstream.runner.recovery_directory import Recovery, RecoveryDirectory, Store
from k8s.rescale import move_parts
from k8s.rescale.__main__ import manifest
from k8s.rescale.move_parts import RefusedError, move
from tests.support.k8s.manifests import K8S, by_name, of_kind, rendered

PARTS = 7
ROW = "INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (0, 1, ?)"


def _directory(path: Path, process: int, of: int) -> RecoveryDirectory:
    addresses = tuple(f"p{i}:1" for i in range(of)) if of > 1 else ()
    return RecoveryDirectory(Recovery(path, PARTS, timedelta(0)), Cluster(process, addresses))


def _epochs(directories: list[Path]) -> dict[int, int]:
    """What each part holds."""
    found = {}
    for directory in directories:
        for path in directory.glob("part-*.sqlite3"):
            with closing(sqlite3.connect(path)) as part:
                (index, _) = part.execute("SELECT part_index, part_count FROM parts").fetchone()
                (found[index],) = part.execute("SELECT resume_epoch FROM exs").fetchone()
    return found


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    """Those of three processes, which have run: part i is at epoch 10 + i."""
    paths = [tmp_path / str(process) for process in range(3)]
    for process, path in enumerate(paths):
        directory = _directory(path, process, 3)
        directory.claim()
        directory.make()
        directory.release()
        for index in range(process, PARTS, 3):
            with closing(sqlite3.connect(path / f"part-{index}.sqlite3")) as part, part:
                part.execute("PRAGMA journal_mode = WAL")
                part.execute(ROW, (10 + index,))
    return paths


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_every_process_finds_its_own_parts(directories: list[Path], after: int) -> None:
    while len(directories) < after:
        directories.append(directories[0].with_name(str(len(directories))))

    move(after, directories)

    for process in range(after):
        directory = _directory(directories[process], process, after)
        assert directory.claim() is Store.USED
        directory.release()
    assert _epochs(directories) == {index: 10 + index for index in range(PARTS)}
    assert not [file for path in directories[after:] for file in path.glob("part-*")]


def test_what_is_only_in_the_log_of_a_part_is_moved(directories: list[Path]) -> None:
    writer = (
        "import os, sqlite3, sys; part = sqlite3.connect(sys.argv[1]); "
        "part.execute('UPDATE exs SET resume_epoch = 99'); part.commit(); os._exit(0)"
    )
    part = directories[2] / "part-2.sqlite3"
    subprocess.run([sys.executable, "-c", writer, str(part)], check=True)
    assert (directories[2] / "part-2.sqlite3-wal").stat().st_size

    move(2, directories)

    assert _epochs(directories)[2] == 99
    assert not list(directories[2].glob("part-*"))


@pytest.mark.parametrize("step", range(12))
def test_a_move_that_was_killed_is_finished_by_the_next(
    directories: list[Path], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Four parts move, each with three flushes to the disk, and each of these may be the last."""

    class KilledError(Exception):
        pass

    flush, left = move_parts._flush, iter(range(step))

    def flush_or_die(path: Path) -> None:
        if next(left, None) is None:
            raise KilledError
        flush(path)

    monkeypatch.setattr(move_parts, "_flush", flush_or_die)
    with pytest.raises(KilledError):
        move(2, directories)
    monkeypatch.undo()

    move(2, directories)

    assert _epochs(directories) == {index: 10 + index for index in range(PARTS)}
    places = {file.name: file.parent.name for each in directories for file in each.glob("part-*")}
    assert places == {f"part-{index}.sqlite3": str(index % 2) for index in range(PARTS)}


def test_nothing_is_moved_while_a_process_runs(directories: list[Path]) -> None:
    running = _directory(directories[1], 1, 3)
    running.claim()
    try:
        with pytest.raises(RefusedError, match=r"a process uses .*stop all processes"):
            move(2, directories)
    finally:
        running.release()
    assert len(list(directories[2].glob("part-*"))) == 2


def test_nothing_is_moved_when_a_volume_is_missing(directories: list[Path]) -> None:
    with pytest.raises(RefusedError, match="part 2, 5 of 7 is in none of"):
        move(2, directories[:2])


@pytest.mark.parametrize(
    ("after", "says"),
    [(4, "4 processes need as many directories"), (8, "8 processes need as many directories")],
)
def test_a_process_without_a_volume_is_refused(
    directories: list[Path], after: int, says: str
) -> None:
    with pytest.raises(RefusedError, match=says):
        move(after, directories)


def test_more_processes_than_parts_are_refused(directories: list[Path]) -> None:
    more = [directories[0].with_name(str(number)) for number in range(8)]
    with pytest.raises(RefusedError, match="7 parts, and each of 8 processes needs one"):
        move(8, more)


def test_two_different_copies_of_a_part_are_refused(directories: list[Path]) -> None:
    copy = directories[1] / "part-0.sqlite3"
    copy.write_bytes((directories[0] / "part-0.sqlite3").read_bytes())
    with closing(sqlite3.connect(copy)) as part, part:
        part.execute("UPDATE exs SET resume_epoch = 5")

    with pytest.raises(RefusedError, match=r"part 0 is in .* and they differ"):
        move(2, directories)


def test_a_file_that_is_not_a_part_is_refused(directories: list[Path]) -> None:
    (directories[0] / "part-0.sqlite3").write_text("something else")

    with pytest.raises(RefusedError, match=r"part-0.sqlite3 is not a part"):
        move(2, directories)


@pytest.mark.parametrize(("after", "volumes"), [(2, 3), (5, 5)])
def test_manifest_mounts_the_volumes_of_all_processes(after: int, volumes: int) -> None:
    stateful_set = by_name(rendered("overlays/prod"), "StatefulSet", "kafka-to-jetstream")

    items = manifest(stateful_set, after)["items"]

    (job,) = of_kind(items, "Job")
    assert job["metadata"]["name"] == f"kafka-to-jetstream-3-to-{after}"
    assert job["metadata"]["namespace"] == stateful_set["metadata"]["namespace"]
    pod = job["spec"]["template"]["spec"]
    claims = [each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"][:-1]]
    assert claims == [f"data-kafka-to-jetstream-{number}" for number in range(volumes)]
    made = [each["metadata"]["name"] for each in of_kind(items, "PersistentVolumeClaim")]
    assert made == claims[3:]
    own = stateful_set["spec"]["template"]["spec"]
    assert pod["securityContext"] == own["securityContext"]
    (mover,) = pod["containers"]
    assert mover["image"] == own["containers"][0]["image"]
    assert mover["securityContext"] == own["containers"][0]["securityContext"]
    assert mover["command"][2:] == [
        str(after),
        *(f"/volumes/{number}/recovery" for number in range(volumes)),
    ]


def test_generator_reads_what_kubectl_prints() -> None:
    stateful_set = by_name(rendered("overlays/dev"), "StatefulSet", "kafka-to-jetstream")
    command = [sys.executable, str(K8S / "rescale"), "2"]

    done = subprocess.run(
        command, input=json.dumps(stateful_set), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "List"
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pipe in kubectl get" in done.stderr
