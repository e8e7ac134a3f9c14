"""Counts the calls, and the changes of module, that one batch of three costs in the pure core.

    python -m tests.support.module_switches

A reader who follows a batch by the code has to change files as often as the count says. Counted
with `sys.setprofile` over submit, send, end and take: a change is a call from another module, the
five calls into the core included.
"""

import sys
from random import Random
from types import FrameType
from typing import NamedTuple

from bytewax_jetstream.dispatch import Dispatch
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.publishing import Append, Policy, Route

__all__ = ["Switches", "count_switches"]

PACKAGE = "bytewax_jetstream."
POLICY = Policy(
    delivery_timeout=60.0,
    ack_timeout=5.0,
    one_per_aggregate=True,
    window=8_192,
    window_bytes=8 * 1024 * 1024,
    max_send=512,
    flow_interval=500,
)
ROUTE = Route("ORDERS", replicated=False, fresh=False)


class Switches(NamedTuple):
    """What one batch costs."""

    calls: list[str]
    """Each call, as `module.function`."""
    changes: int
    """How many of them came from another module."""


def count_switches() -> Switches:
    """Submit three envelopes, send them as a batch, end it, take what is settled."""
    dispatch = Dispatch(POLICY, lambda envelopes: [b""] * len(envelopes), Random(1), _route)
    lane = dispatch.add_lane()
    dispatch.connected(0.0)
    envelopes = [Envelope("orders", b"payload", f"e{number}", "a") for number in range(3)]
    calls: list[str] = []
    changes = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal changes
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith(PACKAGE):
            calls.append(f"{module.removeprefix(PACKAGE)}.{frame.f_code.co_name}")
            before = frame.f_back.f_globals.get("__name__") if frame.f_back else None
            changes += before != module

    def publish(number: int) -> None:
        dispatch.submit(lane, envelopes, 1, 0.0)
        append = dispatch.next_send(0.0)
        assert dispatch.next_send(0.0) is None
        dispatch.batch_ended(number, 3, 0.1)
        assert len(dispatch.take_settled()) == 1
        assert isinstance(append, Append)
        assert append.last

    publish(1)  # what a lane costs once is not counted
    sys.setprofile(note)
    try:
        publish(2)
    finally:
        sys.setprofile(None)
    return Switches(calls, changes)


def _route(topic: str) -> Route:
    return ROUTE


if __name__ == "__main__":
    switches = count_switches()
    print(*switches.calls, sep="\n")
    print(f"{len(switches.calls)} calls, {switches.changes} changes of module")
