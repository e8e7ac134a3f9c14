import json

import pytest

from bytewax_jetstream.envelope import Outcome, PublishResult
from bytewax_jetstream.jetstream.publisher.encoding import check_topic
from flows.flights.data import Flight, FlightsSource, partition_of, rows
from flows.flights.envelopes import no_tail_number, refused, to_envelope

DEAD_REASON = "no tail number, so no aircraft whose history it could belong to"


@pytest.fixture(scope="module")
def flights() -> list[Flight]:
    return [Flight(row, *line.split(",")) for row, line in enumerate(rows())]


def test_year_is_complete_and_sorted_by_scheduled_departure(flights: list[Flight]) -> None:
    assert len(flights) == 336_776
    scheduled = [flight.scheduled for flight in flights]
    assert scheduled == sorted(scheduled)


def test_event_ids_are_unique_over_the_year(flights: list[Flight]) -> None:
    assert len({to_envelope(flight).event_id for flight in flights}) == len(flights)


def test_rows_without_a_tail_number_are_dead_letters_with_the_reason(flights: list[Flight]) -> None:
    without = [flight for flight in flights if not flight.tailnum]
    assert len(without) == 2_512
    assert all(flight.dep_delay == "" for flight in without)
    envelope = no_tail_number(without[0])
    assert envelope.aggregate_id is None
    assert envelope.headers == {"Reason": DEAD_REASON}


def test_a_refused_envelope_is_a_dead_letter_with_the_reason_and_its_identity() -> None:
    envelope = to_envelope(
        Flight(7, "2013-01-01T10:15Z", "UA", "1545", "N14228", "EWR", "IAH", "", "")
    )
    result = PublishResult(
        outcome=Outcome.REJECTED,
        event_id=envelope.event_id,
        topic=envelope.topic,
        aggregate_id=envelope.aggregate_id,
        event_type=envelope.event_type,
        broker="jetstream",
        stream=None,
        partition=None,
        sequence=None,
        duplicate=None,
        attempts=1,
        ack_seconds=0.1,
        reason="too large",
        code=10054,
        envelope=envelope,
        worker=0,
        epoch=1,
    )
    dead = refused(result)
    assert dead.topic == "flights-dead.refused"
    assert (dead.event_id, dead.payload, dead.headers) == (
        envelope.event_id,
        envelope.payload,
        {"Reason": "too large"},
    )


def test_payloads_are_json_with_the_row_number(flights: list[Flight]) -> None:
    for flight in flights[::97]:
        payload = json.loads(to_envelope(flight).payload or b"")
        assert payload.pop("flight") == int(flight.flight)
        for delay in ("dep_delay", "arr_delay"):
            known = getattr(flight, delay)
            assert payload.pop(delay) == (int(known) if known else None)
        assert payload == {
            key: getattr(flight, key)
            for key in ("row", "scheduled", "carrier", "tailnum", "origin", "dest")
        }


def test_no_value_of_the_year_needs_escaping_in_json_or_in_a_topic(flights: list[Flight]) -> None:
    words = {
        word
        for flight in flights
        for word in (flight.carrier, flight.tailnum, flight.origin, flight.dest)
    }
    assert all(word.isalnum() or not word for word in words)
    for topic in {to_envelope(flight).topic for flight in flights}:
        check_topic(topic)


def test_a_cancelled_flight_is_another_event() -> None:
    flight = Flight(7, "2013-01-01T10:15Z", "UA", "1545", "N14228", "EWR", "IAH", "", "")
    assert to_envelope(flight).event_type == "flight.cancelled"
    assert to_envelope(flight._replace(dep_delay="-2")).event_type == "flight.departed"


@pytest.mark.parametrize("partitions", [1, 2, 4, 7])
def test_every_partition_has_its_share_of_the_year(flights: list[Flight], partitions: int) -> None:
    sizes = [0] * partitions
    for flight in flights:
        sizes[partition_of(flight.tailnum, partitions)] += 1
    assert min(sizes) > len(flights) / partitions * 0.8


def test_partitions_do_not_depend_on_the_process() -> None:
    """Python's own hash of a str differs from process to process."""
    assert [partition_of(tailnum, 4) for tailnum in ("N14228", "N24211", "N619AA", "N804JB")] == [
        2,
        1,
        0,
        2,
    ]


def test_all_partitions_together_have_every_row_once_and_in_order() -> None:
    source = FlightsSource(3, limit=5_000)
    read = {name: read_all(source, name) for name in source.list_parts()}
    assert sorted(row for rows in read.values() for row in rows) == list(range(5_000))
    assert all(rows == sorted(rows) for rows in read.values())


def test_partition_resumes_after_the_last_row_it_emitted() -> None:
    source = FlightsSource(2, limit=5_000)
    part = source.build_part("step", "1 of 2", None)
    assert part.snapshot() == 0
    first = [flight.row for flight in part.next_batch()]
    state = part.snapshot()
    assert read_all(source, "1 of 2", state) == read_all(source, "1 of 2")[len(first) :]
    assert source.resumed == {"1 of 2": state}


def read_all(source: FlightsSource, name: str, state: int | None = None) -> list[int]:
    part = source.build_part("step", name, state)
    read: list[int] = []
    while True:
        try:
            read += [flight.row for flight in part.next_batch()]
        except StopIteration:
            return read
