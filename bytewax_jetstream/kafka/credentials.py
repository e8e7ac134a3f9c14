"""`Credentials`: gives a client the password that is in the secrets directory by now."""

import logging
from typing import Any

from confluent_kafka import KafkaError

from ..settings import KafkaSettings

__all__ = ["Credentials"]

log = logging.getLogger(__name__)

REFUSED = frozenset(
    {KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._AUTHENTICATION}  # noqa: SLF001
)


class Credentials:
    """User and password of one client, which may be replaced while it runs.

    librdkafka connects again and again with what it was given first. Its other settings for
    security, such as certificates, it reads when it is made, and never again.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings.renewed()
        self._refused = False

    def note(self, error: KafkaError) -> None:
        """A connection has failed. For a callback of librdkafka: nothing is called on the client,
        because a call from a callback ends the process when another callback follows.
        """
        if error.code() in REFUSED:
            self._refused = True

    def renew(self, client: Any) -> None:
        """If the brokers have refused the password and there is another one, the next attempt is
        made with that.

        :arg client: Of librdkafka; it serves no callbacks meanwhile on this thread.
        """
        if not self._refused:
            return
        self._refused = False
        before, self._settings = self._settings, self._settings.renewed()
        now = self._settings
        if now is before or now.user is None or now.password is None:
            return
        client.set_sasl_credentials(now.user, now.password.get_secret_value())
        log.info("Kafka: the password was refused; trying the one in the secrets directory by now")
