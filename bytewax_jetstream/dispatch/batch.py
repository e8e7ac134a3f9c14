"""`Batch`: the record of one batch in flight, and `BatchLane`; only `batches` changes them."""

from collections import deque
from math import inf
from typing import NamedTuple

from ..envelope import Envelope
from ..publishing import Refusal, Route
from .clocks import Answers
from .lane_queue import LaneQueue
from .segment import Entry, Segment

__all__ = ["Batch", "BatchLane"]


class _Append(NamedTuple):
    first: int
    """The index of its first message."""
    position: int
    """The position of that message."""
    written: float


class Batch:
    """A batch in flight."""

    __slots__ = (
        "_appends",
        "count",
        "entries",
        "flow",
        "lane",
        "number",
        "refusal",
        "route",
        "segments",
        "stored",
        "topic",
    )

    def __init__(
        self,
        number: int,
        lane: "BatchLane",
        route: Route,
        segments: list[Segment],
        messages: int,
        position: int,
        written: float,
        flow: int,
    ) -> None:
        self.number = number
        self.lane = lane
        self.route = route
        self.topic = segments[0].envelopes[0].topic
        """Of its first message."""
        self.flow = flow
        """After how many messages the broker says how many it has stored."""
        self.segments: list[Segment] = []
        """What was sent and is not known to be stored."""
        self.count = 0
        """How many messages were sent."""
        self.stored = 0
        """How many of them are known to be stored."""
        self.refusal: tuple[int, Refusal] | None = None
        """The first index that was refused: nothing is stored from there on."""
        self.entries: list[Entry] = []
        """Once it is no longer awaited: what was not known to be stored then, in order."""
        self._appends: deque[_Append] = deque()
        """Those with messages that are not known to be stored, oldest first."""
        self.add(segments, messages, position, written)

    def add(self, segments: list[Segment], messages: int, position: int, written: float) -> None:
        """An append is sent, at this position and time."""
        self._appends.append(_Append(self.count, position, written))
        self.segments += segments
        self.count += messages

    @property
    def written(self) -> float:
        """When the first message that is not known to be stored was sent, or one before it."""
        return self._appends[0].written

    def position_of(self, index: int) -> int:
        """The position of a message that is not known to be stored, or of the last that is."""
        for append in reversed(self._appends):
            if append.first <= index:
                return append.position + index - append.first
        return self._appends[0].position  # stored with an append that is forgotten

    def waits_since(self, answers: Answers) -> float:
        """Since when the next answer is awaited; infinite while none is."""
        appends = self._appends
        while len(appends) > 1 and appends[1].first <= self.stored:
            appends.popleft()
        if self.stored == self.count:
            return inf
        oldest = appends[0]
        position = oldest.position + self.stored - oldest.first
        return answers.since(position, oldest.written)

    def at(self, index: int) -> list[Envelope]:
        """The envelope at an index, if it is not known to be stored."""
        index -= self.stored
        for segment in self.segments:
            if 0 <= index < segment.count:
                return [segment.envelopes[index]]
            index -= segment.count
        return []

    def topics(self) -> list[str]:
        """The topic of each message that is not known to be stored."""
        return [envelope[0] for segment in self.segments for envelope in segment.envelopes]

    def size(self) -> int:
        """Payload bytes of them."""
        return sum([segment.size for segment in self.segments])


class BatchLane:
    """What `batches` knows of a lane."""

    __slots__ = ("in_flight", "open", "queue", "reach")

    def __init__(self, queue: LaneQueue) -> None:
        self.queue = queue
        self.in_flight = 0
        """How many of its batches are."""
        self.open: Batch | None = None
        """The one of them that goes on as long as there is something to append."""
        self.reach = inf
        """How many messages of a batch may be in flight: behind a refused one all are in vain."""

    def may_append(self) -> bool:
        """Whether the open batch, if there is one, may go on."""
        return self.open is not None and self.open.count - self.open.stored < self.reach
