"""Whatever an envelope holds, it is refused or becomes exactly one frame that says the same."""

import re
from datetime import timedelta
from hashlib import sha256
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bytewax_jetstream.envelope import Envelope, PublishOptions
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.jetstream.publisher.encoding import encode, encode_all, message_id
from tests.support.frames import MAX_PAYLOAD, Frame, frame_of, publish, refusal_of
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

VALUE = st.text('aZ0 é,:;_-.~/"', max_size=20).map(str.strip)
GOOD = st.builds(
    Envelope,
    topic=st.from_regex(r"[a-zé0-9]{1,8}(\.[a-zé0-9]{1,8}){0,3}", fullmatch=True),
    payload=st.binary(max_size=100),
    event_id=VALUE.filter(bool),
    aggregate_id=st.none() | VALUE,
    event_type=st.none() | VALUE,
    headers=st.none()
    | st.dictionaries(st.text("abc-_!", min_size=1, max_size=9), VALUE, max_size=4),
    options=st.none()
    | st.builds(
        PublishOptions,
        st.none() | st.integers(1, 10**9).map(lambda seconds: timedelta(seconds=seconds)),
        st.none() | st.integers(0, 2**63 - 1),
        st.none() | st.integers(0, 2**63 - 1),
    ),
)


def _expected_headers(envelope: Envelope) -> list[tuple[str, str]]:
    event_id = envelope.event_id
    if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", event_id):
        expected = [("Nats-Msg-Id", event_id)]
    else:
        expected = [
            ("Nats-Msg-Id", "~" + sha256(event_id.encode()).hexdigest()),
            ("Event-Id", event_id),
        ]
    if envelope.aggregate_id is not None:
        expected.append(("Aggregate-Id", envelope.aggregate_id))
    if envelope.event_type is not None:
        expected.append(("Event-Type", envelope.event_type))
    expected += (envelope.headers or {}).items()
    ttl, sequence, subject_sequence = envelope.options or PublishOptions()
    if ttl is not None:
        expected.append(("Nats-TTL", str(int(ttl.total_seconds()))))
    if sequence is not None:
        expected.append(("Nats-Expected-Last-Sequence", str(sequence)))
    if subject_sequence is not None:
        expected.append(("Nats-Expected-Last-Subject-Sequence", str(subject_sequence)))
    return expected


@settings(max_examples=300, deadline=None)
@given(GOOD)
def test_valid_envelope_becomes_one_frame_that_reads_back_the_same(envelope: Envelope) -> None:
    assert frame_of(envelope) == Frame(
        envelope.topic, "_INBOX.x.1.0", _expected_headers(envelope), envelope.payload
    )


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
        frame = frame_of(envelope)
    except EnvelopeError:
        return

    assert frame == Frame(
        envelope.topic, "_INBOX.x.1.0", _expected_headers(envelope), envelope.payload
    )


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
