"""Errors of the library, and the number of each message that was sent."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from bytewax_jetstream.kafka.producer import error_of, place_of
from bytewax_jetstream.kafka.publisher import MAX_SEND


def test_fatal_error_is_found_inside_the_librarys_own_exception() -> None:
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


def test_each_sent_message_has_its_own_number() -> None:
    numbers = {place_of(number, index) for number in range(1, 5) for index in (0, 1, MAX_SEND - 1)}

    assert len(numbers) == 12
