"""`examine`: the brokers that are configured, one after the other."""

import os
from typing import Literal

from ..planning import from_environment
from ..settings import JetStreamSettings, KafkaSettings
from ..settings.sources import PREFIX
from .report import Report

__all__ = ["examine"]


def examine(broker: Literal["jetstream", "kafka", "both"] | None) -> list[Report]:
    """Look at the broker; None: at those that the variables, `.env` or the secrets directory name,
    or at a JetStream on this machine.

    :raises ValueError: when a setting is wrong.
    """
    if broker is None:
        found = [each.settings for each in from_environment()] or [JetStreamSettings()]
    else:
        found = [JetStreamSettings()] if broker in ("jetstream", "both") else []
        found += [KafkaSettings()] if broker in ("kafka", "both") else []
    return [_examine(each) for each in found]


def _examine(settings: JetStreamSettings | KafkaSettings) -> Report:
    if isinstance(settings, KafkaSettings):
        from .kafka import examine_kafka

        report = Report("kafka")
        _examine_settings(settings, f"{PREFIX}KAFKA_", report)
        examine_kafka(settings, report)
        return report
    from .jetstream import examine_jetstream

    report = Report("jetstream")
    _examine_settings(settings, PREFIX, report)
    examine_jetstream(settings, report)
    return report


def _examine_settings(
    settings: JetStreamSettings | KafkaSettings, prefix: str, report: Report
) -> None:
    """The step `settings`: which are set, and which variables are empty, so that they are not."""
    names = {f"{prefix}{field}".upper() for field in type(settings).model_fields}
    given = sorted(settings.model_fields_set - {"pool"})
    report.ok("settings", f"set: {', '.join(given)}" if given else "all have their defaults")
    for name, value in sorted(os.environ.items()):
        if name.upper() in names and not value.strip():
            advice = "set it, or remove it: an empty variable counts as not set"
            report.warn("settings", f"{name} is empty", advice)
