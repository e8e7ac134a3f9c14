"""Which brokers are configured, and which streams and topics are wanted of them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import RunError
from ..settings import JetStreamSettings, KafkaSettings

__all__ = ["Wanted", "from_environment", "from_flow"]

DEPTH = 3
"""How deep settings lie in a step: in its source, behind what lets it drain."""


class Wanted(NamedTuple):
    """The settings of one broker."""

    settings: JetStreamSettings | KafkaSettings

    @property
    def names(self) -> tuple[str, ...]:
        """The streams and topics that are named in the settings."""
        if isinstance(self.settings, KafkaSettings):
            declared = [topic.name for topic in self.settings.topic_settings]
        else:
            declared = [stream.name for stream in self.settings.streams]
        return tuple(dict.fromkeys([*declared, *self.settings.topics]))


def from_environment() -> list[Wanted]:
    """Each broker of which a variable, `.env` or the secrets directory says something.

    :raises ValueError: when a setting is wrong.
    """
    found: list[JetStreamSettings | KafkaSettings] = [JetStreamSettings(), KafkaSettings()]
    return [Wanted(each) for each in found if each.model_fields_set - {"pool"}]


def from_flow(name: str) -> list[Wanted]:
    """Each broker that a step of the flow publishes to or reads from; nothing runs.

    :arg name: As in `flows.quickstart:flow`.
    :raises RunError: when there is no such flow, or no step of it has settings.
    """
    from ..runner.flow import load  # imports Bytewax

    found: list[JetStreamSettings | KafkaSettings] = []
    for step in _steps(load(name).substeps):
        found += [each for each in _settings_in(step, DEPTH) if each not in found]
    if not found:
        raise RunError(
            f"no step of {name} has settings of JetStream or Kafka: name another flow, or leave "
            "--flow out to use those of the environment",
            flow=name,
        )
    return [Wanted(each) for each in found]


def _steps(steps: Any) -> Iterator[Any]:
    for step in steps:
        yield step
        yield from _steps(step.substeps)


def _settings_in(thing: Any, depth: int) -> Iterator[JetStreamSettings | KafkaSettings]:
    """Settings among the fields of a step, of its source or its sink."""
    for value in getattr(thing, "__dict__", {}).values():
        if isinstance(value, JetStreamSettings | KafkaSettings):
            yield value
        elif depth and any(base.__module__.startswith(SEARCHED) for base in type(value).__mro__):
            yield from _settings_in(value, depth - 1)


SEARCHED = ("bytewax.inputs", "bytewax.outputs")
"""Where the base classes of sources and sinks are."""
