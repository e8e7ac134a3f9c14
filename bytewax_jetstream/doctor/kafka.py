"""The steps for Kafka: each address by itself, then the cluster as this user sees it."""

import contextlib
import socket
import ssl
import struct
import time
from urllib.parse import urlsplit

from ..errors import ConnectError, JetStreamPipelineError
from ..exit_codes import ExitCode
from ..kafka.probe import Node, Probe
from ..kafka.topics import MAX_MESSAGE, TopicAdmin
from ..planning.kafka import KafkaPlanner
from ..settings import KafkaSettings
from .network import Server, encrypt, open_tcp, speaks_tls
from .report import Report, parts
from .wanted import report_plan

__all__ = ["examine_kafka"]

CORRELATION = 11_259_375
"""A number of ours, which a Kafka broker sends back with its answer."""
HELLO = struct.pack(">hhih", 18, 0, CORRELATION, -1)
"""ApiVersions, version 0, without a client id: a broker answers it before any authentication.
Source: Kafka protocol guide, request header version 1.
"""
MOST_BYTES = 1 << 20


def examine_kafka(settings: KafkaSettings, report: Report) -> None:
    """All steps; a later one is left out when it could only fail for the same reason."""
    works = [_examine_server(settings, server, report) for server in _servers(settings)]
    if not any(works):
        report.skip("authentication", "not looked at: no broker can be used")
        return
    report.excuse_servers()
    try:
        probe = Probe(settings)
        nodes = probe.nodes(time.monotonic() + settings.connect_timeout)
    except ConnectError as error:
        said = error.reason or error.message
        # A broker has answered before, so it is this user or this protocol that it does not take.
        report.fail("authentication", said, _credentials(settings), ExitCode.REFUSED)
        return
    way = f"{settings.sasl} and {_who(settings)}" if settings.sasl else "no credentials"
    report.ok("authentication", f"connected with {way}")
    if not _examine_nodes(nodes, settings, report):
        return
    _examine_rights(probe, settings, report)
    try:
        report_plan(KafkaPlanner(settings).plan(), settings.topic_strategy, report)
        _examine_limits(settings, report)
    except JetStreamPipelineError as error:
        report.fail("topics", *parts(error.message), ExitCode.REFUSED)
    report.skip("clock", "not known: Kafka does not tell its time")


def _servers(settings: KafkaSettings) -> list[Server]:
    urls = {each: urlsplit(f"//{each}") for each in settings.brokers}
    seconds = min(settings.connect_timeout, 5.0)
    return [Server(each, url.hostname or "", url.port or 0, seconds) for each, url in urls.items()]


# One broker


def _examine_server(settings: KafkaSettings, server: Server, report: Report) -> bool:
    """Name, TCP, TLS, protocol; whether the broker can be used."""
    connected = open_tcp(server, report)
    if connected is None:
        return False
    protocol = str(settings.add_config.get("security.protocol", settings.protocol)).upper()
    own = sorted(name for name in settings.add_config if name.startswith("ssl."))
    with contextlib.ExitStack() as stack:
        stack.enter_context(connected)
        if not protocol.endswith("SSL"):
            report.skip("tls", "the settings do not ask for it", server.address)
            return _is_kafka(connected, server, report, is_encrypted=False)
        if own:
            said = f"not looked at: {', '.join(own)} in add_config is for librdkafka only"
            report.skip("tls", said, server.address)
            return True
        encrypted = encrypt(connected, lambda: _context(settings), server.host, server, report)
        if encrypted is None:
            return False
        stack.enter_context(encrypted)
        return _is_kafka(encrypted, server, report, is_encrypted=True)


def _context(settings: KafkaSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    if settings.tls_cert_file is not None:
        password = settings.tls_key_password
        context.load_cert_chain(
            settings.tls_cert_file,
            settings.tls_key_file,
            password=password.get_secret_value() if password is not None else None,
        )
    return context


def _is_kafka(
    connected: socket.socket, server: Server, report: Report, *, is_encrypted: bool
) -> bool:
    """The step `server`: what a Kafka broker answers to its first request."""
    heard, failed = b"", ""
    connected.settimeout(server.seconds)
    try:
        connected.sendall(struct.pack(">i", len(HELLO)) + HELLO)
        while len(heard) < 8 and (data := connected.recv(4096)):
            heard += data
    except OSError as error:
        failed = str(getattr(error, "reason", None) or error.strerror or error)
    if len(heard) >= 8:
        size, correlation = struct.unpack(">ii", heard[:8])
        if correlation == CORRELATION and 0 < size < MOST_BYTES:
            report.ok("server", "it is a Kafka broker", server.address)
            return True
    if is_encrypted and failed:
        said, advice = (
            f"the broker ended the encrypted connection ({failed})",
            "give it tls_cert_file and tls_key_file of a certificate that it accepts",
        )
        report.fail("server", said, advice, ExitCode.REFUSED, server.address)
        return False
    if not is_encrypted and speaks_tls(server):
        said = "it speaks TLS, and the settings do not ask for it"
        advice = "set tls, and tls_ca_file if the certificate is not of a public authority"
        report.fail("server", said, advice, ExitCode.USAGE, server.address)
        return False
    first = heard.splitlines()[0][:60].decode("latin-1") if heard.strip() else ""
    if first:
        said = f"it is not a Kafka broker: it says {first!r}"
    else:
        said = f"it does not answer as a Kafka broker does ({failed or 'it ended the connection'})"
    advice = "correct the port: it must be a listener for clients"
    report.fail("server", said, advice, ExitCode.UNKNOWN, server.address)
    return False


# The cluster


def _examine_nodes(nodes: list[Node], settings: KafkaSettings, report: Report) -> bool:
    """The step `brokers`: a client is sent to the addresses that the brokers name themselves."""
    reached = 0
    for node in nodes:
        seconds = min(settings.connect_timeout, 5.0)
        server = Server(f"{node.host}:{node.port}", node.host, node.port, seconds)
        # Only what fails is of interest: its name and its port were not chosen here.
        found = Report("kafka")
        connected = open_tcp(server, found)
        if connected is not None:
            connected.close()
            reached += 1
            continue
        said = f"broker {node.id} sends its clients to {server.address}: {found.steps[-1].said}"
        advice = "correct its advertised.listeners, or make that address reachable from here"
        report.fail("brokers", said, advice, ExitCode.UNKNOWN)
    if reached == len(nodes):
        report.ok("brokers", f"all {reached} of the cluster can be reached")
    return reached > 0


def _examine_rights(probe: Probe, settings: KafkaSettings, report: Report) -> None:
    """The step `publish`: nothing is written."""
    names = _topics(settings)
    if not names:
        report.skip("publish", "no topics to look at: name them in BYTEWAX_JETSTREAM_KAFKA_TOPICS")
        return
    found = probe.may_write(names, time.monotonic() + settings.connect_timeout)
    for name, allowed in found.items():
        if allowed:
            report.ok("publish", f"this user may write to {name}")
        elif allowed is False:
            said, advice = f"this user may not write to {name}", "grant it DESCRIBE and WRITE"
            report.fail("publish", said, advice, ExitCode.REFUSED)
        else:
            report.skip("publish", f"{name} is not there, or the brokers do not say")


def _examine_limits(settings: KafkaSettings, report: Report) -> None:
    """The step `limits`: the largest message of this flow, and what each topic takes."""
    most = settings.max_message_bytes
    report.ok("limits", f"this flow sends messages of at most {most:,} bytes")
    names = _topics(settings)
    deadline = time.monotonic() + settings.connect_timeout
    topics = TopicAdmin(settings).describe(names, deadline) if names else {}
    for name, topic in topics.items():
        limit = int(topic.config.get(MAX_MESSAGE, most))
        if limit < most:
            said = f"topic {name} takes messages of at most {limit:,} bytes"
            advice = f"lower max_message_bytes, or raise {MAX_MESSAGE}: larger ones are rejected"
            report.warn("limits", said, advice)


def _topics(settings: KafkaSettings) -> list[str]:
    declared = [topic.name for topic in settings.topic_settings]
    return list(dict.fromkeys([*settings.topics, *declared]))


# Words


def _who(settings: KafkaSettings) -> str:
    return "oauth_client_id" if settings.sasl == "OAUTHBEARER" else f"user {settings.user}"


def _credentials(settings: KafkaSettings) -> str:
    if settings.sasl is None:
        return "if the brokers ask for a password, set sasl, user and password"
    if settings.sasl == "OAUTHBEARER":
        return "correct the oauth_… fields in the settings, or let this client in at the brokers"
    return "correct sasl, user and password in the settings, or let this user in at the brokers"
