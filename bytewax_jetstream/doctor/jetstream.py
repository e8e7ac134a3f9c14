"""The steps for JetStream: each server by itself, then the account through one connection."""

import asyncio
import json
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConnectError, JetStreamPipelineError
from ..exit_codes import ExitCode
from ..jetstream.connection import Connection, JetStreamApiError
from ..jetstream.connection.connecting import tls_context
from ..jetstream.streams import covers
from ..planning.jetstream import JetStreamPlanner
from ..settings import JetStreamSettings
from .network import PEEK_SECONDS, Server, encrypt, open_tcp, peek, speaks_tls, tls_refusal
from .report import Report, parts
from .wanted import report_plan

__all__ = ["examine_jetstream"]

DEFAULT_PORT = 4222
SKEW = timedelta(seconds=5)
"""Clocks that differ by more are worth a warning."""
FULL = 0.9
"""Of a limit: what is used above that is worth a warning."""


def examine_jetstream(settings: JetStreamSettings, report: Report) -> None:
    """All steps; a later one is left out when it could only fail for the same reason."""
    works = [_examine_server(settings, server, report) for server in _servers(settings)]
    if not any(works):
        report.skip("authentication", "not looked at: no server can be used")
        return
    report.excuse_servers()
    asyncio.run(_examine_account(settings, report))


def _servers(settings: JetStreamSettings) -> list[Server]:
    seconds = min(settings.connect_timeout, 5.0)
    urls = {each: urlsplit(f"//{each.split('://', 1)[-1]}") for each in settings.servers}
    return [
        Server(
            each,
            url.hostname or "",
            url.port or DEFAULT_PORT,
            seconds,
            not settings.tls_handshake_first,
        )
        for each, url in urls.items()
    ]


# One server


def _examine_server(settings: JetStreamSettings, server: Server, report: Report) -> bool:
    """Name, TCP, protocol, TLS; whether the server can be used."""
    connected = open_tcp(server, report)
    if connected is None:
        return False
    with connected:
        name = settings.tls_hostname or server.host
        if not settings.tls_handshake_first:
            info = _info(connected, server, report)
            if info is None:
                return False
            if settings.wants_tls and not (info.get("tls_required") or info.get("tls_available")):
                report.fail(
                    "tls",
                    "the server does not offer TLS, and the settings require it",
                    "turn TLS on at the server, or leave out tls, tls:// and the tls_… files",
                    ExitCode.REFUSED,
                    server.address,
                )
                return False
            if info.get("tls_required") and not settings.wants_tls:
                report.fail(
                    "tls",
                    "the server requires TLS, and the settings do not ask for it",
                    "set tls, and tls_ca_file if the certificate is not of a public authority",
                    ExitCode.USAGE,
                    server.address,
                )
                return False
            if not settings.wants_tls:
                report.skip("tls", "neither the settings nor the server ask for it", server.address)
                return True
        encrypted = encrypt(connected, lambda: tls_context(settings), name, server, report)
        if encrypted is None:
            return False
        with encrypted:
            if settings.tls_handshake_first:
                return _info(encrypted, server, report) is not None
    return True


def _info(connected: socket.socket, server: Server, report: Report) -> dict[str, Any] | None:
    """The step `server`: what a NATS server says first."""
    try:
        heard = peek(connected, min(PEEK_SECONDS, server.seconds))
    except ssl.SSLError as error:
        said, advice = tls_refusal(str(error.reason or error))
        report.fail("tls", said, advice, ExitCode.REFUSED, server.address)
        return None
    if heard.startswith(b"INFO "):
        info = _parsed(heard[5:])
        if "version" in info:
            cluster = f", cluster {info['cluster']}" if info.get("cluster") else ""
            report.ok("server", f"nats-server {info['version']}{cluster}", server.address)
            return info
    if not heard and server.speaks_first and speaks_tls(server):
        said = "it says nothing in clear, but speaks TLS"
        advice = "if it is a NATS server with handshake_first, set tls_handshake_first"
        report.fail("server", said, advice, ExitCode.USAGE, server.address)
        return None
    first = heard.splitlines()[0][:60].decode("latin-1") if heard.strip() else ""
    said = f"it is not a NATS server: it says {first!r}" if first else "it says nothing"
    advice = f"correct the port: a NATS server for clients is by default on {DEFAULT_PORT}"
    report.fail("server", said, advice, ExitCode.UNKNOWN, server.address)
    return None


def _parsed(heard: bytes) -> dict[str, Any]:
    try:
        info = json.loads(heard)
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}


# The account


async def _examine_account(settings: JetStreamSettings, report: Report) -> None:
    """From authentication to the clock."""
    connection = Connection(settings, on_up=lambda: None, on_down=lambda reason: None)
    try:
        await connection.open()
    except ConnectError as error:
        reason = error.reason or error.message
        code = ExitCode.REFUSED if error.seconds is None else ExitCode.UNKNOWN
        advice = _credentials(settings)
        if "certificate" in reason.lower() or "SSL" in reason:
            advice = "give the server tls_cert_file and tls_key_file of a certificate that it takes"
        report.fail("authentication", reason.removeprefix("nats: "), advice, code)
        return
    report.ok("authentication", f"connected with {_way(settings)}")
    try:
        await _examine_connected(connection, settings, report)
    finally:
        await connection.close()


async def _examine_connected(
    connection: Connection, settings: JetStreamSettings, report: Report
) -> None:
    try:
        inbox = connection.new_inbox()
        await connection.subscribe(inbox, lambda *message: None)
        connection.unsubscribe(inbox)
        report.ok("inbox", f"answers arrive on {settings.inbox_prefix}.>")
    except ConnectError as error:
        report.fail("inbox", *parts(error.message), ExitCode.REFUSED)
        return
    listed = await _list_streams(connection, settings, report)
    for topic in _topics(settings):
        await _examine_topic(connection, topic, settings, report)
    if not _topics(settings):
        report.skip("publish", "no topics to look at: name them in BYTEWAX_JETSTREAM_TOPICS")
    if listed is None:
        return  # what follows needs the same right
    try:
        plan = await asyncio.to_thread(JetStreamPlanner(settings).plan)
    except JetStreamPipelineError as error:
        report.fail("streams", *parts(error.message), ExitCode.REFUSED)
    else:
        report_plan(plan, settings.stream_strategy, report)
    await _examine_limits(connection, settings, listed, report)
    _examine_clock(listed, report)


async def _list_streams(
    connection: Connection, settings: JetStreamSettings, report: Report
) -> list[dict[str, Any]] | None:
    """The step `api`: the streams of the account, as far as the first page goes."""
    before = datetime.now(UTC)
    try:
        page = await connection.request("STREAM.LIST", {"offset": 0})
    except JetStreamApiError as error:
        advice = "enable JetStream for this account, or correct the user in the settings"
        report.fail("api", error.message, advice, ExitCode.REFUSED)
        return None
    except ConnectError as error:
        said, advice = parts(error.message)
        if settings.stream_strategy == "skip" and error.reason is not None:
            report.warn("api", said, "allow it, or nothing can be checked before the first message")
            return None
        code = ExitCode.REFUSED if error.seconds is None else ExitCode.UNKNOWN
        report.fail("api", said, advice, code)
        return None
    middle = before + (datetime.now(UTC) - before) / 2
    streams = [{**each, "asked": middle} for each in page.get("streams") or ()]
    count = page.get("total", len(streams))
    report.ok("api", f"{settings.js_prefix} answers: {count} streams")
    return streams


def _topics(settings: JetStreamSettings) -> list[str]:
    """Subjects to which a message can be published: those with a wildcard are not."""
    declared = [subject for stream in settings.streams for subject in stream.subjects]
    named = dict.fromkeys([*settings.topics, *declared])
    return [each for each in named if "*" not in each and ">" not in each]


async def _examine_topic(
    connection: Connection, topic: str, settings: JetStreamSettings, report: Report
) -> None:
    """The step `publish`, with a message that no stream stores."""
    seconds = min(2.0, settings.connect_timeout)
    try:
        await connection.ask(topic, {"Nats-Expected-Stream": "..."}, seconds)
    except ConnectError as error:
        if error.reason is not None and "Permissions Violation" in error.reason:
            advice = f"allow this user to publish on {topic}"
            report.fail("publish", error.reason, advice, ExitCode.REFUSED)
            return
    except ValueError:  # not an answer of JetStream
        pass
    report.ok("publish", f"this user may publish on {topic}")


async def _examine_limits(
    connection: Connection,
    settings: JetStreamSettings,
    streams: list[dict[str, Any]],
    report: Report,
) -> None:
    report.ok("limits", f"a message may have {connection.max_payload:,} bytes")
    try:
        account = await connection.request("INFO")
    except JetStreamPipelineError as error:
        report.skip("limits", f"those of the account are not known: {error.message}")
    else:
        _examine_account_limits(account, report)
    topics = _topics(settings)
    for each in streams:
        config, state = each["config"], each.get("state", {})
        ours = config["name"] in {stream.name for stream in settings.streams} or any(
            covers(subject, topic) for subject in config.get("subjects") or () for topic in topics
        )
        if ours:
            _examine_stream(config, state, report)


def _examine_account_limits(account: Mapping[str, Any], report: Report) -> None:
    tiers = account.get("tiers") or {"": account}
    for tier, each in tiers.items():
        of = f" of tier {tier}" if tier else ""
        limits = each.get("limits", {})
        for used, limit, what in (
            (each.get("storage", 0), limits.get("max_storage", -1), "bytes of file storage"),
            (each.get("memory", 0), limits.get("max_memory", -1), "bytes of memory storage"),
            (each.get("streams", 0), limits.get("max_streams", -1), "streams"),
        ):
            if limit > 0:
                said = f"{used:,} of {limit:,} {what}{of} are used"
                if used >= FULL * limit:
                    report.warn("limits", said, "raise the limit of the account, or free some")
                else:
                    report.ok("limits", said)


def _examine_stream(config: Mapping[str, Any], state: Mapping[str, Any], report: Report) -> None:
    name = config["name"]
    for used, limit, what in (
        (state.get("messages", 0), config.get("max_msgs", -1), "messages"),
        (state.get("bytes", 0), config.get("max_bytes", -1), "bytes"),
    ):
        if limit <= 0 or used < FULL * limit:
            continue
        said = f"stream {name} has {used:,} of at most {limit:,} {what}"
        if config.get("discard") == "new":
            advice = "raise the limit or remove messages, or new ones will be refused"
        else:
            advice = "raise the limit, or the oldest messages are removed for new ones"
        report.warn("limits", said, advice)


def _examine_clock(streams: list[dict[str, Any]], report: Report) -> None:
    told = next((each for each in streams if each.get("ts")), None)
    if told is None:
        report.skip("clock", "not known: a server tells its time with a stream, and there is none")
        return
    # Python reads microseconds, and the server writes nanoseconds.
    server = datetime.fromisoformat(f"{told['ts'].rstrip('Z')[:26]}+00:00")
    skew = server - told["asked"]
    seconds = abs(skew.total_seconds())
    if abs(skew) > SKEW:
        which = "ahead of" if skew > timedelta(0) else "behind"
        advice = "set both clocks (NTP): times to live, schedules, certificates and tokens need it"
        report.warn("clock", f"the server is {seconds:.0f} s {which} this machine", advice)
    else:
        report.ok("clock", f"the server and this machine differ by {seconds:.1f} s")


# Words


def _way(settings: JetStreamSettings) -> str:
    if settings.credentials_file is not None:
        return "credentials_file"
    if settings.nkey_seed is not None:
        return "nkey_seed"
    if settings.token is not None:
        return "token"
    return "user and password" if settings.user is not None else "no credentials"


def _credentials(settings: JetStreamSettings) -> str:
    way = _way(settings)
    if way == "no credentials":
        return "set user and password, token, nkey_seed or credentials_file, as the server asks"
    return f"correct {way} in the settings, or let this user in at the server"
