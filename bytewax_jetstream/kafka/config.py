"""`KafkaSettings` as librdkafka properties: for every client, and for the producer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaException

from ..errors import ConnectError
from ..settings import KafkaSettings

__all__ = ["WINDOW", "accepted", "connection", "producer"]

WINDOW = 10_000
"""Most messages that librdkafka holds at once: enough for many round trips, and few enough that a
message of another lane is sent soon.

Half of the library's own queue, so that the queue is never full.
"""


LOG_INFO = 6
"""The library's level for lines about closed connections."""


@contextmanager
def accepted(settings: KafkaSettings) -> Iterator[None]:
    """Make a client of librdkafka in here.

    :raises ConnectError: when the library does not accept its properties.
    """
    try:
        yield
    except (KafkaException, TypeError, ValueError) as error:
        raise ConnectError(
            f"librdkafka does not accept the settings ({error}): correct them",
            broker="kafka",
            servers=settings.brokers,
            reason=str(error),
        ) from None


def connection(settings: KafkaSettings) -> dict[str, Any]:
    """Properties of every client: addresses, security, and the user's `add_config`, which wins;
    the settings have refused what contradicts their fields.
    """
    settings = settings.renewed()
    config: dict[str, Any] = {
        "bootstrap.servers": ",".join(settings.brokers),
        "client.id": settings.name,
        "security.protocol": settings.protocol,
        # Without it the library uses the certificates of the system.
        "ssl.ca.location": settings.tls_ca_file and str(settings.tls_ca_file),
        "ssl.certificate.location": settings.tls_cert_file and str(settings.tls_cert_file),
        "ssl.key.location": settings.tls_key_file and str(settings.tls_key_file),
        "ssl.key.password": settings.tls_key_password
        and settings.tls_key_password.get_secret_value(),
        "sasl.mechanisms": settings.sasl,
        "sasl.username": settings.user,
        "sasl.password": settings.password and settings.password.get_secret_value(),
    }
    if settings.sasl == "OAUTHBEARER":
        config |= {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": settings.oauth_token_url,
            "sasl.oauthbearer.client.id": settings.oauth_client_id,
            "sasl.oauthbearer.client.secret": settings.oauth_client_secret
            and settings.oauth_client_secret.get_secret_value(),
            "sasl.oauthbearer.scope": settings.oauth_scope,
        }
    return {
        name: value for name, value in config.items() if value is not None
    } | settings.add_config


def producer(settings: KafkaSettings, *, alone: bool = False) -> dict[str, Any]:
    """Properties of a producer that loses, doubles and reorders nothing while it lives, and never
    gives a message up: the dispatch does, when a message was not reported for too long.

    When the brokers refuse a request for good, it stops: it sends nothing that is behind it.
    `add_config` may change the defaults, but not what the results promise.

    :arg alone: Each message goes in a request of its own; a refused one stops nothing.
    """
    pool = settings.pool
    defaults = {
        "linger.ms": settings.linger * 1000,
        "compression.type": settings.compression,
        "batch.size": settings.batch_bytes,
        "message.max.bytes": max(settings.max_message_bytes, 1000),
        # After the ack timeout a broker says that its replicas did not answer; half a second later
        # the connection to a silent broker is given up.
        "request.timeout.ms": max(1, round(pool.ack_timeout * 1000)),
        "socket.timeout.ms": round(pool.ack_timeout * 1000) + 500,
        # Reconnect soon after a broker is back: by default it could take ten seconds.
        "reconnect.backoff.max.ms": 1000,
        # As the Java client does: a key goes where another producer of the topic puts it, and an
        # empty key is a key.
        "partitioner": settings.partitioner,
        # A topic was checked before its first message, so an unknown one was deleted since.
        "topic.metadata.propagation.max.ms": min(10_000, round(pool.delivery_timeout * 250)),
    }
    promised = {
        "enable.idempotence": True,
        "acks": "all",
        "message.timeout.ms": 0,  # none: a slow broker must not end a delivery
        "allow.auto.create.topics": False,
        "queue.buffering.max.messages": 2 * WINDOW,
        "queue.buffering.max.kbytes": 2_097_151,
        "enable.gapless.guarantee": not alone,
        # Such a line tells that requests may have been stored, and not answered.
        "log.connection.close": True,
        "log_level": max(LOG_INFO, int(settings.add_config.get("log_level", LOG_INFO))),
    }
    if alone:
        promised["batch.num.messages"] = 1
    return defaults | connection(settings) | promised
