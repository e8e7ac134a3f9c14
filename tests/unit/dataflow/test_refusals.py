import logging

import pytest

from bytewax_jetstream.dataflow.refusals import MOST, Refusals
from bytewax_jetstream.envelope import Envelope, Outcome, PublishResult

ENVELOPE = Envelope("orders", b"", "order-1")


def _rejected(number: int, reason: str) -> PublishResult:
    result = PublishResult(
        Outcome.REJECTED,
        *(f"order-{number}", f"orders.{number}", None, None, "jetstream", None, None, None, None),
        *(1, 0.0, reason, None, ENVELOPE, 0, 1),
    )
    assert result.reason == reason
    return result


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.set_level(logging.WARNING)
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


def test_each_reason_is_logged_once_and_counted_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals = Refusals("flow.publish")
    for number in range(100):
        refusals.add(
            [
                _rejected(number, f"no stream covers orders.{number}: make one"),
                _rejected(number, f"payload and headers have {number + 5} bytes"),
            ]
        )
    refusals.add([_rejected(5, "no stream covers orders.5: make one")])

    further = "; further ones for the same reason are counted, and logged at the end"
    assert _logged(caplog) == [
        f"flow.publish: envelope order-0 on orders.0 is rejected: {reason}{further}"
        for reason in (
            "no stream covers orders.0: make one",
            "payload and headers have 5 bytes",
        )
    ]
    refusals.end()
    assert _logged(caplog) == [
        "flow.publish: 101 envelopes were rejected: no stream covers orders.0: make one",
        "flow.publish: 100 envelopes were rejected: payload and headers have 5 bytes",
    ]
    refusals.end()
    assert _logged(caplog) == []


def test_reasons_that_all_differ_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals("flow.publish")
    words = [f"{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(500)]
    refusals.add([_rejected(1, f"invalid {word}") for word in words])

    assert len(_logged(caplog)) == MOST + 1
    refusals.end()
    counted = _logged(caplog)
    assert len(counted) == MOST + 1
    assert f"flow.publish: {500 - MOST} envelopes were rejected: other reasons" in counted


def test_reason_with_a_lone_surrogate_can_be_written_to_any_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals = Refusals("step")
    rejected = PublishResult(
        Outcome.REJECTED, "id\ud800", "topic\ud800", None, None, "jetstream",
        None, None, None, None, 1, 0.0, "bad topic\ud800", None, None, 0, 0,
    )  # fmt: skip
    refusals.add([rejected])
    refusals.end()

    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert b"\\ud800" in message.encode()
