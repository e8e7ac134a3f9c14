"""One attempt to connect to NATS: servers, credentials, TLS."""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from typing import Any, cast

from nats.errors import Error as NatsError

from ...settings import JetStreamSettings
from .client import Owner, SingleUseClient

__all__ = ["connect", "tls_context"]

log = logging.getLogger(__name__)

PING_INTERVAL = 2
"""Seconds between pings; a server that answers none of three is given up."""


async def connect(
    owner: Owner, settings: JetStreamSettings, known_servers: Sequence[str], seconds: float
) -> SingleUseClient:
    """A client that is connected to one of these servers, as the settings say.

    :arg seconds: For each of the servers.
    """
    client = SingleUseClient(owner, settings.wants_tls)
    servers = [_with_scheme(server, settings.wants_tls) for server in known_servers]
    secrets = _secrets(settings)
    refused: ssl.SSLError | None = None

    async def note(error: Exception) -> None:
        """nats-py calls this for each failed attempt, and raises only the last error."""
        nonlocal refused
        if isinstance(error, ssl.SSLError):
            refused = error
        log.debug("NATS: %s", error)

    try:
        await asyncio.wait_for(
            client.connect(
                servers,
                name=settings.name,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=cast(int, max(seconds, 0.1)),
                ping_interval=PING_INTERVAL,
                max_outstanding_pings=2,
                error_cb=note,
                tls_handshake_first=settings.tls_handshake_first,
                **secrets,
            ),
            max(seconds, 0.1) * len(servers),
        )
    except BaseException as error:
        await client.dispose()
        # When the server refuses our certificate, nats-py often raises only a lost connection.
        if refused is not None and isinstance(error, OSError | NatsError):
            raise refused from error
        raise
    return client


def _secrets(settings: JetStreamSettings) -> dict[str, Any]:
    """How we authenticate and encrypt, as options of nats-py."""
    secrets: dict[str, Any] = {}
    if settings.user is not None and settings.password is not None:
        secrets = {"user": settings.user, "password": settings.password.get_secret_value()}
    elif settings.token is not None:
        secrets = {"token": settings.token.get_secret_value()}
    elif settings.nkey_seed is not None:
        secrets = {"nkeys_seed_str": settings.nkey_seed.get_secret_value()}
    elif settings.credentials_file is not None:
        secrets = {"user_credentials": str(settings.credentials_file)}
    if settings.wants_tls:
        secrets["tls"] = tls_context(settings)
        if settings.tls_hostname:
            secrets["tls_hostname"] = settings.tls_hostname
    return secrets


def _with_scheme(server: str, tls: bool) -> str:
    host = server.split("://", 1)[-1]
    return f"{'tls' if tls else 'nats'}://{host}"


def tls_context(settings: JetStreamSettings) -> ssl.SSLContext:
    """A TLS context: the server is verified, TLS 1.2 or later, our certificate if there is one."""
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_cert_file is not None:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context
