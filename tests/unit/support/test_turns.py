"""Tests run side by side, except those that need the machine for themselves."""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.phases import PHASES, ROOT, files_of
from tests.support.turns import Turns
from tests.support.waiting import until


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[Turns, Turns, Turns]]:
    """Locks belong to open files, so that each of these is like one of another process."""
    with ExitStack() as stack:
        made = [Turns(tmp_path) for _ in range(3)]
        for turns in made:
            stack.callback(turns.close)
        yield made[0], made[1], made[2]


class Running(threading.Thread):
    """A test that runs until it is told to end."""

    def __init__(self, turns: Turns, *, alone: bool = False) -> None:
        super().__init__(daemon=True)
        self._turns, self._alone = turns, alone
        self.began, self.end = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self._turns.turn(alone=self._alone):
            self.began.set()
            self.end.wait(20)

    def finish(self) -> None:
        self.end.set()
        self.join(20)
        assert not self.is_alive()


def test_tests_run_side_by_side(processes: tuple[Turns, Turns, Turns]) -> None:
    both = [Running(turns) for turns in processes[:2]]

    assert all(test.began.wait(20) for test in both)
    for test in both:
        test.finish()


def test_a_test_alone_begins_when_the_others_have_ended(
    processes: tuple[Turns, Turns, Turns],
) -> None:
    first, second, third = processes
    others = [Running(turns) for turns in (first, second)]
    assert all(test.began.wait(20) for test in others)
    alone = Running(third, alone=True)

    others[0].finish()
    assert not alone.began.wait(0.1)
    others[1].finish()
    assert alone.began.wait(20)
    alone.finish()


def test_others_begin_after_the_test_alone_that_waits(
    processes: tuple[Turns, Turns, Turns],
) -> None:
    first, second, third = processes
    running = Running(first)
    assert running.began.wait(20)
    alone = Running(second, alone=True)
    until(lambda: _gate_is_shut(third))
    later = Running(third)

    running.finish()
    assert alone.began.wait(20)
    assert not later.began.wait(0.1)
    alone.finish()
    assert later.began.wait(20)
    later.finish()


def _gate_is_shut(turns: Turns) -> bool:
    try:
        fcntl.flock(turns._gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(turns._gate, fcntl.LOCK_UN)
    return False


def test_every_test_file_belongs_to_one_phase() -> None:
    claimed = [file for phase in PHASES for file in files_of(phase)]

    assert sorted(claimed) == sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")
    )
