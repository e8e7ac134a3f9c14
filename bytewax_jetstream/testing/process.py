"""Runs a server that is gone when its owner is gone, however that died."""

import contextlib
import os
import socket
import subprocess
import weakref
from multiprocessing.connection import wait as wait_readable
from pathlib import Path
from typing import IO, NamedTuple

__all__ = ["STOP_TIMEOUT", "Run", "dead", "free_ports", "log_tail", "spawn"]

STOP_TIMEOUT = 10.0  # seconds from SIGTERM to SIGKILL
LOG_TAIL = 8_192  # bytes

# The server's parent. It waits on a pipe, the lifeline, whose other end only the owner holds: a line says that the
# owner is done with this run, the end of file that the owner is dead, however it died. SIGKILL ends a paused server
# too. Nobody else reaps the server, so its pid names no other process while the owner may still signal it.
SUPERVISOR = """
"$@" 3>&1 >>"$0/log" 2>&1 </dev/null &
server=$!
trap '' PIPE   # if the owner has died meanwhile, this shell must live to end the server
echo $server
exec >&-       # the server alone holds this pipe now: its end of file is the server's death
read -r line && owner=alive || owner=dead
kill -9 $server
wait $server
[ $owner = alive ] || rm -rf "$0"
"""


class Run(NamedTuple):
    """A server that was started, and the pipes by which owner and server know of each other's death."""

    supervisor: subprocess.Popen[bytes]
    lifeline: IO[bytes]
    death: IO[bytes]
    pid: int


def spawn(command: list[str], scratch: Path) -> Run:
    """Start a server; it writes its log to `log` in that folder, which is removed if the owner dies."""
    # In a session of its own: neither Ctrl-C nor a signal to the owner's process group ends the server.
    supervisor = subprocess.Popen(
        ["/bin/sh", "-c", SUPERVISOR, str(scratch), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    _lifelines.add(supervisor.stdin)
    return Run(supervisor, supervisor.stdin, supervisor.stdout, pid=int(supervisor.stdout.readline()))


def dead(run: Run, within: float = 0) -> bool:
    """Whether the server has ended, or ends within so many seconds."""
    return bool(wait_readable([run.death.fileno()], within))


# A lifeline is close-on-exec, so no program that the owner starts holds it; a fork without exec has to let go of it.
_lifelines: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def _close_lifelines() -> None:
    for lifeline in _lifelines:
        lifeline.close()


os.register_at_fork(after_in_child=_close_lifelines)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on, each another."""
    with contextlib.ExitStack() as sockets:
        # All bound before any is closed, so that none comes twice.
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in bound]


def log_tail(scratch: Path) -> str | None:
    """The end of a server's log; None when it has none yet."""
    path = scratch / "log"
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL))
        return file.read().decode(errors="replace")
