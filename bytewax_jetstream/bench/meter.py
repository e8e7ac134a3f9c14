"""What a round costs the publishing process: CPU, peak memory, socket bytes, latencies.

Nothing is read in between: the kernel itself keeps the peak of the memory and counts the bytes of
the sockets.
"""

import asyncio
import contextlib
import gc
import math
import os
import resource
import socket
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from .cases import Case
from .load import Load

__all__ = ["Meter", "Tally", "Trial", "latencies", "percentile"]

REAPED_WITHIN = 1.0
"""Seconds until the kernel no longer counts a thread that has ended."""


class Tally:
    """The outcome of a round, as the strategy saw it."""

    def __init__(self) -> None:
        self.acked = 0
        """Messages with a good answer, each counted once."""
        self.repeated = 0
        """Answers for a message that had one."""
        self.latencies = array("d")
        """Seconds until the ack, of every message; of evenly spread ones where timing every message
        would slow the strategy down. Our pool counts from the moment when it accepts a message.
        """
        self.collected = array("d")
        """Seconds from the hand-over of a message until the caller has its result, of evenly spread
        ones; empty where the ack is the result.
        """
        self._seen = bytearray()
        self.tasks = 0
        """asyncio tasks at once, where the strategy makes one per message."""
        self.writes: int | None = None
        """Writes to the socket while the clock ran, where they can be counted."""

    def answered(self, numbers: Iterable[int], messages: int) -> None:
        """Count answers by the number of their message (0.2 us each)."""
        seen = self._seen = self._seen or bytearray(messages)
        for number in numbers:
            if seen[number]:
                self.repeated += 1
            else:
                seen[number] = 1
                self.acked += 1


class Meter:
    """The clock of one round, and the process it runs in.

    :arg wait: Called before the clock starts and after it has stopped; returns when the parent has
        read the broker's figures and the round may continue.
    :arg port: The broker's port, by which its connections are found.
    """

    def __init__(self, wait: Callable[[str], None], port: int) -> None:
        self.stopped = False
        self._wait = wait
        self._port = port
        self._process = psutil.Process()
        gc.collect()
        self._initial = self._state()
        self._peak: dict[str, Any] = {}
        self._seconds = self._cpu = 0.0
        self._traffic = Traffic()

    def start(self) -> None:
        """Start the clock; the warm-up is settled."""
        gc.collect()
        self._before = self._state()
        self._wait("ready")
        self._traffic = traffic_with(self._port)
        reset_peak()
        self._cpu = time.process_time()
        self._seconds = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock; the last ack has arrived, and nothing is closed yet."""
        self._seconds = time.perf_counter() - self._seconds
        self._cpu = time.process_time() - self._cpu
        peak = peak_rss()
        after, traffic = self._state(), traffic_with(self._port)
        self._peak = {
            "rss_mb": peak,
            "threads": max(self._before["threads"], after["threads"]),
            "tasks": max(self._before["tasks"], after["tasks"]),
        }
        self._traffic = Traffic(
            *(new - old for new, old in zip(traffic, self._traffic, strict=True))
        )
        self.stopped = True
        self._wait("stopped")

    def figures(self, tally: Tally, messages: int) -> dict[str, Any]:
        """All figures of the round, once everything is closed."""
        gc.collect()
        final, until = self._state(), time.monotonic() + REAPED_WITHIN
        while final["threads"] > self._initial["threads"] and time.monotonic() < until:
            time.sleep(0.01)
            final = self._state()
        return {
            "msgs_per_s": round(messages / self._seconds, 1),
            "seconds": round(self._seconds, 6),
            "acked": tally.acked,
            "repeated": tally.repeated,
            **latencies(tally.latencies),
            **latencies(tally.collected or tally.latencies, "result"),
            "rss_initial_mb": self._initial["rss_mb"],
            "rss_peak_mb": self._peak["rss_mb"],
            "rss_final_mb": final["rss_mb"],
            "threads_initial": self._initial["threads"],
            "threads_peak": self._peak["threads"],
            "threads_final": final["threads"],
            "tasks_initial": self._initial["tasks"],
            "tasks_peak": max(self._peak["tasks"], tally.tasks),
            "tasks_final": final["tasks"],
            "client_cpu_us_per_msg": round(self._cpu / messages * 1e6, 3),
            "bytes_sent_per_msg": _each(self._traffic.sent, messages),
            "segments_sent_per_msg": _each(self._traffic.segments, messages),
            "bytes_received_per_msg": _each(self._traffic.received, messages),
            "socket_writes_per_msg": _each(tally.writes, messages),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "rss_mb": round(self._process.memory_info().rss / MB, 2),
            "threads": self._process.num_threads(),
            # Of all event loops, running or not: this finds forgotten tasks.
            "tasks": sum(
                isinstance(thing, asyncio.Task) and not thing.done() for thing in gc.get_objects()
            ),
        }


class Trial(NamedTuple):
    """One round, as a strategy gets it.

    It connects, publishes the warm-up, starts the clock, publishes, stops the clock and closes.
    """

    case: Case
    url: str
    load: Load
    meter: Meter

    def stop_when_complete(self, tally: Tally) -> bool:
        """Stop the clock if every message is acked; says whether it did."""
        complete = tally.acked == self.load.messages
        if complete:
            self.meter.stop()
        return complete


def _each(total: int | None, messages: int) -> float | None:
    return None if total is None else round(total / messages, 4)


def percentile(ordered: "array[float]", share: float) -> float:
    """The measured value that a `share` of the ordered values does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latencies(seconds: "array[float]", of: str = "ack") -> dict[str, float | None]:
    """Mean, median, 99th percentile and maximum, in milliseconds; None without acks."""
    names = tuple(f"{of}_ms_{name}" for name in ("mean", "p50", "p99", "max"))
    if not seconds:
        return dict.fromkeys(names)
    ordered = array("d", sorted(seconds))
    values = (
        sum(ordered) / len(ordered),
        percentile(ordered, 0.5),
        percentile(ordered, 0.99),
        ordered[-1],
    )
    return {name: round(value * 1000, 4) for name, value in zip(names, values, strict=True)}


MB = 1024 * 1024
# In struct tcp_info of <linux/tcp.h>.
BYTES_RECEIVED, DATA_SEGS_OUT, BYTES_SENT = 128, 156, 200


class Traffic(NamedTuple):
    """Bytes and TCP segments on this process's connections to the broker, by the kernel's count."""

    sent: int = 0
    segments: int = 0
    received: int = 0


def reset_peak() -> None:
    """Reset the kernel's peak of this process's memory, where it can be reset."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> float:
    """The peak of this process's memory in MB, since the last reset."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 2)
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / MB, 2)


def traffic_with(port: int) -> Traffic:
    """The sum over this process's connections to that port; zeros where the kernel has no count."""
    total = Traffic()
    if sys.platform != "linux":
        return total
    for entry in Path("/proc/self/fd").iterdir():
        if not entry.is_socket():
            continue
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(int(entry.name))) as connection,
        ):
            if (
                connection.family not in (socket.AF_INET, socket.AF_INET6)
                or connection.getpeername()[1] != port
            ):
                continue
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            if len(info) >= BYTES_SENT + 8:
                total = Traffic(
                    total.sent + struct.unpack_from("=Q", info, BYTES_SENT)[0],
                    total.segments + struct.unpack_from("=I", info, DATA_SEGS_OUT)[0],
                    total.received + struct.unpack_from("=Q", info, BYTES_RECEIVED)[0],
                )
    return total
