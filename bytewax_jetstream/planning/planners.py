"""`make_plan`, `planner_for`: what is wanted of a broker, compared and made."""

from typing import Protocol

from ..settings import JetStreamSettings, KafkaSettings
from .plan import Plan
from .wanted import Wanted

__all__ = ["Planner", "make_plan", "planner_for"]


class Planner(Protocol):
    """Compares one broker with its settings, and brings it in line. Its methods block.

    :raises ConnectError: from any method, when the broker does not answer or lets this user not in.
    """

    def plan(self) -> Plan:
        """Compare; nothing is changed."""

    def apply(self, plan: Plan) -> None:
        """Make what the plan would create or change, and nothing else.

        :raises StreamError, TopicError: when the broker refuses it; what was made before stays.
        """


def planner_for(wanted: Wanted) -> Planner:
    """The planner of the settings' broker; its library is imported now."""
    settings = wanted.settings
    if isinstance(settings, KafkaSettings):
        from .kafka import KafkaPlanner

        return KafkaPlanner(settings)
    assert isinstance(settings, JetStreamSettings)
    from .jetstream import JetStreamPlanner

    return JetStreamPlanner(settings)


def make_plan(wanted: Wanted) -> Plan:
    """Compare what is wanted with what the broker has."""
    return planner_for(wanted).plan()
