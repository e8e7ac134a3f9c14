"""What the kernel counts for this process: the peak of its memory, and the bytes of its sockets."""

import contextlib
import os
import resource
import socket
import struct
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["MB", "Traffic", "peak_rss", "reset_peak", "traffic_with"]

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
