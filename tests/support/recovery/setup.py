"""The real servers of one cycle, and the links to them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

from bytewax_jetstream.testing import KafkaServer, NatsCluster, NatsServer
from tests.support.proxy import Proxy

__all__ = ["Broker", "Setup", "opened"]

Broker = Literal["jetstream", "cluster", "kafka"]
"""One nats-server; three of them, and a stream with three replicas; one Kafka broker."""


class Setup(NamedTuple):
    """What a fault can happen to."""

    broker: Broker
    server: Any
    """What a client connects to that is not behind the links."""
    servers: Sequence[Any]
    """Each of them can be killed, paused and started."""
    proxies: Sequence[Proxy]
    """One before each server, or none at all."""
    through: str | None
    """What the dataflow connects to, if there are proxies."""


@contextmanager
def opened(broker: Broker, link: int | None) -> Iterator[Setup]:
    """Start servers of a cycle's own.

    :arg link: Bytes a second of the link to each server; None for no proxy.
    """
    with ExitStack() as stack:
        if broker == "kafka":
            yield _kafka(stack, link)
        else:
            yield _jetstream(stack, link, broker)


def _kafka(stack: ExitStack, link: int | None) -> Setup:
    if link is None:
        server = stack.enter_context(KafkaServer())
        return Setup("kafka", server, [server], [], None)
    proxy = stack.enter_context(Proxy("kafka://127.0.0.1:1", opaque=True, rate=link))
    server = stack.enter_context(KafkaServer(proxied_as=proxy.port))
    proxy.aim(f"kafka://{server.proxied}")
    return Setup("kafka", server, [server], [proxy], f"127.0.0.1:{proxy.port}")


def _jetstream(stack: ExitStack, link: int | None, broker: Broker) -> Setup:
    if broker == "cluster":
        server: NatsServer | NatsCluster = stack.enter_context(NatsCluster())
    else:
        server = stack.enter_context(NatsServer())
    servers = server.servers if isinstance(server, NatsCluster) else [server]
    if link is None:
        return Setup(broker, server, servers, [], None)
    proxies = [stack.enter_context(Proxy(each.url, rate=link)) for each in servers]
    for proxy in proxies:
        proxy.answers.changes = _without_addresses
    return Setup(broker, server, servers, proxies, ",".join(proxy.url for proxy in proxies))


def _without_addresses(frame: bytes) -> bytes:
    """What a server says of itself, without the other servers: they would be reached past the
    links.
    """
    if not frame.startswith(b"INFO "):
        return frame
    said = json.loads(frame[len(b"INFO ") :])
    said.pop("connect_urls", None)
    return b"INFO " + json.dumps(said).encode() + b"\r\n"
