"""`Peers`: the other processes of the dataflow, asked over their health ports.

Bytewax's cluster needs every process all the time, but says nothing about them. A process that
lost another waits for it forever, and so does one that drains alone. So each asks the others every
second: one that drains makes all drain; one that is gone or was restarted ends this one too, and
all start again from the last epoch.
"""

import http.client
import json
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from enum import Enum, auto
from functools import partial
from typing import Any

from .. import drain
from ..errors import RunError
from ..exit_codes import ExitCode, exit_now
from .cluster import Cluster
from .life import Life
from .recovery_directory import Store

__all__ = ["Peers"]

log = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds between two questions to a process."""
ANSWER_SECONDS = 3.0
"""For one answer."""
TELL_SECONDS = 3 * PAUSE
"""For how long a process that refuses to run says so."""
GONE_SECONDS = 10.0
"""For how long nobody may be there where a process has answered."""


KEYS = frozenset(
    {"process", "instance", "state", "ready_to_run", "store", "parts", "peers", "refusal"}
)


class Silent(Enum):
    """What a process is that does not answer."""

    BUSY = auto()
    """The system takes connections for it, but its Python code does not run: a step of it may do
    something in one go, or its container gets no time. Its own liveness tells how long it may.
    """
    AWAY = auto()
    """Nobody is there, or nobody that belongs to this dataflow."""


class Peers:
    """Asks the other processes of the dataflow how they are.

    :arg port: The health port of all of them.
    """

    def __init__(self, cluster: Cluster, port: int, life: Life) -> None:
        self._hosts = dict(enumerate(cluster.hosts))
        self._hosts.pop(cluster.process, None)
        self._port = port
        self._life = life
        self._instances: dict[int, str] = {}
        self._at: dict[int, str] = {}
        """Where each has answered: then its name need not be resolved, which may fail for a while.
        """
        self._over = threading.Event()

    def wait(self, seconds: float) -> None:
        """Wait until every other process is ready to run, and check that their stores fit ours.

        :raises RunError: when one is not there in time, or has another store.
        """
        with ThreadPoolExecutor(max(1, len(self._hosts))) as at_once:
            self._wait(at_once, time.monotonic() + seconds, seconds)

    def _wait(self, at_once: ThreadPoolExecutor, until: float, seconds: float) -> None:
        told: Sequence[int] = ()
        while True:
            answers = at_once.map(self._ask, self._hosts)
            found = dict(zip(self._hosts, answers, strict=True))
            for process in [p for p, said in found.items() if not isinstance(said, dict)]:
                self._at.pop(process, None)
            there = {
                p: said
                for p, said in found.items()
                if isinstance(said, dict) and self._is_of_this_run(said)
            }
            missing = [p for p in found if p not in there or not there[p]["ready_to_run"]]
            for process, said in there.items():
                if said["refusal"]:
                    # Not said again by this one: it could come back to that process when it is
                    # started again, and its reason gone.
                    raise RunError(
                        f"{self._name(process)} says: {said['refusal']}", process=process
                    )
            try:
                self._check(there)
            except RunError as error:
                self._life.refusal = error.message
                time.sleep(TELL_SECONDS)  # so that the others find it, too, instead of waiting
                raise
            if not missing:
                break
            names = ", ".join(self._name(process) for process in missing)
            self._life.step = f"waiting for {names}"
            if missing != told:
                told = missing
                log.info("waiting for %s", names)
            if time.monotonic() > until:
                raise RunError(
                    f"{names} of the dataflow cannot be reached on health port {self._port}, or "
                    f"did not start within {seconds:g} s: check that all processes run, with the "
                    "same addresses and health port",
                    exit_code=ExitCode.UNKNOWN,
                    process=missing[0],
                )
            time.sleep(PAUSE)
        self._instances = {process: said["instance"] for process, said in there.items()}
        self._life.peers = {str(process): name for process, name in self._instances.items()}

    def _is_of_this_run(self, said: dict[str, Any]) -> bool:
        """Whether a process starts as this one does, or runs with it already. One that runs with
        another instance in this place is about to end, and what it says of its store is old.
        """
        own = self._life.instance
        return bool(said["peers"].get(str(self._life.process), own) == own)

    def watch(self) -> None:
        """Ask from now on, a thread for each process."""
        for process in self._hosts:
            threading.Thread(
                target=self._watch,
                args=(process,),
                name=f"bytewax_jetstream-peer-{process}",
                daemon=True,
            ).start()

    def end(self) -> None:
        """Watch no more: the dataflow has ended, so the others end, too."""
        self._over.set()

    def _watch(self, process: int) -> None:
        heard = time.monotonic()
        while not self._over.wait(PAUSE):
            said = self._ask(process)
            if drain.requested():
                return  # one that has drained before may be gone, or started again
            if said is not Silent.AWAY:
                heard = time.monotonic()
            elif time.monotonic() - heard > GONE_SECONDS:
                self._end(f"{self._name(process)} is gone for {GONE_SECONDS:g} s")
                return
            if isinstance(said, dict):
                if said["instance"] != self._instances[process]:
                    self._end(f"{self._name(process)} was started again")
                    return
                if said["state"] == "draining":
                    drain.request(f"{self._name(process)} drains")

    def _end(self, reason: str) -> None:
        if self._over.is_set():
            return
        if drain.running():
            drain.end_now(reason)
            return
        # The engine waits for the process as it was, in a call that no signal ends.
        exit_now(
            ExitCode.UNKNOWN,
            partial(log.critical, "%s: the process ends now; run it again", reason),
        )

    def _check(self, there: dict[int, dict[str, Any]]) -> None:
        """Refuse stores that do not belong together."""
        life = self._life
        stores = {life.process: life.store} | {p: said["store"] for p, said in there.items()}
        known = {p: store for p, store in stores.items() if store is not None}
        used = [p for p, store in known.items() if store == Store.USED]
        empty = [p for p, store in known.items() if store == Store.EMPTY]
        if used and empty:
            raise RunError(
                f"{self._name(used[0])} has a used recovery store, and {self._name(empty[0])} an "
                "empty directory: a run like this would read some sources from their beginning; "
                "after a change of the number of processes, move the part files first",
                process=empty[0],
            )
        for process, said in there.items():
            if said["ready_to_run"] and (said["store"] is None) != (life.store is None):
                raise RunError(
                    f"{self._name(process)} and this process differ in whether they have a "
                    "recovery directory: give all of them one, or none",
                    process=process,
                )
            if said["parts"] and life.parts and said["parts"] != life.parts:
                raise RunError(
                    f"the recovery store has {said['parts']} parts for {self._name(process)}, and "
                    f"{life.parts} for this process: give all the same --parts",
                    process=process,
                )

    def _name(self, process: int) -> str:
        return f"process {process}" + (
            f" ({self._hosts[process]})" if process in self._hosts else ""
        )

    def _ask(self, process: int) -> dict[str, Any] | Silent:
        """What a process says, in which everything is there that the health port says to peers."""
        host = self._at.get(process) or self._hosts[process].strip("[]")
        asked = http.client.HTTPConnection(host, self._port, timeout=ANSWER_SECONDS)
        with closing(asked):
            try:
                asked.connect()
                at = asked.sock.getpeername()[0]
            except (OSError, UnicodeError):  # also: a label of the name is too long
                return Silent.AWAY
            try:
                asked.request("GET", "/peer")
                said = json.loads(asked.getresponse().read(65_536))
            except TimeoutError:
                return Silent.BUSY
            except (OSError, http.client.HTTPException, ValueError):
                return Silent.AWAY
        if not isinstance(said, dict) or said.get("process") != process or not said.keys() >= KEYS:
            return Silent.AWAY
        self._at[process] = at
        return said
