"""Partitions of the Kafka source, run as the engine runs them, one call after the other."""

import pickle
import time
from collections.abc import Callable
from typing import Any

from bytewax.connectors.kafka import KafkaError, KafkaSourceMessage

from bytewax_jetstream.kafka.source import KafkaSource
from bytewax_jetstream.settings import KafkaSettings

__all__ = ["STEP", "Reading", "read_all"]

STEP = "flow.in.source"
SECONDS = 60.0


class Reading:
    """All partitions of a source on this thread.

    :arg states: What the recovery store holds; it is pickled, as the engine does.
    """

    def __init__(
        self, settings: KafkaSettings, states: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.items: list[Any] = []
        self.source = KafkaSource(settings, **options)
        stored = pickle.loads(pickle.dumps(states or {}))
        self.parts: dict[str, Any] = {}
        try:
            for name in self.source.list_parts():
                self.parts[name] = self.source.build_part(STEP, name, stored.get(name))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Reading":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def values(self) -> list[bytes]:
        """The payloads that came, sorted."""
        return sorted(
            (item.value for item in self.items if isinstance(item, KafkaSourceMessage)), key=int
        )

    @property
    def errs(self) -> list[Any]:
        """The errors that came."""
        return [item for item in self.items if isinstance(item, KafkaError)]

    def turn(self) -> bool:
        """Ask each partition once; returns whether one is left."""
        for name, part in list(self.parts.items()):
            try:
                self.items += part.next_batch()
                part.next_awake()
            except StopIteration:
                part.close()
                del self.parts[name]
        return bool(self.parts)

    def until(self, condition: Callable[[], Any], seconds: float = SECONDS) -> None:
        """Read until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds:g} s; read {len(self.items)}"
            assert self.turn(), "all partitions have ended"
            time.sleep(0.001)

    def to_the_end(self, seconds: float = SECONDS) -> None:
        """Read until every partition has ended."""
        end = time.monotonic() + seconds
        while self.turn():
            assert time.monotonic() < end, f"not within {seconds:g} s; read {len(self.items)}"
            time.sleep(0.001)

    def states(self) -> dict[str, Any]:
        """What an epoch that ends now leaves in the recovery store."""
        return {name: part.snapshot() for name, part in self.parts.items()}

    def close(self) -> None:
        """As at the end of a run, or of a run that fails."""
        for part in self.parts.values():
            part.close()
        self.parts = {}


def read_all(
    settings: KafkaSettings, states: dict[str, Any] | None = None, *, count: int, **options: Any
) -> tuple[list[bytes], list[Any], dict[str, Any]]:
    """Read so many messages; returns their payloads, the errors, and the states."""
    with Reading(settings, states, **options) as reading:
        reading.until(lambda: len(reading.items) - len(reading.errs) >= count)
        return reading.values, reading.errs, reading.states()
