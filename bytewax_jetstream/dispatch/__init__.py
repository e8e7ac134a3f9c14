"""What is sent when, tried again and settled: the decisions, with no I/O and no clock.

Begin with `dispatch.dispatch`: the rules, and which module owns what.
"""

from .dispatch import Dispatch
from .lane_queue import LaneQueue
from .segment import Entry, Segment, Submission
from .settlements import SegmentStored, Settled, Settlement, SinglesStored

__all__ = [
    "Dispatch",
    "Entry",
    "LaneQueue",
    "Segment",
    "SegmentStored",
    "Settled",
    "Settlement",
    "SinglesStored",
    "Submission",
]
