"""Whatever an envelope holds, it is refused or becomes exactly one frame that says the same."""

import re
from datetime import UTC, timedelta
from hashlib import sha256
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bytewax_jetstream.envelope import (
    Envelope,
    HeaderPairs,
    HeaderValue,
    PublishOptions,
    first_values,
)
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.jetstream.message import JetStreamMessage, decode
from bytewax_jetstream.jetstream.publisher.encoding import encode, encode_all, message_id
from tests.support.frames import MAX_PAYLOAD, frame_of, publish, read_frame, refusal_of
from tests.support.odd_values import Array, Broken

TEXT = st.text(max_size=30) | st.sampled_from(
    ["", "a", "a.b", "k 1", "a\r\nb", "\ud800", "é", "Nats-TTL", "x" * 2000]
)
ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=20)
    | TEXT
    | st.lists(st.integers(), max_size=2)
    | st.builds(bytearray, st.binary(max_size=5))
    | st.binary(max_size=5).map(lambda data: memoryview(data))
    | st.builds(object)
    | st.builds(Array)
    | st.timedeltas()
    | st.sampled_from([dict, Broken(), Broken])
)
ODD_OPTIONS = st.builds(PublishOptions, ANYTHING, ANYTHING, ANYTHING)
ODD_HEADERS = st.dictionaries(st.none() | st.integers() | TEXT, ANYTHING, max_size=4)

TIME = st.datetimes(timezones=st.just(UTC))
HEADER_NAME = st.sampled_from(["a", "A", "a b", "%41", "Status", "é", "a:", "\x00"]) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9
).filter(lambda name: not re.match("(?i)nats-|event-|aggregate-", name))
HEADER_VALUE = (
    st.none()
    | st.binary(max_size=9)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    | st.sampled_from(["", "%", "%00", " ", "a ", "a\r\nb: c", "null"])
)
ANY_ID = st.text(st.characters(exclude_categories=["Cs"]), max_size=9) | st.binary(max_size=9).map(
    lambda key: key.decode("utf-8", "surrogateescape")
)
VALUE = st.text('aZ0 é,:;_-.~/"', max_size=20).map(str.strip)
GOOD = st.builds(
    Envelope,
    topic=st.from_regex(r"[a-zé0-9]{1,8}(\.[a-zé0-9]{1,8}){0,3}", fullmatch=True),
    payload=st.none() | st.binary(max_size=100),
    event_id=VALUE.filter(bool),
    aggregate_id=st.none() | VALUE | ANY_ID,
    event_type=st.none() | VALUE | ANY_ID,
    timestamp=st.none() | TIME,
    headers=st.none()
    | st.dictionaries(st.text("abc-_!", min_size=1, max_size=9), VALUE, max_size=4)
    | st.lists(st.tuples(HEADER_NAME, HEADER_VALUE), max_size=4),
    options=st.none()
    | st.builds(
        PublishOptions,
        st.none() | st.integers(1, 10**9).map(lambda seconds: timedelta(seconds=seconds)),
        st.none() | st.integers(0, 2**63 - 1),
        st.none() | st.integers(0, 2**63 - 1),
        schedule=st.none(),
        schedule_target=st.none(),
        schedule_ttl=st.none(),
        group=st.none(),
    ),
)


def _identity(envelope: Envelope) -> dict[str, str]:
    event_id = envelope.event_id
    if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", event_id):
        return {"Nats-Msg-Id": event_id}
    return {
        "Nats-Msg-Id": "~" + sha256(event_id.encode()).hexdigest(),
        "Event-Id": event_id,
    }


def _expected_options(envelope: Envelope) -> list[tuple[str, str]]:
    ttl, sequence, subject_sequence, *_ = envelope.options or PublishOptions()
    expected = []
    if ttl is not None:
        expected.append(("Nats-TTL", str(int(ttl.total_seconds()))))
    if sequence is not None:
        expected.append(("Nats-Expected-Last-Sequence", str(sequence)))
    if subject_sequence is not None:
        expected.append(("Nats-Expected-Last-Subject-Sequence", str(subject_sequence)))
    return expected


def _text_if_utf8(value: HeaderValue) -> HeaderValue:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _expected_pairs(envelope: Envelope) -> HeaderPairs:
    """What a reader finds: all header lines, decoded."""
    pairs: list[tuple[str, HeaderValue]] = list(_identity(envelope).items())
    for name, text in (
        ("Aggregate-Id", envelope.aggregate_id),
        ("Event-Type", envelope.event_type),
    ):
        if text is not None:
            pairs.append((name, _text_if_utf8(text.encode("utf-8", "surrogateescape"))))
    pairs += [(name, _text_if_utf8(value)) for name, value in envelope.header_pairs]
    return (*pairs, *_expected_options(envelope))


def _assert_reads_back(envelope: Envelope, data: bytes) -> None:
    """One frame, read as the server and as a source of this package read it."""
    frame = read_frame(b"HPUB %s _INBOX.x.1.0%s" % (envelope.topic.encode(), data))
    block = data.split(b"\r\n", 1)[1][: int(data.split()[0])]
    message = decode("S", 1, 0, (frame.subject.encode(), b"", block, frame.payload))

    assert type(message) is JetStreamMessage
    assert (frame.subject, frame.payload) == (envelope.topic, envelope.payload or b"")
    assert (message.payload, message.timestamp) == (envelope.payload, envelope.timestamp)
    assert message.header_pairs == _expected_pairs(envelope)
    assert message.headers == first_values(_expected_pairs(envelope))
    assert len([name for name, _ in frame.headers if name == "Envelope-Encoded"]) <= 1


@settings(max_examples=300, deadline=None)
@given(GOOD)
def test_valid_envelope_becomes_one_frame_that_reads_back_the_same(envelope: Envelope) -> None:
    _assert_reads_back(envelope, publish(envelope))


@settings(max_examples=300, deadline=None)
@given(GOOD, st.integers(60, 300))
def test_no_frame_exceeds_the_servers_limit(envelope: Envelope, max_payload: int) -> None:
    size = len(publish(envelope).split(b"\r\n", 1)[1]) - 2
    if size <= max_payload:
        assert frame_of(envelope, max_payload) == frame_of(envelope)
    else:
        assert refusal_of(envelope, max_payload).startswith(
            f"payload and headers have {size} bytes"
        )


@settings(max_examples=1000, deadline=None)
@given(GOOD, st.sampled_from(Envelope._fields), ANYTHING | ODD_HEADERS | ODD_OPTIONS)
def test_envelope_with_any_value_in_a_field_is_refused_or_becomes_one_frame(
    envelope: Envelope, field: str, value: Any
) -> None:
    envelope = envelope._replace(**{field: value})
    try:
        data = publish(envelope)
    except EnvelopeError:
        return

    _assert_reads_back(envelope, data)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=8, unique=True))
def test_two_ids_never_become_one(event_ids: list[str]) -> None:
    seen: dict[bytes, str] = {}
    for event_id in event_ids:
        try:
            line = message_id(event_id).split(b"\r\n")[0]
        except EnvelopeError:
            continue
        assert seen.setdefault(line, event_id) == event_id


@settings(max_examples=300, deadline=None)
@given(st.lists(GOOD, max_size=8), st.booleans())
def test_encode_all_gives_what_encode_gives_or_nothing(batch: list[Envelope], dedupe: bool) -> None:
    checked = {envelope.topic for envelope in batch}
    together = encode_all(batch, checked, MAX_PAYLOAD, dedupe=dedupe)

    plain = [
        each._replace(headers=None, options=None, event_id=f"e-{at}")
        for at, each in enumerate(batch)
    ]
    assert together in (None, [encode(each, MAX_PAYLOAD, dedupe=dedupe) for each in batch])
    if plain:
        assert encode_all(plain, checked, MAX_PAYLOAD, dedupe=dedupe) == [
            encode(each, MAX_PAYLOAD, dedupe=dedupe) for each in plain
        ]


@settings(max_examples=1000, deadline=None)
@given(GOOD, st.sampled_from(Envelope._fields), ANYTHING | ODD_HEADERS | ODD_OPTIONS)
def test_encode_all_never_encodes_an_envelope_that_encode_would_refuse(
    envelope: Envelope, field: str, value: Any
) -> None:
    odd = envelope._replace(**{field: value})
    good = Envelope("good", b"", "good")
    together = encode_all([good, odd, good], {"good", envelope.topic}, MAX_PAYLOAD)

    if together is not None:
        assert type(odd.topic) is str
        assert together == [encode(each, MAX_PAYLOAD) for each in (good, odd, good)]
