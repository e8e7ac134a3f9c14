"""`Broker`: what the runner needs of any broker; ids counted once and twice; the server's CPU."""

import contextlib
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from .cases import Case
from .load import is_warm_up

__all__ = ["Broker", "Figures", "Stored", "process_cpu", "tally_ids"]


class Figures(NamedTuple):
    """Counters of a broker at one moment; None where it has no such counter."""

    cpu: float | None = None
    management: int | None = None
    frames: int | None = None

    def since(self, before: "Figures", messages: int) -> dict[str, float | None]:
        """What a message cost between two moments."""
        cpu, management, frames = (
            None if new is None or old is None else (new - old) / messages
            for new, old in zip(self, before, strict=True)
        )
        return {
            "server_cpu_us_per_msg": None if cpu is None else round(cpu * 1e6, 3),
            "mgmt_requests_per_msg": None if management is None else round(management, 4),
            "ack_frames_per_msg": None if frames is None else round(frames, 4),
        }


class Stored(NamedTuple):
    """What a second connection found of a round."""

    found: int
    """Event ids, each counted once."""
    duplicates: int
    """Messages whose event id came before."""


class Broker(Protocol):
    """A broker that was started for the run, or one that is there already."""

    url: str
    place: str
    """The stream, and the beginning of the topics, of this run alone."""

    def prepare(self, case: Case, run: str) -> None:
        """Make what a round is stored in or reads from."""

    def figures(self, *, first: bool) -> Figures:
        """The broker's counters: the `first` before the clock starts, then after it has stopped."""

    def count(self, case: Case, run: str) -> Stored:
        """How much of a round is stored, read back over a connection of its own."""

    def clear(self) -> None:
        """Delete the messages of the round."""

    def versions(self) -> dict[str, str]:
        """The versions of the software that is measured."""


def tally_ids(event_ids: list[str], run: str) -> Stored:
    """Count the messages of a round, without its warm-up, and the duplicates among all messages."""
    own = {
        event_id
        for event_id in event_ids
        if not is_warm_up(event_id) and event_id.startswith(f"{run}-")
    }
    return Stored(len(own), len(event_ids) - len(set(event_ids)))


def process_cpu(pid: int) -> float:
    """CPU seconds of a process: in nanoseconds if the kernel's scheduler says so, else in ticks."""
    with contextlib.suppress(OSError, ValueError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
