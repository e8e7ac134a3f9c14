"""What `bytewax-jetstream streams` does: which streams and topics are wanted, what the servers have
and how they can be brought in line, before anything changes.
"""

from .plan import Action, Change, Entry, Plan, summary
from .planners import make_plan, planner_for
from .wanted import Wanted, from_environment, from_flow

__all__ = [
    "Action",
    "Change",
    "Entry",
    "Plan",
    "Wanted",
    "from_environment",
    "from_flow",
    "make_plan",
    "planner_for",
    "summary",
]
