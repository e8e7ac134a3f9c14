"""What the library's errors are, and where a message is in what was sent."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from bytewax_jetstream.kafka.producer import error_of, place_of
from bytewax_jetstream.kafka.publisher import FLIGHT


def test_a_fatal_error_is_found_behind_what_the_library_wraps_it_in() -> None:
    fatal = KafkaException(KafkaError(KafkaError._FATAL))

    def served() -> None:
        try:
            raise fatal
        except KafkaException as error:
            raise SystemError("returned a result with an exception set") from error

    with pytest.raises(SystemError) as caught:
        served()
    found = error_of(caught.value)
    assert found is not None
    assert found.code() == KafkaError._FATAL
    assert error_of(BufferError("full")) is None


def test_a_place_is_one_number() -> None:
    places = {place_of(flight, index) for flight in range(1, 5) for index in (0, 1, FLIGHT - 1)}

    assert len(places) == 12
