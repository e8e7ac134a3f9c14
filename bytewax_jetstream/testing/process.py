"""`OwnedServer`: starts, pauses, kills a server process that always ends with its owner."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from multiprocessing.connection import wait as wait_readable
from pathlib import Path
from typing import IO, ClassVar, NamedTuple, Self

__all__ = ["OwnedServer", "Run", "dead", "free_ports", "log_tail", "spawn"]

STOP_TIMEOUT = 10.0  # seconds from SIGTERM to SIGKILL
LOG_TAIL = 8_192  # bytes

# The server's parent. It reads from a pipe, the lifeline, whose other end only the owner holds. A
# line means that the owner is done with this run; the end of file means that the owner has died,
# however it died. SIGKILL also ends a paused server. Only this shell reaps the server, so the pid
# belongs to no other process while the owner may still signal it.
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
    """A started server, and the pipes that tell owner and server of each other's death."""

    supervisor: subprocess.Popen[bytes]
    lifeline: IO[bytes]
    death: IO[bytes]
    pid: int


class OwnedServer:
    """A server that can be killed, paused and started again, and that ends with its owner.

    A subclass starts it in `_launch`, which sets `_run` and returns when the server takes clients.
    """

    error: ClassVar[type[Exception]] = RuntimeError
    """What is raised when the server has to run and does not."""
    title: ClassVar[str] = "server"

    def __init__(self, *, keeps_data: bool) -> None:
        self._keeps_data = keeps_data
        self._scratch: Path | None = None  # configuration, log, temporary data
        self._owner = 0
        self._run: Run | None = None
        self._paused = False
        self._last_log = ""

    def start(self) -> Self:
        """Start the server, or start it again on its ports and data; returns when it takes clients.

        Raises the class's `error` if the server is not installed, or was not ready in time; the
        message has the reason that the server logged.
        """
        if self.alive:
            return self
        self.kill()  # reaps a server that ended by itself
        first = self._scratch is None
        self._owner = os.getpid()
        self._scratch = self._scratch or Path(
            tempfile.mkdtemp(prefix=f"{self.title.replace(' ', '-').lower()}-")
        )
        try:
            self._launch(self._scratch)
        except BaseException:
            self.kill()
            if first:  # no `with` block has begun that would close it
                self.close()
            raise
        return self

    def kill(self) -> None:
        """End the server with SIGKILL; its data is kept for the next `start()`."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """End the server with SIGTERM, after 10 s with SIGKILL; its data is kept for the next
        `start()`.
        """
        if self._paused:
            self.resume()  # a paused process does not act on SIGTERM
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """End the server with SIGTERM if it runs, and start it on the same ports and data."""
        self.terminate()
        self.start()

    def close(self) -> None:
        """End the server; temporary data is removed, data in a given place is flushed and kept."""
        # In a forked child the server is the parent's.
        if self._scratch is None or self._owner != os.getpid():
            return
        self._end(signal.SIGTERM if self._keeps_data and not self._paused else signal.SIGKILL)
        self._last_log = self.log
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch = None

    def pause(self) -> None:
        """Stop the server with SIGSTOP: connections stay open, and nobody answers.

        Returns when all of its threads have stopped, where the system tells (Linux).
        """
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True
        deadline = time.monotonic() + STOP_TIMEOUT
        while _runs(self.pid) and time.monotonic() < deadline:
            time.sleep(0.001)

    def resume(self) -> None:
        """Continue a paused server with SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    @property
    def alive(self) -> bool:
        """Whether the server's process is alive; a paused one is."""
        return self._run is not None and not dead(self._run)

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._run is None:
            raise self.error(f"the {self.title} is not running: call start() first")
        return self._run.pid

    @property
    def log(self) -> str:
        """The end of the server's log, which goes on over restarts; kept after `close()`."""
        return (self._scratch and log_tail(self._scratch)) or self._last_log

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _state(self) -> str:
        return (
            f"{'paused' if self._paused else 'running'}, pid {self.pid}"
            if self.alive
            else "not running"
        )

    def _launch(self, scratch: Path) -> None:
        raise NotImplementedError

    def _end(self, how: signal.Signals) -> None:
        if self._run is None:
            return
        if not dead(self._run):
            os.kill(self._run.pid, how)
            if not dead(self._run, within=STOP_TIMEOUT):
                os.kill(self._run.pid, signal.SIGKILL)
        # The line tells the supervisor that the owner is alive. Leaving the block closes the pipes,
        # and waits for the supervisor.
        with self._run.supervisor, contextlib.suppress(BrokenPipeError):
            self._run.lifeline.write(b"\n")
        self._run = None
        self._paused = False


def spawn(command: list[str], scratch: Path) -> Run:
    """Start a server that logs to `log` in this folder, which is removed if the owner dies."""
    # In a session of its own, so that neither Ctrl-C nor a signal to the owner's process group ends
    # the server.
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
    return Run(
        supervisor, supervisor.stdin, supervisor.stdout, pid=int(supervisor.stdout.readline())
    )


def dead(run: Run, within: float = 0) -> bool:
    """Whether the server has ended, or ends within this many seconds."""
    return bool(wait_readable([run.death.fileno()], within))


# A lifeline is close-on-exec, so no program that the owner starts holds it. A fork without exec
# must close it.
_lifelines: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def _close_lifelines() -> None:
    for lifeline in _lifelines:
        lifeline.close()


os.register_at_fork(after_in_child=_close_lifelines)


def free_ports(count: int) -> list[int]:
    """Different ports on loopback that nobody listens on."""
    with contextlib.ExitStack() as sockets:
        # All are bound before any is closed, so that no port comes twice.
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in bound]


def _runs(pid: int) -> bool:
    """Whether a thread of a process has not stopped; False where the system does not tell."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended
            if stat.read_text().rpartition(")")[2].split()[0] != "T":
                return True
    return False


def log_tail(scratch: Path) -> str | None:
    """The end of a server's log; None if there is no log yet."""
    path = scratch / "log"
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL))
        return file.read().decode(errors="replace")
