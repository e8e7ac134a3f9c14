"""What the server's error codes mean for a message, or for a whole flight."""

from collections.abc import Mapping
from typing import Any

from ...publishing import Refusal, Verdict

__all__ = [
    "KNOWN_IDS",
    "NO_FLIGHTS",
    "NO_MESSAGE",
    "NO_ROLLUP",
    "TOO_MANY_FLIGHTS",
    "UNKNOWN_FLIGHT",
    "UNMET_CODES",
    "classify",
]

RETRY_CODES = frozenset(
    {
        10002,  # account limits, 10023 insufficient resources, 10028 and 10047 memory and storage exceeded:
        10023,  # these may pass; at the delivery timeout they stop the run
        10028,
        10047,
        10008,  # JetStream temporarily unavailable
        10009,  # not the leader
        10063,  # sequence mismatch inside the cluster
        10118,  # stream offline
        10194,
        10158,  # this id is in process
        10163,  # last sequence by subject not ready
        10167,  # too many requests
        10176,  # a group of which something is missing: nothing of it is stored
        10210,  # too many batches in flight
        10211,
    }
)
STOP_CODES = frozenset(
    {
        10039,  # JetStream not enabled for the account
        10076,  # JetStream not enabled
        10060,  # not the expected stream
        10109,  # stream sealed
        10174,  # stores no groups
        10185,  # API level
    }
)
STORE_FAILED = 10077
"""A catch-all of the server that has to be told apart by its text."""
UNMET_CODES = frozenset({10071, 10164})
"""The expected last sequence is another. The server looks at that before it looks at the event id,
so after an attempt whose ack was lost, or on a replay, the message that is in the way may be this
very one.
"""
KNOWN_IDS = 10201
"""Of a group some ids are known, or are in it twice; nothing of it is stored. It may be its own
earlier success.
"""
NO_ROLLUP = 10111
"""The server does not understand a message's `Nats-Rollup`; it looks at that after it has looked
for the id.
"""
NO_MESSAGE = 10037
NO_FLIGHTS = frozenset(
    {
        10205,  # batch publish is off for the stream
        10206,  # the reply subject is not understood, nor the batch id: another version of the protocol
        10207,
    }
)
TOO_MANY_FLIGHTS = 10211
UNKNOWN_FLIGHT = 10208
"""The server does not know the batch any more, or ended it before this message."""


def classify(error: Mapping[str, Any]) -> Refusal:
    """What an error reply means for its message.

    Source: nats-server `server/errors.json`, tried against 2.15.1 where a test names the code.

    :arg error: The server's words: `err_code`, the HTTP-like `code`, and `description`.
    """
    code, status, description = (
        error.get("err_code", 0),
        error.get("code", 0),
        str(error.get("description")),
    )
    reason = f"the server refused it: {description} ({code})"
    if code in STOP_CODES:
        return Refusal(
            Verdict.STOP, f"{reason}: mend the stream or the account, then run again", code
        )
    if code == STORE_FAILED:
        passing = "exceeded" in description or "closed" in description
        verdict = Verdict.RETRY if passing and "message size" not in description else Verdict.REJECT
        return Refusal(verdict, f"{reason}: make room in the stream or raise its limits", code)
    if code in RETRY_CODES or status == 429 or status >= 500:
        return Refusal(Verdict.RETRY, reason, code)
    return Refusal(Verdict.REJECT, reason, code)
