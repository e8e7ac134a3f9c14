"""Moves the parts of a recovery store to the processes that are going to keep them.

    python move_parts.py PROCESSES DIRECTORY...

The directories are those of process 0, 1, 2 and so on: of all that there were, and of all that
there are going to be. Nothing is moved unless the store is complete and no process uses it. A part
is deleted in its old place only when it is in its new one, on the disk, so that this can be killed
and run again. The runbook is in k8s/README.md.
"""

import fcntl
import filecmp
import os
import shutil
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

__all__ = ["RefusedError", "move"]

COPYING = ".moving"
"""The end of the name of a part whose copy is not complete."""


class RefusedError(Exception):
    """Nothing was moved; the message says why, and what to do."""


def move(processes: int, directories: Sequence[Path]) -> list[str]:
    """Every part comes to the directory of the process that keeps it; returns what was moved.

    :arg processes: How many there are going to be.
    :raises RefusedError: when the store is in use, not complete, or has fewer parts than processes.
    """
    if not 0 < processes <= len(directories):
        raise RefusedError(
            f"{processes} processes need as many directories, and {len(directories)} are given"
        )
    locks = [_locked(directory) for directory in directories]
    try:
        places = _places(directories)
        count = _checked(places, processes, directories)
        moved = []
        for index in range(count):
            target = directories[index % processes] / _name(index)
            for source in places[index]:
                if source != target:
                    _move(source, target)
                    moved.append(f"part {index}: {source} -> {target}")
        return moved
    finally:
        for lock in locks:
            os.close(lock)


def _places(directories: Sequence[Path]) -> dict[int, list[Path]]:
    """Where each part is; twice, if it was being moved when this was killed."""
    places: dict[int, list[Path]] = {}
    for directory in directories:
        for unfinished in directory.glob(f"*{COPYING}"):
            unfinished.unlink()
        for path in directory.glob("part-*.sqlite3"):
            places.setdefault(int(path.name.split("-")[1].split(".")[0]), []).append(path)
    return places


def _checked(places: dict[int, list[Path]], processes: int, directories: Sequence[Path]) -> int:
    """How many parts the store has; each is there, and its log is part of its file."""
    where = ", ".join(map(str, directories))
    counts = {_count(path, index) for index, paths in places.items() for path in paths}
    if not counts:
        raise RefusedError(f"there is no part of a recovery store in {where}: mount its volumes")
    if len(counts) > 1:
        raise RefusedError(
            f"the parts are of stores with {', '.join(map(str, sorted(counts)))} parts: take the "
            "parts of the other store away"
        )
    (count,) = counts
    missing = sorted(set(range(count)) - places.keys())
    if missing:
        raise RefusedError(
            f"part {', '.join(map(str, missing))} of {count} is in none of {where}: mount the "
            "volumes of all processes that there were"
        )
    if count < processes:
        raise RefusedError(
            f"the recovery store has {count} parts, and each of {processes} processes needs one: "
            f"run at most {count}"
        )
    for index, paths in places.items():
        first, *others = paths
        if not all(filecmp.cmp(first, other, shallow=False) for other in others):
            raise RefusedError(
                f"part {index} is in {' and in '.join(map(str, paths))}, and they differ: take the "
                "one away that is older"
            )
    return count


def _count(path: Path, index: int) -> int:
    """How many parts the store has, as this part says. What is in its -wal file is written into the
    part itself.
    """
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=5)
        ) as part:
            found, count = part.execute("SELECT part_index, part_count FROM parts").fetchone()
            (busy, *_) = part.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except (sqlite3.Error, TypeError) as error:
        raise RefusedError(f"{path} is not a part of a recovery store ({error})") from None
    if found != index:
        raise RefusedError(f"{path} is part {found} under another name: rename it")
    if busy:
        raise RefusedError(f"{path} is in use: stop all processes of the dataflow first")
    return int(count)


def _move(source: Path, target: Path) -> None:
    """Between two volumes, where a file cannot be renamed."""
    if not target.exists():
        copy = target.with_name(target.name + COPYING)
        shutil.copyfile(source, copy)
        _flush(copy)
        copy.rename(target)
        _flush(target.parent)
    for end in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            source.with_name(source.name + end).unlink()
    _flush(source.parent)


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _locked(directory: Path) -> int:
    """The lock that a process holds while it runs."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RefusedError(f"{directory} cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RefusedError(
            f"a process uses {directory}: stop all processes of the dataflow first"
        ) from None
    return lock


def _name(index: int) -> str:
    return f"part-{index}.sqlite3"


def main() -> int:
    """Move, say what was moved; returns the exit code."""
    try:
        processes, directories = int(sys.argv[1]), [Path(each) for each in sys.argv[2:]]
    except (IndexError, ValueError):
        print("usage: move_parts.py PROCESSES DIRECTORY...", file=sys.stderr)
        return 2
    try:
        moved = move(processes, directories)
    except RefusedError as refused:
        print(f"nothing was moved: {refused}", file=sys.stderr)
        return 2
    print("\n".join(moved) or "every part is in its place")
    return 0


if __name__ == "__main__":
    sys.exit(main())
