"""Headers that NATS cannot carry: how they are written, and read back as they were.

NATS carries header names of a few ASCII characters, and values of text without line ends or blanks
around them. Other names and values are percent-encoded, and `Envelope-Encoded` lists their names:

    Envelope-Encoded: my%20header,Retries
    my%20header: plain
    Retries: %00%00%00%03

What is not listed is not decoded, so a plain value with a percent sign stays as it is. A value of
`%` alone, which encoding never gives, is null. Two more fields of an envelope have headers: a
tombstone has `Envelope-Payload: null`, a timestamp is in `Envelope-Timestamp`.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..envelope import HeaderPairs, HeaderValue

__all__ = [
    "NULL_PAYLOAD",
    "PREFIX",
    "Decoded",
    "decode_pairs",
    "encode_name",
    "encode_value",
    "encoded_line",
    "is_safe",
    "timestamp_line",
]

PREFIX = b"\nEnvelope-"
"""How the lines of the three headers begin; they are left out of what users read."""
ENCODED = "Envelope-Encoded"
PAYLOAD = "Envelope-Payload"
TIMESTAMP = "Envelope-Timestamp"
NULL = "null"
NULL_PAYLOAD = b"Envelope-Payload: null\r\n"

TOKEN = re.compile(r"[!#$&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
MISREAD = re.compile(
    r"(?:status|description|envelope-(?:encoded|payload|timestamp))\Z", re.IGNORECASE
).match
"""Names that clients take for the server's word, or that this package uses itself."""
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]|\A | \Z").search
"""Control characters, lone surrogates, a blank at either end."""
PUNCTUATION = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""What an encoded value keeps as it is, beside letters and digits."""


def is_safe(text: str) -> bool:
    """Whether NATS carries a value as it is; nearly all are printable, which is checked first."""
    if text.isprintable():
        return text == "" or (text[0] != " " and text[-1] != " ")
    return UNSAFE(text) is None


def encode_name(name: str) -> bytes | None:
    """A header's name percent-encoded; None if it goes as it is.

    :raises UnicodeEncodeError: when it has a lone surrogate.
    """
    if TOKEN(name):
        if not MISREAD(name):
            return None
        return b"%%%02X%s" % (ord(name[0]), name[1:].encode())
    return quote_from_bytes(name.encode(), safe="!#$&'*+-.^_`|~").encode()


def encode_value(value: HeaderValue) -> bytes:
    """A header's value percent-encoded; a lone percent sign for None.

    :raises UnicodeEncodeError: when it has a lone surrogate that does not stand for a byte.
    """
    if value is None:
        return b"%"
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return quote_from_bytes(raw, safe=PUNCTUATION).encode()


def encoded_line(names: Sequence[bytes]) -> bytes:
    """The header line that lists what is encoded; empty if nothing is."""
    return b"Envelope-Encoded: %s\r\n" % b",".join(dict.fromkeys(names)) if names else b""


def timestamp_line(timestamp: datetime) -> bytes:
    """The header line of an envelope's timestamp, which is in UTC."""
    return b"Envelope-Timestamp: %sZ\r\n" % timestamp.isoformat()[:-6].encode()


class Decoded(NamedTuple):
    """What header lines say."""

    pairs: HeaderPairs
    is_null: bool
    """Whether the payload is null, if it is empty."""
    timestamp: datetime | None


def decode_pairs(lines: Sequence[tuple[str, str]]) -> Decoded:
    """Names and values as they were before they were encoded, and what else the lines say.

    A line that this package would not have written is left as it is.
    """
    encoded: set[str] = set()
    is_null, timestamp = False, None
    pairs: list[tuple[str, str]] = []
    for name, value in lines:
        if name == ENCODED:
            encoded.update(map(str.strip, value.split(",")))
        elif name == PAYLOAD and value == NULL:
            is_null = True
        elif name == TIMESTAMP and timestamp is None and (found := _timestamp(value)):
            timestamp = found
        else:
            pairs.append((name, value))
    if not encoded:
        return Decoded(tuple(pairs), is_null, timestamp)
    return Decoded(
        tuple(
            [
                (_decoded_name(name), _decoded_value(value)) if name in encoded else (name, value)
                for name, value in pairs
            ]
        ),
        is_null,
        timestamp,
    )


def _decoded_name(name: str) -> str:
    return unquote_to_bytes(name).decode("utf-8", "replace")


def _decoded_value(value: str) -> HeaderValue:
    if value == "%":
        return None
    raw = unquote_to_bytes(value)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _timestamp(value: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(value)
        return found.astimezone(UTC) if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
