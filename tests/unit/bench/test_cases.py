from itertools import chain
from typing import Any

from bytewax_jetstream.bench.cases import BROKERS, SCENARIOS, STRATEGIES, Case, Choice, plan
from bytewax_jetstream.bench.load import Load, is_warm_up

CASE = Case(
    "low", "jetstream", "file", "msgid", "flow", messages=2_500, payload_bytes=20, batch=1_000
)


def cases(**choice: Any) -> list[Case]:
    return list(chain(*plan(Choice(**({"scenarios": ["low"], "brokers": ["jetstream"]} | choice)))))


def test_every_scenario_and_strategy_can_be_planned() -> None:
    every = {name for names in STRATEGIES.values() for name in names}

    planned = cases(scenarios=list(SCENARIOS), brokers=BROKERS, strategies=every)

    assert {case.scenario for case in planned} == set(SCENARIOS)
    assert {(case.broker, case.strategy) for case in planned} == {
        (broker, strategy) for broker, names in STRATEGIES.items() for strategy in names
    }


def test_strategies_of_one_speed_are_capped() -> None:
    planned = cases(scenarios=["million"], strategies=["before", "sync", "task", "flow"])

    assert {case.strategy: case.messages for case in planned} == {
        "before": 10_000,
        "sync": 10_000,
        "task": 10_000,
        "flow": 1_000_000,
    }


def test_case_is_measured_once_if_a_condition_does_not_concern_it() -> None:
    planned = cases(strategies=["sync", "flow"], ack_workers=[1, 4], ids=["msgid", "header"])

    assert sum(case.strategy == "sync" for case in planned) == 2
    assert sum(case.strategy == "flow" for case in planned) == 4


def test_kafka_cases_have_no_choice_of_storage_or_ids() -> None:
    planned = cases(
        brokers=["kafka"], strategies=["flow"], ids=["msgid", "header"], storage=["file", "memory"]
    )

    assert [(case.storage, case.ids) for case in planned] == [("file", "header")]


def test_a_pull_loop_runs_beside_the_source() -> None:
    assert [case.strategy for case in cases(strategies=["source"])] == ["source", "pull"]


def test_paced_messages_are_singles_and_only_of_strategies_with_an_ack_each() -> None:
    planned = cases(scenarios=["paced"], strategies=["sync", "lean", "source"], batch=[1_000])

    assert [(case.strategy, case.batch, case.rate) for case in planned] == [("sync", 1, 1_000)]


def test_load_gives_each_message_once_with_its_own_id() -> None:
    load = Load(CASE, "run", "bench")

    batches = list(load.batches())
    envelopes = list(chain(*batches))

    assert [len(batch) for batch in batches] == [1_000, 1_000, 500]
    assert len({envelope.event_id for envelope in envelopes}) == 2_500
    assert len({envelope.aggregate_id for envelope in envelopes}) == 1_000
    assert len({envelope.topic for envelope in envelopes}) == 5
    assert {len(envelope.payload or b"") for envelope in envelopes} == {20}
    assert load.seconds_until_due() == 0
    assert not any(is_warm_up(envelope.event_id) for envelope in envelopes)
    assert all(is_warm_up(envelope.event_id) for envelope in load.warm_up())
