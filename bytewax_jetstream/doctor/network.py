"""Names, TCP and TLS, looked at one after the other, so that the first that fails is known."""

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from ..exit_codes import ExitCode
from .report import Report

__all__ = ["Server", "encrypt", "open_tcp", "peek", "speaks_tls", "tls_refusal"]

PEEK_SECONDS = 2.0
"""How long a server is waited for that has to speak first."""
SOON_DAYS = 14
"""A certificate that expires within so many days is worth a warning."""
NO_TIME_CHECK = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name."""
EXPIRED, NOT_YET, OTHER_NAME, OTHER_ADDRESS = 10, 9, 62, 64
"""OpenSSL's X509_V_ERR_… codes."""


class Server(NamedTuple):
    """One of the addresses in the settings."""

    address: str
    """As it stands there."""
    host: str
    port: int
    seconds: float
    """How long each step may take."""
    speaks_first: bool = False
    """Whether it says something in clear before an encrypted connection begins."""


def open_tcp(server: Server, report: Report) -> socket.socket | None:
    """The steps `name` and `tcp`; returns a connection, or None when one of them failed."""
    addresses = _resolve(server, report)
    if addresses is None:
        return None
    began, failed = time.monotonic(), ""
    for address in addresses:
        try:
            connected = socket.create_connection((address, server.port), server.seconds)
        except OSError as error:
            failed = f"{address} port {server.port}: {error.strerror or error}"
            continue
        took = (time.monotonic() - began) * 1000
        report.ok("tcp", f"connected to {address} in {took:.0f} ms", server.address)
        return connected
    report.fail(
        "tcp",
        failed,
        f"check that the server is running and listens on port {server.port}, and that no firewall "
        "or network policy is between",
        ExitCode.UNKNOWN,
        server.address,
    )
    return None


def _resolve(server: Server, report: Report) -> list[str] | None:
    answer: queue.Queue[list[str] | OSError] = queue.Queue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
            answer.put(list(dict.fromkeys(str(each[4][0]) for each in found)))
        except (OSError, UnicodeError) as error:  # a label that is too long
            answer.put(OSError(str(error)) if isinstance(error, UnicodeError) else error)

    # On a thread that nobody waits for: the system's resolver knows no deadline.
    threading.Thread(target=look_up, daemon=True).start()
    advice = "correct the name in the settings, or the DNS"
    try:
        found = answer.get(timeout=server.seconds)
    except queue.Empty:
        said = f"no answer about {server.host} within {server.seconds:g} s"
        report.fail("name", said, f"check the DNS, or {advice}", ExitCode.UNKNOWN, server.address)
        return None
    if isinstance(found, OSError):
        said = f"{server.host} has no address ({found.strerror or found})"
        report.fail("name", said, advice, ExitCode.UNKNOWN, server.address)
        return None
    said = "is an address" if found == [server.host] else f"is {', '.join(found)}"
    report.ok("name", f"{server.host} {said}", server.address)
    return found


def peek(connected: socket.socket, seconds: float = PEEK_SECONDS) -> bytes:
    """The first line, or as much as comes in that time; empty when the peer says nothing.

    :raises ssl.SSLError: when an encrypted peer refuses us: with TLS 1.3 it says so only then.
    """
    heard = b""
    end = time.monotonic() + seconds
    try:
        while b"\n" not in heard and len(heard) < 65_536:
            connected.settimeout(max(0.01, end - time.monotonic()))
            data = connected.recv(65_536)
            if not data:
                break
            heard += data
            if time.monotonic() > end:
                break
    except ssl.SSLError:
        raise
    except OSError:  # it is gone, or says no more
        pass
    return heard


def speaks_tls(server: Server) -> bool:
    """Whether a new connection to that address can be encrypted, whatever its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        _handshake(server._replace(speaks_first=False), context, server.host).close()
    except ssl.SSLError as error:
        # It may ask for a certificate of ours.
        return "ALERT" in str(error).upper() and "WRONG_VERSION" not in str(error).upper()
    except OSError:
        return False
    return True


def encrypt(
    connected: socket.socket,
    make: Callable[[], ssl.SSLContext],
    name: str,
    server: Server,
    report: Report,
) -> ssl.SSLSocket | None:
    """The step `tls`: encrypt a connection, and look at the certificate of the server.

    :arg make: Makes the context that the flow would use.
    :arg name: The name that the certificate must have.
    """
    try:
        context = make()
    except OSError as error:  # ssl.SSLError is one
        said = f"the certificate files cannot be used ({error})"
        advice = "correct tls_ca_file, tls_cert_file and tls_key_file in the settings"
        report.fail("tls", said, advice, ExitCode.USAGE, server.address)
        return None
    connected.settimeout(server.seconds)
    try:
        encrypted = context.wrap_socket(connected, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        said, advice = _mistrust(error, make, name, server)
        report.fail("tls", said, advice, ExitCode.REFUSED, server.address)
        return None
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        said, advice = tls_refusal(str(reason))
        report.fail("tls", said, advice, ExitCode.REFUSED, server.address)
        return None
    certificate = cast(dict[str, Any], encrypted.getpeercert() or {})
    until = _until(certificate)
    said = f"{encrypted.version()}, the certificate is valid for {name}"
    if until is not None:
        said += f" until {until:%Y-%m-%d}"
        left = (until - datetime.now(UTC)).days
        if left < SOON_DAYS:
            advice = f"renew the certificate of the server: it expires in {left} days"
            report.warn("tls", said, advice, server.address)
            return encrypted
    report.ok("tls", said, server.address)
    return encrypted


def _handshake(server: Server, context: ssl.SSLContext, name: str) -> ssl.SSLSocket:
    connected = socket.create_connection((server.host, server.port), server.seconds)
    try:
        if server.speaks_first:
            peek(connected)
            connected.settimeout(server.seconds)
        return context.wrap_socket(connected, server_hostname=name)
    except BaseException:
        connected.close()
        raise


def tls_refusal(reason: str) -> tuple[str, str]:
    """Why no encrypted connection came about, and what to do."""
    plain = reason.upper()
    if "WRONG_VERSION_NUMBER" in plain or "UNEXPECTED_MESSAGE" in plain or "RECORD" in plain:
        return (
            f"what answers does not speak TLS ({reason})",
            "turn TLS on at the server, correct the port, or leave tls and the tls_… files out",
        )
    if "CERTIFICATE" in plain or "HANDSHAKE_FAILURE" in plain:
        return (
            f"the server refuses us ({reason})",
            "give it tls_cert_file and tls_key_file of a certificate that it accepts",
        )
    return (
        f"the handshake failed ({reason})",
        "check that the server speaks TLS on this port, and that it accepts our certificate",
    )


def _mistrust(
    error: ssl.SSLCertVerificationError,
    make: Callable[[], ssl.SSLContext],
    name: str,
    server: Server,
) -> tuple[str, str]:
    """Why a certificate is not trusted, and what to do. It is read on a second connection, on which
    nothing is sent.
    """
    if error.verify_code == EXPIRED:
        until = _until(_certificate(make, name, server, is_expired=True))
        when = f" on {until:%Y-%m-%d %H:%M} UTC" if until is not None else ""
        return (
            f"the certificate of the server expired{when}",
            "renew it, or correct the clock of this machine",
        )
    if error.verify_code == NOT_YET:
        return (
            "the certificate of the server is not valid yet",
            "correct the clock of this machine, or the certificate",
        )
    if error.verify_code in (OTHER_NAME, OTHER_ADDRESS):
        names = _names(_certificate(make, name, server))
        of = f"it is for {', '.join(names)}" if names else "it has no name"
        return (
            f"the certificate of the server is not valid for {name}: {of}",
            "use one of these names in the settings, or add this one to the certificate",
        )
    return (
        f"the certificate of the server is not trusted ({error.verify_message})",
        "set tls_ca_file to the certificate of the authority that issued it",
    )


def _certificate(
    make: Callable[[], ssl.SSLContext],
    name: str,
    server: Server,
    *,
    is_expired: bool = False,
) -> dict[str, Any]:
    """A certificate of the same authority, whatever its name or its date."""
    context = make()
    context.check_hostname = False
    if is_expired:
        context.verify_flags |= NO_TIME_CHECK
    try:
        with _handshake(server, context, name) as encrypted:
            return cast(dict[str, Any], encrypted.getpeercert() or {})
    except OSError:  # a server that speaks first, or that is gone
        return {}


def _until(certificate: dict[str, Any]) -> datetime | None:
    if "notAfter" not in certificate:
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)


def _names(certificate: dict[str, Any]) -> list[str]:
    return [str(value) for _, value in certificate.get("subjectAltName", ())]
