import os
from enum import StrEnum
from typing import Any

import pytest

from bytewax_jetstream.kafka.source import KafkaSource
from bytewax_jetstream.kafka.source.source import _names_for
from bytewax_jetstream.settings import KafkaSettings


class Topics(StrEnum):
    ORDERS = "orders"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"start": "latest"}, "invalid start 'latest': give 'first', 'new', or an offset from 0"),
        ({"start": -1}, "invalid start -1"),
        ({"start": True}, "invalid start True"),
        ({"start": None}, "invalid start None"),
        ({"start": 1.0}, "invalid start 1.0"),
        ({"batch_size": 0}, "invalid batch_size 0: give an int from 1"),
        ({"batch_size": -5}, "invalid batch_size -5"),
        ({"batch_size": "10"}, "invalid batch_size '10'"),
        ({"batch_size": True}, "invalid batch_size True"),
        ({"on_error": "raise"}, "invalid on_error 'raise': give 'stop' or 'errs'"),
        ({"topics": []}, "name at least one topic to read"),
        ({"topics": "^orders.*"}, r"'\^orders\.\*' is not the name of a Kafka topic: write out"),
        ({"topics": ["a", "b c"]}, "'b c' is not the name of a Kafka topic"),
        ({"topics": ""}, "'' is not the name of a Kafka topic"),
        ({"topics": ".."}, r"'\.\.' is not the name"),
        ({"topics": "a\n"}, "is not the name of a Kafka topic"),
        ({"topics": [7]}, "7 is not the name of a Kafka topic"),
        ({"topics": ["a", "b", "a"]}, "give each once"),
    ],
)
def test_invalid_parameter_is_one_clear_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KafkaSource(KafkaSettings(), **{"topics": "orders", **options})


@pytest.mark.parametrize(
    "name", ["group.id", "auto.offset.reset", "enable.auto.commit", "enable.partition.eof"]
)
def test_property_of_a_consumer_group_is_refused(name: str) -> None:
    settings = KafkaSettings(add_config={name: "x"})

    with pytest.raises(ValueError, match=f"{name} in add_config: this source reads without a"):
        KafkaSource(settings, topics="orders")


def test_name_of_a_users_own_str_type_counts_by_its_value() -> None:
    assert KafkaSource(KafkaSettings(), topics=Topics.ORDERS)._names == ["orders"]
    (name,) = KafkaSource(KafkaSettings(), topics=[Topics.ORDERS])._names
    assert type(name) is str


def test_more_partitions_are_named_than_are_there_and_never_fewer_than_before() -> None:
    named = [_names_for(count) for count in range(2_000)]

    assert named == sorted(named)
    assert named[:10] == [16] * 10
    assert all(names >= count + count // 4 + 4 for count, names in enumerate(named))
    assert _names_for(200) == 256


def test_child_forked_while_the_brokers_are_asked_is_not_held_up() -> None:
    source = KafkaSource(KafkaSettings(brokers=("127.0.0.1:1",)), topics="t")
    with source._lock:  # as while this process asks the brokers
        child = os.fork()
        if not child:
            free = source._lock.acquire(timeout=5)
            os._exit(0 if free else 1)
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
