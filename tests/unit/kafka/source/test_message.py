import dataclasses
import pickle
from typing import Any

import pytest
from bytewax.connectors.kafka import KafkaError, KafkaSourceMessage
from confluent_kafka import KafkaError as LibraryError

from bytewax_jetstream.kafka.source import KafkaMessage
from bytewax_jetstream.kafka.source.message import failure

MESSAGE = KafkaMessage[Any, Any](
    b"key",
    b"value",
    "orders",
    headers=[("a", b"1")],
    latency=0.5,
    offset=7,
    partition=3,
    timestamp=(1, 99),
    cluster="cluster",
    topic_id="id",
)


def test_message_has_bytewaxs_fields_in_their_order_and_two_more_at_the_end() -> None:
    theirs = [field.name for field in dataclasses.fields(KafkaSourceMessage)]
    ours = [field.name for field in dataclasses.fields(KafkaMessage)]

    assert ours == [*theirs, "cluster", "topic_id"]
    bare = KafkaMessage(b"key", b"value")
    base = KafkaSourceMessage(b"key", b"value")
    assert vars(bare) == {**vars(base), "cluster": None, "topic_id": None}


def test_message_is_frozen_and_can_be_replaced_pickled_and_sunk() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MESSAGE.key = b"other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(MESSAGE)) == MESSAGE
    assert dataclasses.replace(MESSAGE, key=b"other").topic_id == "id"
    assert MESSAGE.to_sink().headers == [("a", b"1")]
    assert "topic_id='id'" in repr(MESSAGE)


def test_deserialized_message_keeps_all_other_fields() -> None:
    assert MESSAGE._with_key("k") == dataclasses.replace(MESSAGE, key="k")
    assert MESSAGE._with_value(1) == dataclasses.replace(MESSAGE, value=1)
    both = MESSAGE._with_key_and_value("k", 1)
    assert both == dataclasses.replace(MESSAGE, key="k", value=1)


def test_failure_is_bytewaxs_own_with_reason_and_place() -> None:
    item = failure(LibraryError.OFFSET_OUT_OF_RANGE, "gone", topic="t", partition=1, offset=5)

    assert type(item) is KafkaError
    assert (item.err.code(), item.err.str()) == (1, "gone")
    assert (item.msg.topic, item.msg.partition, item.msg.offset) == ("t", 1, 5)
