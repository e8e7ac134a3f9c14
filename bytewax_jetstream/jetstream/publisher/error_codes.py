"""JetStream's error codes: which refusals are retried, which reject a message, which stop the run.

One table a verdict, with the server's description of each code; a code in no table is REJECT. The
Kafka table is `kafka/error_codes.py`.
Source: nats-server 2.15 `server/errors.json`, ADR-50 for batches; tried against 2.15.1 where a test
names the code.
"""

from collections.abc import Mapping
from typing import Any

from ...publishing import Refusal, Verdict

__all__ = [
    "DUPLICATE_IN_GROUP",
    "IN_PROCESS",
    "NO_BATCH_PUBLISH",
    "NO_MESSAGE_FOUND",
    "RETRY_CODES",
    "ROLLUP_FAILED",
    "STOP_CODES",
    "STORE_FAILED",
    "TOO_MANY_BATCHES",
    "UNKNOWN_BATCH",
    "WRONG_LAST_SEQUENCE",
    "classify",
    "error_in",
]

CODES = range(10_000, 11_000)
"""The numbers of the server's own errors: 10002 to 10227 in nats-server 2.15; later ones go on."""

RETRY_CODES = {
    # Limits and resources: somebody may make room before the delivery timeout.
    10002: "resource limits exceeded for account",
    10023: "insufficient resources",
    10028: "insufficient memory resources available",
    10047: "insufficient storage resources available",
    # The cluster elects a leader, moves the stream or restarts a server.
    10008: "JetStream system temporarily unavailable",
    10009: "JetStream cluster can not handle request",
    10063: "expected stream sequence does not match",
    10118: "stream is offline",
    10194: "stream is offline: {err}",
    # An earlier message is being stored: another attempt of this one, or one on the same subject.
    10158: "duplicate message id is in process",
    10163: "expected last sequence per subject temporarily unavailable",
    # A message of the group was lost on its way, so the server stored nothing of the group.
    10176: "atomic publish batch is incomplete",
    # The server protects itself.
    10167: "too many requests",
    10210: "atomic publish too many inflight",
    10211: "batch publish too many inflight",
}
"""Not now: the pool tries the same message again until the delivery timeout. The user does nothing,
or makes room.
"""
STOP_CODES = {
    10039: "enable JetStream for this account",  # JetStream not enabled for account
    10076: "enable JetStream on the server",  # JetStream not enabled
    10060: "correct the expected stream",  # expected stream does not match
    10109: "publish to another stream",  # invalid operation on sealed stream
    10174: "set allow_atomic on the stream, or use atomic=False",  # atomic publish is disabled
    10185: "use a newer nats-server",  # JetStream minimum api level required
}
"""Never, and other messages will fare the same: each with what the user does before the next run.
"""
STORE_FAILED = 10077
"""The stream is full, closing, or cannot take a message of this size: only the description says
which ("maximum bytes exceeded", "store is closed", "message too large").
"""
IN_PROCESS = 10158
"""Duplicate message id is in process: a replicated stream knows the id, and the message may still
be lost."""

WRONG_LAST_SEQUENCE = {
    10071: "wrong last sequence: {seq}",
    10164: "wrong last sequence",
}
"""The expected last sequence is another. The server checks it before the event id. So after a lost
ack, or on a replay, the message in the way may be this very one, stored by an earlier attempt.
"""
DUPLICATE_IN_GROUP = 10201
"""Atomic publish batch contains duplicate message id: the server knows an id of the group, or an id
is in it twice. Nothing of it is stored now; an earlier attempt may have stored all of it.
"""
NO_BATCH_PUBLISH = {
    10205: "batch publish is disabled",  # allow_batched is off
    10206: "batch publish pattern is invalid",  # the server speaks another version of the protocol
    10207: "batch publish ID is invalid",  # the same
}
"""The stream takes no batches; its messages go as singles from now on."""
UNKNOWN_BATCH = 10208
"""Batch publish ID unknown: the server forgot the batch, or ended it before this message."""
TOO_MANY_BATCHES = 10211
"""Batch publish too many inflight: nothing of the batch is stored, its messages go as singles."""
NO_MESSAGE_FOUND = 10037
"""A look at the stream found no message at that sequence."""
ROLLUP_FAILED = 10111
"""The server rejects the value of `Nats-Rollup`. It checks that only after the message id."""


def error_in(answer: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The error in an answer, or None if there is none.

    Anybody who subscribes to a topic can answer its messages. So an error counts only in the form
    in which the server writes it, with a number of its own.

    :raises ValueError: when it is an error of somebody else.
    """
    error = answer.get("error")
    if error is None:
        return None
    code = error.get("err_code") if isinstance(error, dict) else None
    if type(code) is not int or code not in CODES or type(error.get("code")) is not int:
        raise ValueError("an error that is not the server's")
    return error  # type: ignore[no-any-return]


def classify(
    error: Mapping[str, Any], stream: str | None = None, config: Mapping[str, Any] | None = None
) -> Refusal:
    """What an error reply means for its message: tried again, rejected, or the end of the run.

    :arg error: As the server writes it: `err_code`, the HTTP-like `code`, and `description`.
    :arg stream: The stream that answered, if that is known.
    :arg config: Its configuration, if that is known.
    """
    code, status, description = error["err_code"], error["code"], str(error.get("description"))
    reason = f"the server refused it: {description} ({code})"
    if code in STOP_CODES:
        return Refusal(Verdict.STOP, f"{reason}: {STOP_CODES[code]}, then run again", code)
    if code == STORE_FAILED:
        return _store_failed(reason, description, stream, config)
    if code in RETRY_CODES or status == 429 or status >= 500:
        return Refusal(Verdict.RETRY, reason, code)
    return Refusal(Verdict.REJECT, reason, code)


def _store_failed(
    reason: str, description: str, stream: str | None, config: Mapping[str, Any] | None
) -> Refusal:
    """What the catch-all code means; see `STORE_FAILED`."""
    if "per subject" in description:
        # Only this subject is full (`discard_new_per_subject`): the others go on. Without an age
        # limit nothing but a hand that deletes messages makes room.
        stays = (
            config is not None
            and config.get("retention", "limits") == "limits"
            and not config.get("max_age")
            and not config.get("allow_msg_ttl")
        )
        verdict = Verdict.REJECT if stays else Verdict.RETRY
        advice = (
            f"raise max_msgs_per_subject of stream {stream or 'that covers it'}, or delete what is "
            "stored on the subject"
        )
        return Refusal(verdict, f"{reason}: {advice}", STORE_FAILED, own=True)
    if "message size" in description or "too large" in description:
        return Refusal(Verdict.REJECT, f"{reason}: shorten or split the message", STORE_FAILED)
    if "exceeded" in description:
        advice = "make room in the stream or raise its limits"
        return Refusal(Verdict.RETRY, f"{reason}: {advice}", STORE_FAILED)
    if "closed" in description:
        return Refusal(Verdict.RETRY, f"{reason}: check the server's log", STORE_FAILED)
    return Refusal(Verdict.REJECT, f"{reason}: check the server's log", STORE_FAILED)
