"""Runs the cases in turns, each in a child process, and joins what client and broker counted."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from select import select
from types import TracebackType
from typing import Any, Self

from ..errors import BenchError
from .brokers import Broker
from .cases import Case

__all__ = ["run"]

PATIENCE = 300.0
"""Seconds that a step of a round may take."""
PRACTICE = 10_000
"""The most messages of the practice round, which comes before the first and is not counted."""


class _Child:
    """The process of one case."""

    def __init__(self, case: Case, url: str, place: str) -> None:
        self._case = case
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bytewax_jetstream.bench.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,  # Ctrl-C reaches only us; the child ends with its stdin
        )
        self._say(json.dumps({"case": case._asdict(), "url": url, "place": place}))

    def begin(self, run: str, messages: int) -> None:
        self._say(json.dumps({"run": run, "messages": messages}))

    def proceed(self) -> None:
        self._say("")

    def expect(self, state: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline() if ready else ""
        answer: dict[str, Any] = json.loads(line) if line else {}
        if answer.get("state") != state:
            reason = answer.get("reason") or (
                "its process ended" if ready else f"no answer within {PATIENCE:g} s"
            )
            raise self._failed(reason)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
        except BrokenPipeError:
            raise self._failed("its process ended") from None

    def _failed(self, reason: str) -> BenchError:
        return BenchError(f"{self._case.broker} {self._case.strategy} failed: {reason}")


def run(
    groups: Sequence[Sequence[Case]],
    brokers: dict[str, Broker],
    rounds: int,
    progress: Callable[[Case, int], None] = lambda case, number: None,
) -> list[dict[str, Any]]:
    """Measure all rounds of all groups, as they go into the results file.

    :arg progress: Called before each round; number 0 is the practice round.
    :raises BenchError: when a strategy fails.
    """
    measured = []
    for group in groups:
        with ExitStack() as stack:
            children = [
                (case, stack.enter_context(_Child(case, broker.url, broker.place)))
                for case in group
                for broker in (brokers[case.broker],)
            ]
            for number in range(rounds + 1):
                for case, child in children:
                    progress(case, number)
                    counted = (
                        case if number else case._replace(messages=min(case.messages, PRACTICE))
                    )
                    figures = _round(counted, child, brokers[case.broker])
                    if number:
                        measured.append({**case._asdict(), "round": number, **figures})
    return measured


def _round(case: Case, child: _Child, broker: Broker) -> dict[str, Any]:
    run = f"{os.getpid():x}{secrets.token_hex(3)}"
    broker.prepare(case, run)
    child.begin(run, case.messages)
    child.expect("ready")
    before = broker.figures(first=True)
    child.proceed()
    child.expect("stopped")
    after = broker.figures(first=False)
    child.proceed()
    figures = child.expect("done")
    del figures["state"]
    stored = broker.count(case, run)
    broker.clear()
    found = min(figures["acked"], stored.found)
    return {
        **figures,
        "found": stored.found,
        "duplicates": stored.duplicates,
        "success": round(found / case.messages, 6),
        **after.since(before, case.messages),
    }
