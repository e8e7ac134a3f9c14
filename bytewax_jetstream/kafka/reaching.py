"""`reach`: the first answer of a cluster, or why there is none; any client of librdkafka asks."""

import time
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException

from ..errors import ConnectError
from ..settings import KafkaSettings
from .error_codes import FINAL_AT_START, STOP_CODES
from .producer import error_of

__all__ = ["Reachable", "reach"]

ATTEMPT = 1.0
"""Seconds of one attempt to reach a broker at the start; short, so that a refused password is
reported at once.
"""


class Reachable(Protocol):
    """A client of librdkafka."""

    @property
    def last_error(self) -> KafkaError | None:
        """The last error of a connection."""

    def list_topics(self, seconds: float) -> Any:
        """The cluster's metadata, from a broker.

        :raises KafkaException: when no broker answers in time.
        """


def reach(client: Reachable, settings: KafkaSettings, deadline: float) -> Any:
    """Try until a broker answers; returns the cluster's metadata. Blocks.

    :raises ConnectError: at the deadline, or at once when waiting does not help.
    """
    while True:
        try:
            return client.list_topics(min(ATTEMPT, max(0.1, deadline - time.monotonic())))
        except KafkaException as error:
            last, found = client.last_error, error_of(error)
            brokers = settings.brokers
            shown = ",".join(brokers)
            if last is not None and last.code() in FINAL_AT_START:
                raise ConnectError(
                    f"no connection to Kafka at {shown} ({last.str()}): {STOP_CODES[last.code()]}",
                    broker="kafka",
                    servers=brokers,
                    reason=last.str(),
                ) from None
            if time.monotonic() > deadline:
                told = last or found
                why = told.str() if told is not None else str(error)
                seconds = settings.connect_timeout
                raise ConnectError(
                    f"no connection to Kafka at {shown} within {seconds:g} s ({why}): check "
                    "that the brokers are running, and whether they require TLS or a password",
                    broker="kafka",
                    servers=brokers,
                    seconds=seconds,
                    reason=why,
                ) from None
