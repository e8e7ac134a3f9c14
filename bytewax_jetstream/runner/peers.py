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
from contextlib import closing
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
"""For how long a process that has answered may be silent."""


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

    def wait(self, seconds: float) -> None:
        """Wait until every other process is ready to run, and check that their stores fit ours.

        :raises RunError: when one is not there in time, or has another store.
        """
        until = time.monotonic() + seconds
        told: Sequence[int] = ()
        while True:
            found = {process: self._ask(process) for process in self._hosts}
            missing = [p for p, said in found.items() if said is None or not said["ready_to_run"]]
            there = {p: said for p, said in found.items() if said is not None}
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

    def watch(self) -> None:
        """Ask from now on, a thread for each process."""
        for process in self._hosts:
            threading.Thread(
                target=self._watch,
                args=(process,),
                name=f"bytewax_jetstream-peer-{process}",
                daemon=True,
            ).start()

    def _watch(self, process: int) -> None:
        heard = time.monotonic()
        while True:
            time.sleep(PAUSE)
            said = self._ask(process)
            if said is not None:
                heard = time.monotonic()
                if said["instance"] != self._instances[process]:
                    return self._end(f"{self._name(process)} was started again")
                if said["state"] == "draining":
                    drain.request(f"{self._name(process)} drains")
            elif time.monotonic() - heard > GONE_SECONDS:
                return self._end(f"{self._name(process)} has not answered for {GONE_SECONDS:g} s")

    def _end(self, reason: str) -> None:
        if drain.running():
            drain.end_now(reason)
            return
        # The engine waits for the process as it was, in a call that no signal ends.
        log.critical("%s: the process ends now; run it again", reason)
        exit_now(ExitCode.UNKNOWN)

    def _check(self, there: dict[int, dict[str, Any]]) -> None:
        """Refuse stores that do not belong together."""
        life = self._life
        for process, said in there.items():
            if said["refusal"]:
                raise RunError(f"{self._name(process)} says: {said['refusal']}", process=process)
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

    def _ask(self, process: int) -> dict[str, Any] | None:
        """What a process says; None when it says nothing, or is not one of ours."""
        host = self._hosts[process].strip("[]")
        try:
            with closing(
                http.client.HTTPConnection(host, self._port, timeout=ANSWER_SECONDS)
            ) as asked:
                asked.request("GET", "/peer")
                said = json.loads(asked.getresponse().read(65_536))
        except (OSError, http.client.HTTPException, ValueError):
            return None
        if not isinstance(said, dict) or said.get("process") != process:
            return None
        return said
