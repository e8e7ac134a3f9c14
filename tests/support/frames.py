"""Envelopes encoded for JetStream, read back by a reader that knows nothing of the encoder."""

import re
from typing import NamedTuple

import pytest

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.jetstream.publisher.encoding import check_topic, encode

__all__ = ["MAX_PAYLOAD", "Frame", "frame_of", "publish", "read_frame", "refusal_of"]

MAX_PAYLOAD = 1024 * 1024


def publish(envelope: Envelope, max_payload: int = MAX_PAYLOAD) -> bytes:
    """Check and encode, as the publisher does."""
    check_topic(envelope.topic)
    return encode(envelope, max_payload)


class Frame(NamedTuple):
    """What the server is told of one message."""

    subject: str
    reply: str
    headers: list[tuple[str, str]]
    payload: bytes


def read_frame(data: bytes) -> Frame:
    """Read the one HPUB frame that `data` must be, to the last byte.

    Source: https://docs.nats.io/reference/reference-protocols/nats-protocol (HPUB).
    """
    control, _, rest = data.partition(b"\r\n")
    word, subject, reply, header_size, total_size = control.split(b" ")
    assert word == b"HPUB"
    assert len(control) < 4096, "the server's limit of a control line"
    assert len(rest) == int(total_size) + 2, (
        "the total size is wrong, or there is more than one frame"
    )
    assert rest.endswith(b"\r\n")
    header, payload = rest[: int(header_size)], rest[int(header_size) : -2]
    version, *lines = header.split(b"\r\n")
    assert version == b"NATS/1.0"
    assert lines[-2:] == [b"", b""], "the headers end with an empty line"
    pairs = []
    for line in lines[:-2]:
        name, colon, value = line.partition(b": ")
        assert colon, f"{line!r} is not a header"
        assert re.fullmatch(rb"[!-9;-~]+", name), f"{name!r} is not a name"
        assert not re.search(rb"[\x00-\x1f\x7f]", value), f"{value!r} has a control character"
        pairs.append((name.decode(), value.decode()))
    return Frame(subject.decode(), reply.decode(), pairs, payload)


def frame_of(envelope: Envelope, max_payload: int = MAX_PAYLOAD) -> Frame:
    """What an envelope becomes."""
    tail = publish(envelope, max_payload)
    return read_frame(b"HPUB %s _INBOX.x.1.0%s" % (envelope.topic.encode(), tail))


def refusal_of(envelope: Envelope, max_payload: int = MAX_PAYLOAD) -> str:
    """Why an envelope is refused."""
    with pytest.raises(EnvelopeError) as caught:
        publish(envelope, max_payload)
    return str(caught.value)
