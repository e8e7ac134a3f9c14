from itertools import combinations
from typing import Any

import pytest

from bytewax_jetstream.jetstream.publisher.error_codes import (
    DUPLICATE_IN_GROUP,
    NO_BATCH_PUBLISH,
    NO_MESSAGE_FOUND,
    RETRY_CODES,
    ROLLUP_FAILED,
    STOP_CODES,
    STORE_FAILED,
    TOO_MANY_BATCHES,
    UNKNOWN_BATCH,
    WRONG_LAST_SEQUENCE,
    classify,
    error_in,
)
from bytewax_jetstream.publishing import Refusal, Verdict

# Code, HTTP-like status and description: nats-server 2.15, `server/errors.json`.
RETRIED = [
    (10002, 400, "resource limits exceeded for account"),
    (10008, 503, "JetStream system temporarily unavailable"),
    (10009, 500, "JetStream cluster can not handle request"),
    (10023, 503, "insufficient resources"),
    (10028, 500, "insufficient memory resources available"),
    (10047, 500, "insufficient storage resources available"),
    (10063, 503, "expected stream sequence does not match"),
    (10118, 500, "stream is offline"),
    (10158, 409, "duplicate message id is in process"),
    (10163, 503, "expected last sequence per subject temporarily unavailable"),
    (10167, 429, "too many requests"),
    (10176, 400, "atomic publish batch is incomplete"),
    (10194, 500, "stream is offline: {err}"),
    (10210, 429, "atomic publish too many inflight"),
    (10211, 429, "batch publish too many inflight"),
]
STOPPING = [
    (10039, 503, "JetStream not enabled for account", "enable JetStream for this account"),
    (10060, 400, "expected stream does not match", "correct the expected stream"),
    (10076, 503, "JetStream not enabled", "enable JetStream on the server"),
    (10109, 400, "invalid operation on sealed stream", "publish to another stream"),
    (
        10174,
        400,
        "atomic publish is disabled",
        "set allow_atomic on the stream, or use atomic=False",
    ),
    (10185, 412, "JetStream minimum api level required", "use a newer nats-server"),
]
REJECTED = [
    (10037, 404, "no message found"),
    (10054, 400, "message size exceeds maximum allowed"),
    (10071, 400, "wrong last sequence: 7"),
    (10097, 400, "header size exceeds maximum allowed of 64k"),
    (10164, 400, "wrong last sequence"),
    (10166, 400, "per-message TTL is disabled"),
    (10199, 400, "atomic publish batch is too large: 1001"),
    (10201, 400, "atomic publish batch contains duplicate message id"),
    (10205, 400, "batch publish is disabled"),
    (10206, 400, "batch publish pattern is invalid"),
    (10207, 400, "batch publish ID is invalid"),
    (10208, 400, "batch publish ID unknown"),
]


def refusal_of(code: int, status: int, description: str) -> Refusal:
    return classify({"code": status, "err_code": code, "description": description})


@pytest.mark.parametrize(("code", "status", "description"), RETRIED)
def test_passing_error_is_retried(code: int, status: int, description: str) -> None:
    reason = f"the server refused it: {description} ({code})"

    assert refusal_of(code, status, description) == Refusal(Verdict.RETRY, reason, code)


@pytest.mark.parametrize("code", sorted(RETRY_CODES))
def test_retry_code_is_retried_whatever_its_status(code: int) -> None:
    assert refusal_of(code, 400, "any").verdict is Verdict.RETRY


@pytest.mark.parametrize(("code", "status", "description", "remedy"), STOPPING)
def test_error_that_meets_every_message_stops_the_run_and_says_what_to_do(
    code: int, status: int, description: str, remedy: str
) -> None:
    reason = f"the server refused it: {description} ({code}): {remedy}, then run again"

    assert refusal_of(code, status, description) == Refusal(Verdict.STOP, reason, code)


@pytest.mark.parametrize(("code", "status", "description"), REJECTED)
def test_code_in_no_table_rejects_the_message(code: int, status: int, description: str) -> None:
    reason = f"the server refused it: {description} ({code})"

    assert refusal_of(code, status, description) == Refusal(Verdict.REJECT, reason, code)


@pytest.mark.parametrize(
    ("description", "verdict", "advice"),
    [
        ("maximum messages exceeded", Verdict.RETRY, "make room in the stream or raise its limits"),
        ("maximum bytes exceeded", Verdict.RETRY, "make room in the stream or raise its limits"),
        ("store is closed", Verdict.RETRY, "check the server's log"),
        ("message too large", Verdict.REJECT, "shorten or split the message"),
        ("maximum message size exceeded", Verdict.REJECT, "shorten or split the message"),
        ("something new", Verdict.REJECT, "check the server's log"),
    ],
)
def test_store_failed_is_told_apart_by_its_description(
    description: str, verdict: Verdict, advice: str
) -> None:
    refusal = refusal_of(STORE_FAILED, 503, description)

    assert refusal == Refusal(
        verdict, f"the server refused it: {description} (10077): {advice}", 10077
    )


@pytest.mark.parametrize(
    ("config", "verdict"),
    [
        ({"retention": "limits"}, Verdict.REJECT),
        ({}, Verdict.REJECT),
        ({"retention": "limits", "max_age": 60_000_000_000}, Verdict.RETRY),
        ({"retention": "limits", "allow_msg_ttl": True}, Verdict.RETRY),
        ({"retention": "workqueue"}, Verdict.RETRY),
        ({"retention": "interest"}, Verdict.RETRY),
        (None, Verdict.RETRY),
    ],
)
def test_full_subject_is_refused_for_good_only_when_nothing_makes_room(
    config: dict[str, Any] | None, verdict: Verdict
) -> None:
    description = "maximum messages per subject exceeded"
    error = {"code": 503, "err_code": STORE_FAILED, "description": description}

    refusal = classify(error, "ORDERS", config)

    assert (refusal.verdict, refusal.own) == (verdict, True)
    assert refusal.reason == (
        f"the server refused it: {description} (10077): raise max_msgs_per_subject of stream "
        "ORDERS, or delete what is stored on the subject"
    )


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (400, Verdict.REJECT),
        (404, Verdict.REJECT),
        (409, Verdict.REJECT),
        (412, Verdict.REJECT),
        (428, Verdict.REJECT),
        (429, Verdict.RETRY),
        (430, Verdict.REJECT),
        (499, Verdict.REJECT),
        (500, Verdict.RETRY),
        (503, Verdict.RETRY),
        (599, Verdict.RETRY),
    ],
)
def test_unknown_code_is_retried_only_when_its_status_says_it_may_pass(
    status: int, verdict: Verdict
) -> None:
    assert refusal_of(19999, status, "new").verdict is verdict


@pytest.mark.parametrize(
    "error",
    [
        "no",
        7,
        [],
        {},
        {"unrelated": 1},
        {"code": 400, "description": "no"},
        {"code": 503, "description": "no"},
        {"code": "503", "err_code": 10054, "description": "no"},
        {"code": None, "err_code": 10054, "description": "no"},
        {"err_code": 10109, "description": "no"},
        {"code": 400, "err_code": "10054", "description": "no"},
        {"code": 400, "err_code": True, "description": "no"},
        {"code": 400, "err_code": 10054.0, "description": "no"},
        {"code": 400, "err_code": 400, "description": "no"},
        {"code": 400, "err_code": 1, "description": "no"},
        {"code": 400, "err_code": [10109], "description": "no"},
        {"code": 400, "err_code": {}, "description": "no"},
    ],
)
def test_error_of_somebody_else_is_not_believed(error: object) -> None:
    with pytest.raises(ValueError, match="an error that is not the server's"):
        error_in({"error": error, "stream": "ORDERS"})


def test_error_of_the_server_is_told_from_an_ack() -> None:
    error = {"code": 400, "err_code": 10054, "description": {"text": "no"}}

    assert error_in({"error": error}) == error
    assert error_in({"stream": "ORDERS", "seq": 1}) is None
    assert classify(error) == Refusal(
        Verdict.REJECT, "the server refused it: {'text': 'no'} (10054)", 10054
    )


def test_no_code_has_two_meanings() -> None:
    tables = [
        RETRY_CODES.keys(),
        STOP_CODES.keys(),
        {STORE_FAILED},
        WRONG_LAST_SEQUENCE.keys(),
        NO_BATCH_PUBLISH.keys(),
        {DUPLICATE_IN_GROUP},
        {UNKNOWN_BATCH},
        {NO_MESSAGE_FOUND},
        {ROLLUP_FAILED},
    ]

    assert not [one & other for one, other in combinations(tables, 2) if one & other]
    assert TOO_MANY_BATCHES in RETRY_CODES  # as a single; of a batch the publisher looks first


def test_every_code_is_tested_here_under_the_name_the_server_gives_it() -> None:
    assert {code: description for code, _, description in RETRIED} == RETRY_CODES
    assert {code: remedy for code, _, _, remedy in STOPPING} == STOP_CODES
    assert {code for code, *_ in REJECTED} >= (
        WRONG_LAST_SEQUENCE.keys()
        | NO_BATCH_PUBLISH.keys()
        | {DUPLICATE_IN_GROUP, UNKNOWN_BATCH, NO_MESSAGE_FOUND}
    )
