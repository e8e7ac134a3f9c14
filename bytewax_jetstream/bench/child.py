"""The child process that measures a case, round by round, and talks to its parent in JSON.

parent                         child
{"case": …, "url": …, "place": …} ─►
{"run": …, "messages": …} ─►   connects, warms up
                         ◄──   {"state": "ready"}       the parent reads the broker's figures
(an empty line)          ──►   publishes
                         ◄──   {"state": "stopped"}     the parent reads them again
(an empty line)          ──►   closes
                         ◄──   {"state": "done", …}     the meter's figures
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from .cases import Case
from .load import Load
from .meter import Meter, Tally, Trial

__all__ = ["main"]


def strategy_of(case: Case) -> Callable[[Trial], Tally]:
    """How a case publishes or reads; only the libraries that it needs are imported."""
    if case.strategy in ("pool", "batch", "flow", "source"):
        from .strategies import ours

        return {"pool": ours.pool, "batch": ours.pool, "flow": ours.flow, "source": ours.source}[
            case.strategy
        ]
    if case.broker == "kafka":
        from .strategies import kafka

        return {"sync": kafka.sync, "sink": kafka.sink, "confluent": kafka.confluent}[case.strategy]
    from .strategies import lean, nats_py

    coroutine = {
        "before": nats_py.before,
        "sync": nats_py.sync,
        "task": nats_py.task,
        "async": nats_py.publish_async,
        "raw": nats_py.raw,
        "pull": nats_py.pull,
        "lean": lean.lean,
    }[case.strategy]
    return lambda trial: asyncio.run(coroutine(trial))


def measure(case: Case, url: str, load: Load, wait: Callable[[str], None]) -> dict[str, Any]:
    """Measure a round; when this returns, nothing of the round is left for the next one."""
    meter = Meter(wait, urlsplit(url if "://" in url else f"//{url}").port or 0)
    tally = strategy_of(case)(Trial(case, url, load, meter))
    return meter.figures(tally, case.messages)


def main() -> None:
    """Serve rounds until stdin ends."""
    # What a library prints goes to stderr, so that it cannot come between our lines.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(state: str, **more: Any) -> None:
        answers.write(json.dumps({"state": state, **more}) + "\n")

    def wait(state: str) -> None:
        say(state)
        if not sys.stdin.readline():
            sys.exit(1)  # the parent is gone

    told = json.loads(sys.stdin.readline())
    case, url, place = Case(**told["case"]), told["url"], told["place"]
    strategy_of(case)
    for line in iter(sys.stdin.readline, ""):
        try:
            told = json.loads(line)
            counted = case._replace(messages=told["messages"])
            say("done", **measure(counted, url, Load(counted, told["run"], place), wait))
        except Exception as error:
            say("failed", reason=" ".join(f"{type(error).__name__}: {error}".split()))


if __name__ == "__main__":
    main()
