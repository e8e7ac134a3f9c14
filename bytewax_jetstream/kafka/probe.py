"""`Probe`: what a cluster says of itself and of this user, without a producer."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient

from ..settings import KafkaSettings
from .config import accepted, connection
from .reaching import reach

__all__ = ["Node", "Probe"]


class Node(NamedTuple):
    """A broker, by the address that it gives to its clients."""

    id: int
    host: str
    port: int


class Probe:
    """Asks a cluster; every call blocks until it answers, or its deadline passes.

    :raises ConnectError: when librdkafka does not accept the settings.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._last: KafkaError | None = None
        config: dict[str, Any] = {
            **connection(settings),
            "allow.auto.create.topics": False,
            "log_level": 0,
            "error_cb": self._note,
        }
        with accepted(settings):
            self._client = AdminClient(config)

    @property
    def last_error(self) -> KafkaError | None:
        """The last error of a connection; librdkafka reconnects by itself."""
        self._client.poll(0)
        return self._last

    def list_topics(self, seconds: float) -> Any:
        """The cluster's metadata, from a broker."""
        return self._client.list_topics(timeout=seconds)

    def nodes(self, deadline: float) -> list[Node]:
        """The brokers, as clients are sent to them.

        :raises ConnectError: when no broker answers, or it lets this user not in.
        """
        found = reach(self, self._settings, deadline)
        return [Node(each.id, each.host, each.port) for each in found.brokers.values()]

    def may_write(self, names: Sequence[str], deadline: float) -> dict[str, bool | None]:
        """Whether this user may publish to each of these topics; None if the topic is not there, or
        the brokers do not say.
        """
        asked = self._client.describe_topics(
            TopicCollection(list(names)),
            include_authorized_operations=True,
            request_timeout=max(0.1, deadline - time.monotonic()),
        )
        found: dict[str, bool | None] = {}
        for name, future in asked.items():
            try:
                described = future.result(max(0.1, deadline - time.monotonic()) + 1)
            except TimeoutError:
                found[name] = None
            except KafkaException as error:
                denied = error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
                found[name] = False if denied else None
            else:
                rights = described.authorized_operations
                found[name] = None if rights is None else AclOperation.WRITE in rights
        return found

    def _note(self, error: KafkaError) -> None:
        self._last = error
