"""`Replays`: batches of messages that may be stored already are first asked for.

In a batch the server passes over a known event id without a word, and counts it as stored. So who
publishes other payloads under the ids of an earlier run would never learn that nothing of it was
stored. Therefore the first batches to a stream that was there before are held for one round trip
while their first id is asked for (see `questions`). If it is known, all of them are asked for, and
known ones are settled as duplicates and not sent. A batch whose first id is not known ends this. It
begins again when a batch ends at a known id: then the server names no sequence. A batch of what was
lost is always asked for.

Example: the stream has e1 to e3; a batch of e1 to e5 is to go.

    asked      e1                     -> known
    asked      e1 to e5               -> known: e1, e2, e3
    reported   batch: 3 stored, duplicates
    sent       append: e4 e5, last    (the server counts e4 as the first message of the batch)
    answered   batch ended: 2 stored  -> batch: 5 stored
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby

from ...publishing import Append, PublisherEvents, Route
from .error_codes import IN_PROCESS
from .look_ups import known_sequence
from .questions import NO_ANSWER, Known, Questions

__all__ = ["Replays"]

MOST = 1_000
"""Most batches of which is remembered where they began; the oldest are forgotten."""


class _Waiting:
    """An append that is held, until its answers are in."""

    __slots__ = ("append", "known")

    def __init__(self, append: Append) -> None:
        self.append = append
        self.known: list[Known] | None = None


class _Held:
    """A batch whose ids are asked for."""

    __slots__ = ("appends", "duplicates", "known", "offset", "route", "started", "stored", "topic")

    def __init__(self, route: str, topic: str) -> None:
        self.route = route
        self.topic = topic
        """Of the first message."""
        self.appends: deque[_Waiting] = deque()
        """What waits for its answers, in order."""
        self.duplicates: list[bool | None] = []
        """For each message, True if the server knew it, else None, as in any other batch."""
        self.offset = 0
        """How many messages were known, and so not sent, before the first that was."""
        self.stored = 0
        """How many are reported as stored."""
        self.known = False
        """Whether the first id was."""
        self.started = False
        """Whether a message of it was sent."""


class Replays:
    """The batches of one publisher that began while their ids were asked for.

    :arg write: Writes an append of a batch whose first so many messages were not sent.
    :arg stream_of: The stream that stores a topic, as the answers say.
    """

    def __init__(
        self,
        events: PublisherEvents,
        questions: Questions,
        write: Callable[[Append, int], None],
        stream_of: Callable[[str], str | None],
    ) -> None:
        self._events = events
        self._questions = questions
        self._write = write
        self._stream_of = stream_of
        self._new: set[str] = set()
        """Streams that are not asked: what goes there was not stored before."""
        self._held: dict[int, _Held] = {}

    def take(self, append: Append, route: Route | None) -> bool:
        """Hold an append until its ids are asked for, if that is due; returns whether it is."""
        held = self._held.get(append.number)
        if held is None:
            if append.first or route is None:
                return False
            if not append.again and (route.fresh or route.name in self._new):
                return False
            held = self._held[append.number] = _Held(route.name, append.topic)
            if len(self._held) > MOST:
                del self._held[next(iter(self._held))]
        waiting = _Waiting(append)
        held.appends.append(waiting)
        if held.started or held.known or not append.wires:
            self._ask(waiting, held)
            self._advance(append.number, held)
        elif append.first == 0:
            self._ask_for_first(append, held)
        return True

    def offset(self, number: int) -> int:
        """How many messages of a batch the server was not sent, before those that it counts."""
        held = self._held.get(number)
        return held.offset if held is not None else 0

    def stored(self, number: int, count: int) -> None:
        """Report the first `count` messages of a batch as stored, each known one as a duplicate."""
        held = self._held.get(number)
        if held is None:
            self._events.batch_stored(number, count)
            return
        said = held.duplicates[held.stored : count]
        for duplicate, some in groupby(said):
            held.stored += len(list(some))
            stream = self._stream_of(held.topic)
            self._events.batch_stored(number, held.stored, stream, duplicate=duplicate)

    def ended(self, number: int, count: int) -> None:
        """A batch is over: what of it is stored is reported here, the end is not."""
        if number in self._held:
            self.stored(number, count)
            del self._held[number]

    def known_at_end(self, stream: str) -> None:
        """A batch ended at an id that the server knew: more may follow."""
        self._new.discard(stream)

    def disconnected(self) -> None:
        """What is held is not sent, because it is tried again."""
        self._held = {number: held for number, held in self._held.items() if held.started}
        for held in self._held.values():
            held.appends.clear()

    def _ask_for_first(self, append: Append, held: _Held) -> None:
        """Ask for the first id of a batch."""
        first = self._events.in_flight(append.number, 0)
        if first:
            self._questions.ask(first, lambda known: self._first_answered(append, held, known))
        else:
            del self._held[append.number]  # it was given up

    def _first_answered(self, append: Append, held: _Held, known: Sequence[Known]) -> None:
        """When the first id is known, the others are asked for, too."""
        if self._held.get(append.number) is not held:
            return
        held.known = known_sequence(known[0]) is not None
        for waiting in held.appends:
            if held.known:
                self._ask(waiting, held)
            else:
                waiting.known = [NO_ANSWER] * len(waiting.append.wires)
        if not held.known and held.appends:
            held.appends[0].known = [known[0], *[NO_ANSWER] * (len(append.wires) - 1)]
        self._advance(append.number, held)

    def _ask(self, waiting: _Waiting, held: _Held) -> None:
        """Ask for all ids of an append, unless some of its batch were sent."""
        append = waiting.append
        messages = 0 if held.started else len(append.wires)
        indices = range(append.first, append.first + messages)
        envelopes = [each for at in indices for each in self._events.in_flight(append.number, at)]
        if envelopes:
            self._questions.ask(envelopes, lambda known: self._answered(waiting, held, known))
        else:
            waiting.known = [NO_ANSWER] * len(append.wires)

    def _answered(self, waiting: _Waiting, held: _Held, known: Sequence[Known]) -> None:
        number = waiting.append.number
        if self._held.get(number) is held:
            waiting.known = list(known)
            self._advance(number, held)

    def _advance(self, number: int, held: _Held) -> None:
        """Send or settle what waits, as far as the answers are in."""
        while held.appends and (known := held.appends[0].known) is not None:
            append = held.appends.popleft().append
            if append.wires and not self._events.in_flight(number, append.first):
                del self._held[number]  # it was given up, and is tried again otherwise
                return
            if not held.started and any(map(_is_in_process, known)):
                self._events.batch_returned(number, held.offset)
                del self._held[number]
                return
            self._go(number, held, append, known)

    def _go(self, number: int, held: _Held, append: Append, known: Sequence[Known]) -> None:
        held.duplicates += map(_duplicate, known)
        if held.started:
            self._write(append, held.offset)
            return
        lead = next((at for at, each in enumerate(known) if not _duplicate(each)), len(known))
        if lead:
            held.offset += lead
            self.stored(number, held.offset)
        if lead < len(known):
            held.started = True
            if not lead:
                self._new.add(held.route)
            rest = append._replace(
                topic=append.topics[lead],
                first=append.first + lead,
                topics=append.topics[lead:],
                wires=append.wires[lead:],
            )
            self._write(rest, held.offset)
        elif append.last:
            self._events.batch_ended(number, held.offset)
            del self._held[number]


def _is_in_process(known: Known) -> bool:
    return not isinstance(known, str) and known.get("error", {}).get("err_code") == IN_PROCESS


def _duplicate(known: Known) -> bool | None:
    return True if known_sequence(known) is not None else None
