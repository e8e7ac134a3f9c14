"""`Address`, `Addresses`: which servers to try, in which order, and whose certificate to expect."""

import ipaddress
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["Address", "Addresses"]

DEFAULT_PORT = 4222


class Address(NamedTuple):
    """A server to connect to."""

    url: str
    tls_name: str | None = None
    """The name its certificate must have; None for the host in the URL."""


class Addresses:
    """The servers of the settings, and those that the last server told of.

    Servers come and go under other addresses. So the configured ones are always tried first, and
    a learnt one is forgotten when the next server does not name it.

    :arg tls: Whether the connections are encrypted.
    """

    def __init__(self, configured: Iterable[str], *, tls: bool) -> None:
        self._scheme = "tls" if tls else "nats"
        self._configured = [Address(self._url(server)) for server in configured]
        self._learnt: list[Address] = []
        self._lost: Address | None = None

    def in_order(self) -> list[Address]:
        """Configured servers first; within each kind in random order, so that many clients spread
        over a cluster, and the one that was lost last.
        """
        return [
            address
            for kind in (self._configured, self._learnt)
            for address in sorted(
                random.sample(kind, len(kind)), key=lambda address: address == self._lost
            )
        ]

    def learn(self, told_by: Address, advertised: Sequence[str]) -> None:
        """Forget what other servers advertised, and remember what this one does."""
        self._lost = told_by
        known = {address.url for address in self._configured}
        # Servers advertise IP addresses, and certificates name hosts: like other NATS clients we
        # then expect the name by which we came to the cluster.
        host = _host(told_by.url)
        name = told_by.tls_name or (None if _is_ip(host) else host)
        self._learnt = [
            Address(url, name if _is_ip(_host(url)) else None)
            for url in dict.fromkeys(map(self._url, advertised))
            if url not in known and _host(url)
        ]

    def _url(self, server: str) -> str:
        url = f"{self._scheme}://{server.split('://', 1)[-1]}"
        try:
            return url if urlsplit(url).port else f"{url.rstrip(':/')}:{DEFAULT_PORT}"
        except ValueError:  # the attempt to connect says what is wrong
            return url


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
