"""The killed dataflow with Kafka as its broker, where a replay is stored again."""

from hashlib import sha256
from types import MappingProxyType

from bytewax_jetstream.envelope import Outcome, PublishResult
from tests.support.kafka import Record, make_topic, records
from tests.support.recovery.harness import Pipeline
from tests.support.recovery.judge import Evidence, Flaws, flaws
from tests.support.recovery.rows import STREAM, envelope_of
from tests.support.streams import Stored

__all__ = ["KafkaPipeline", "kafka_flaws", "repeated"]

PARTITIONS = 4


class KafkaPipeline(Pipeline):
    """Its topic has the rows of all topics, because Kafka has no order across topics."""

    orders = MappingProxyType({"broker": "kafka"})

    @property
    def _url(self) -> str:
        return str(self.server.bootstrap)

    def _prepare(self) -> None:
        make_topic(self.server.bootstrap, STREAM, partitions=PARTITIONS)

    def _stored(self) -> list[Stored]:
        return [_as_stored(record) for record in records(self.server.bootstrap, STREAM)]

    def _results(self) -> list[tuple[int, PublishResult]]:
        return [(run, _as_result(result)) for run, result in super()._results()]


def kafka_flaws(evidence: Evidence) -> Flaws:
    """As `flaws`; a row may be stored more than once, and its first message is the one whose order
    counts.
    """
    return flaws(evidence)._replace(duplicates=0, inversions=flaws(_first(evidence)).inversions)


def repeated(evidence: Evidence) -> int:
    """How many messages are of a row that is stored already."""
    return len(evidence.messages) - len(_first(evidence).messages)


def _first(evidence: Evidence) -> Evidence:
    first = {message.payload: message for message in reversed(evidence.messages)}
    return evidence._replace(messages=[m for m in evidence.messages if first[m.payload] is m])


def _sequence(partition: int, offset: int) -> int:
    return offset * PARTITIONS + partition + 1


def _as_stored(record: Record) -> Stored:
    """A message as the same row would lie in a stream, so that one judge does for both brokers."""
    part, index = map(int, record.payload.split())
    event_id = record.headers["Event-Id"].decode()
    headers = {"Nats-Msg-Id": event_id, "Aggregate-Id": (record.key or b"").decode()}
    if " " in event_id:
        headers |= {
            "Nats-Msg-Id": "~" + sha256(event_id.encode()).hexdigest(),
            "Event-Id": event_id,
        }
    headers |= {
        name: value.decode() for name, value in record.headers.items() if name != "Event-Id"
    }
    return Stored(
        _sequence(record.partition, record.offset),
        envelope_of(part, index).topic,
        headers,
        record.payload,
    )


def _as_result(result: PublishResult) -> PublishResult:
    if result.outcome is not Outcome.STORED:
        return result
    assert result.topic == STREAM
    assert result.partition is not None
    assert result.sequence is not None
    # Both of the row's own ids name its part and its index.
    part, index = map(
        int,
        result.event_id.removeprefix("part ").replace(", row ", "-").removeprefix("p").split("-"),
    )
    sequence = _sequence(result.partition, result.sequence)
    return result._replace(topic=envelope_of(part, index).topic, stream=STREAM, sequence=sequence)
