"""The settings in librdkafka's words."""

from typing import Any

from ..settings import KafkaSettings

__all__ = ["WINDOW", "connection", "producer"]

WINDOW = 10_000
"""Messages with librdkafka at once: many round trips' worth, yet another lane's message is soon
through it.

Half of what its queue takes, so that it is never full."""


def connection(settings: KafkaSettings) -> dict[str, Any]:
    """What every client of this cluster needs: addresses, security, and the user's own properties."""
    config: dict[str, Any] = {
        "bootstrap.servers": ",".join(settings.brokers),
        "client.id": settings.name,
        "security.protocol": _protocol(settings),
        # The one that is not given is the library's own: the system's certificates.
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


def producer(settings: KafkaSettings) -> dict[str, Any]:
    """A producer that neither loses, doubles nor re-orders within its lifetime, and gives up in
    time.
    """
    pool = settings.pool
    # It looks for messages that are due once a second, so that much earlier: then results come by
    # the timeout.
    give_up = max(pool.delivery_timeout - 1, pool.delivery_timeout / 2)
    defaults = {
        "linger.ms": settings.linger * 1000,
        "compression.type": settings.compression,
        "batch.size": settings.batch_bytes,
        "message.max.bytes": max(settings.max_message_bytes, 1000),
        # The broker says by then that its replicas have not answered, the connection a little later
        # that it has not.
        "request.timeout.ms": max(1, round(pool.ack_timeout * 1000)),
        "socket.timeout.ms": round(pool.ack_timeout * 1000) + 500,
        # Back as soon as a broker is: the default of ten seconds would be a pause of that length.
        "reconnect.backoff.max.ms": 1000,
        # A topic was checked before its first message, so one that is unknown now is gone.
        "topic.metadata.propagation.max.ms": min(10_000, round(give_up * 500)),
    }
    promised = {
        "enable.idempotence": True,
        "acks": "all",
        "message.timeout.ms": round(give_up * 1000),
        "allow.auto.create.topics": False,
        "queue.buffering.max.messages": 2 * WINDOW,
        "queue.buffering.max.kbytes": 2_097_151,
    }
    return defaults | connection(settings) | promised


def _protocol(settings: KafkaSettings) -> str:
    return ("SASL_" if settings.sasl else "") + ("SSL" if settings.wants_tls else "PLAINTEXT")
