"""One attempt to connect to NATS: servers, credentials, TLS."""

import asyncio
import logging
import ssl
import time
from collections.abc import Iterable
from typing import Any, cast

from nats.errors import Error as NatsError
from nats.errors import NoServersError

from ...settings import JetStreamSettings
from .addresses import Address
from .client import Owner, SingleUseClient
from .failures import remedy

__all__ = ["ATTEMPT_SECONDS", "connect", "tls_context"]

log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 2.0
"""For one attempt to connect to one server."""


async def connect(
    owner: Owner,
    settings: JetStreamSettings,
    addresses: Iterable[Address],
    until: float = float("inf"),
) -> tuple[SingleUseClient, Address]:
    """A client that is connected to the first of these servers that takes it.

    :arg until: No attempt begins or lasts longer; there is always one.
    :raises Exception: of many types, when there is none: why, preferably with what the user can do.
    """
    failure: Exception | None = None
    for address in addresses:
        left = until - time.monotonic()
        if failure is not None and left <= 0:
            break
        seconds = max(min(ATTEMPT_SECONDS, left), 0.1)
        try:
            return await _connect(owner, settings, address, seconds), address
        except Exception as error:  # each means that there is no connection to this server
            if failure is None or remedy(failure) is None:
                failure = error
    assert failure is not None, "there is always a configured server"
    raise failure


async def _connect(
    owner: Owner, settings: JetStreamSettings, address: Address, seconds: float
) -> SingleUseClient:
    try:
        return await _connect_as(owner, settings, address, seconds)
    except ssl.SSLCertVerificationError:
        if address.tls_name is None:
            raise
        # Not the common name of a cluster: perhaps the certificate has the address itself.
        return await _connect_as(owner, settings, Address(address.url), seconds)


async def _connect_as(
    owner: Owner, settings: JetStreamSettings, address: Address, seconds: float
) -> SingleUseClient:
    client = SingleUseClient(owner, settings.wants_tls)
    noted: Exception | None = None

    async def note(error: Exception) -> None:
        """nats-py calls this for each failed attempt, and may raise another error."""
        nonlocal noted
        if not isinstance(noted, ssl.SSLError):
            noted = error
        log.debug("NATS: %s", error)

    try:
        async with asyncio.timeout(seconds):
            await client.connect(
                [address.url],
                name=settings.name,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=cast(int, seconds),
                error_cb=note,
                inbox_prefix=settings.inbox_prefix,
                tls_handshake_first=settings.tls_handshake_first,
                **_secrets(settings.renewed(), address),
            )
            # The limits of the account and of the user come before the end of a round trip.
            await client.answered()
    except BaseException as error:
        await client.dispose()
        # When the server refuses our certificate, nats-py often raises only a lost connection.
        certificates = isinstance(noted, ssl.SSLError) and isinstance(error, OSError | NatsError)
        if noted is not None and (certificates or isinstance(error, NoServersError)):
            raise noted from error
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"no answer within {seconds:.3g} s") from error
        raise
    return client


def _secrets(settings: JetStreamSettings, address: Address) -> dict[str, Any]:
    """How we authenticate and encrypt, as options of nats-py.

    Files are read for each connection: credentials and certificates may have been replaced.
    """
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
        if name := settings.tls_hostname or address.tls_name:
            secrets["tls_hostname"] = name
    return secrets


def tls_context(settings: JetStreamSettings) -> ssl.SSLContext:
    """A TLS context: the server is verified, TLS 1.2 or later, our certificate if there is one."""
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_cert_file is not None:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context
