"""What the settings of the pool accept."""

from typing import Any

import pytest
from pydantic import ValidationError

from bytewax_jetstream.settings import JetStreamSettings, KafkaSettings, PoolSettings
from tests.support.settings import PREFIX, dotenv, refusal


def test_pool_settings_have_their_own_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "POOL_BUDGET_MESSAGES", "10")
    dotenv(f"{PREFIX}POOL_DELIVERY_TIMEOUT=30")

    assert PoolSettings().budget_messages == 10
    assert JetStreamSettings().pool == PoolSettings()
    assert JetStreamSettings(pool=PoolSettings(budget_messages=7)).pool.budget_messages == 7
    assert JetStreamSettings().pool.delivery_timeout == 30


@pytest.mark.parametrize(
    "fields",
    [
        {"ack_workers": 0},
        {"budget_messages": -1},
        {"budget_bytes": "many"},
        {"ack_timeout": 0},
        {"delivery_timeout": float("inf")},
        {"drain_timeout": float("nan")},
    ],
)
def test_a_size_or_deadline_that_cannot_work_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        PoolSettings(**fields)


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"ack_timeout": 60}, "delivery_timeout (60 s) must be longer than ack_timeout (60 s)"),
        ({"delivery_timeout": 4.5}, "delivery_timeout (4.5 s) must be longer than ack_timeout (5 "),
        ({"ack_timeout": 2, "delivery_timeout": 1}, "delivery_timeout (1 s) must be longer than"),
    ],
)
def test_delivery_timeout_without_room_for_a_retry_is_refused(
    fields: dict[str, float], seen: str
) -> None:
    assert seen in refusal(PoolSettings, **fields)


def test_variables_that_leave_no_room_for_a_retry_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PREFIX + "POOL_DELIVERY_TIMEOUT", "3")

    for kind in (PoolSettings, JetStreamSettings, KafkaSettings):
        assert "delivery_timeout (3 s) must be longer than ack_timeout (5 s)" in refusal(kind)


def test_delivery_timeout_a_little_longer_than_the_ack_timeout_is_accepted() -> None:
    assert PoolSettings(ack_timeout=1, delivery_timeout=1.1).delivery_timeout == 1.1


def test_ack_workers_are_twice_the_cpus_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert PoolSettings().ack_workers == 12
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert PoolSettings().ack_workers == 2
