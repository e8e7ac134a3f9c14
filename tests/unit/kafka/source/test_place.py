import pickle
from typing import Any

import pytest

from bytewax_jetstream.errors import SourceError
from bytewax_jetstream.kafka.source.place import Begin, KafkaStart, Log, Topic, begin
from bytewax_jetstream.recovery_state import KafkaPlace, kafka_state, read_kafka_state
from tests.support.recovery.plain import plain

TOPIC = Topic("id", (Log(15, 20, 2),))
UNKNOWN_ID = Topic(None, (Log(15, 20, None),))


def _begin(
    place: KafkaPlace | None, start: KafkaStart = "first", topic: Topic = TOPIC, number: int = 0
) -> Begin:
    return begin(place, start, "orders", topic, number, "flow.in")


@pytest.mark.parametrize(
    ("start", "where"),
    [
        ("first", Begin(15)),
        ("new", Begin(20)),
        (17, Begin(17)),
        (20, Begin(20)),
        (3, Begin(15, None, 3)),
    ],
)
def test_first_start_begins_where_start_says(start: KafkaStart, where: Begin) -> None:
    assert _begin(None, start) == where
    assert _begin(KafkaPlace(16, "id", 2), start) == Begin(16, 2), "a state counts, not the start"


def test_start_beyond_the_end_is_refused() -> None:
    with pytest.raises(SourceError, match="start=21 is beyond the end of partition 0 of topic"):
        _begin(None, 21)


@pytest.mark.parametrize(
    ("place", "where"),
    [
        (KafkaPlace(15, "id", 2), Begin(15, 2)),
        (KafkaPlace(20, "id", 1), Begin(20, 1)),
        (KafkaPlace(20, "id", None), Begin(20)),
        (KafkaPlace(10, "id", 1), Begin(15, None, 10)),
        (KafkaPlace(None, "id", None), Begin(15, None, 0)),
        (KafkaPlace(18, None, None), Begin(18)),
        (KafkaPlace(10, None, None), Begin(15, None, 10)),
        (KafkaPlace(-2, None, None), Begin(15)),
        (KafkaPlace(-1, None, None), Begin(20)),
    ],
)
def test_resume_goes_on_at_its_place_or_at_the_first_that_is_there(
    place: KafkaPlace, where: Begin
) -> None:
    assert _begin(place) == where


@pytest.mark.parametrize(
    ("place", "topic", "number", "says"),
    [
        (KafkaPlace(21, "id", 2), TOPIC, 0, "was read up to offset 21, and now ends at 20"),
        (KafkaPlace(21, None, None), TOPIC, 0, "was read up to offset 21, and now ends at 20"),
        (KafkaPlace(18, "id", 3), TOPIC, 0, "the brokers have lost messages that were read"),
        (KafkaPlace(18, "other", 2), TOPIC, 0, "was deleted and made again since it was read"),
        (KafkaPlace(10, "other", 2), TOPIC, 0, "was deleted and made again since it was read"),
        (KafkaPlace(18, "other", 2), TOPIC, 1, "was deleted and made again since it was read"),
        (KafkaPlace(18, None, None), TOPIC, 1, "not there any more: the topic was made again"),
        (KafkaPlace(21, "id", None), UNKNOWN_ID, 0, "was read up to offset 21"),
    ],
)
def test_place_that_is_not_in_this_topic_stops_the_resume(
    place: KafkaPlace, topic: Topic, number: int, says: str
) -> None:
    with pytest.raises(SourceError, match=says) as e:
        _begin(place, topic=topic, number=number)

    assert (e.value.step, e.value.topic, e.value.partition) == ("flow.in", "orders", number)
    assert e.value.offset == place.position


def test_partition_that_is_not_there_has_no_place() -> None:
    assert _begin(None, number=1) == Begin(None)
    assert _begin(KafkaPlace(None, "id", None), number=1) == Begin(None)


@pytest.mark.parametrize(
    "place", [KafkaPlace(7, "id", 3), KafkaPlace(None, "id", None), KafkaPlace(0, None, None)]
)
def test_place_comes_back_from_the_recovery_store_as_it_was(place: KafkaPlace) -> None:
    state = plain(pickle.dumps(kafka_state(place)))

    assert state[:2] == ("kafka", 1)
    assert read_kafka_state(state, "flow.in") == place


@pytest.mark.parametrize("offset", [-2, -1, 0, 7])
def test_offset_of_an_earlier_version_is_a_place_without_an_id(offset: int) -> None:
    assert read_kafka_state(offset, "flow.in") == KafkaPlace(offset, None, None)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (("kafka", 2, 1, "id", 0), "recovery state of version 2"),
        (("sequence", 1, 5), "recovery state of kind sequence"),
        (("kafka", 1, "7", "id", 0), "found recovery state"),
        (("kafka", 1, 7, 7, 0), "found recovery state"),
        (("kafka", 1, -1, "id", 0), "found recovery state"),
        (("kafka", 1, 7, "id"), "found recovery state"),
        (-3, "of type int"),
        (True, "of type bool"),
        (None, "of type NoneType"),
    ],
)
def test_state_that_is_no_place_in_a_topic_is_refused(state: Any, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        read_kafka_state(state, "flow.in")
