"""`Fitting`: what was accepted and does not fit the server that it is to be sent to.

A message is checked when it is accepted, and encoded once for all attempts. An attempt may meet
another limit: the server or the account was given another one, or nobody was connected when the
message was accepted. The server would close the connection on it, with all that is in flight, at
every attempt. So it is refused here, and the others are sent.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from ...envelope import Envelope
from ...publishing import (
    Append,
    Groups,
    PublisherEvents,
    Refusal,
    Singles,
    Verdict,
    Wire,
)
from ..connection import DEFAULT_CONTROL_LINE, Connection
from .groups import LINES

__all__ = ["Fitting"]

ANY_PAYLOAD = 1 << 31
"""What is accepted while there is no connection: the next server decides."""
BATCH_REPLY = 100
"""Most bytes of the reply subject of a message in a batch, behind the inbox."""
CUT_BATCHES = 100
"""Batches of which nothing more is sent; the oldest are forgotten, being over for long."""

Refuse = Callable[[int, int, Envelope, Refusal], None]
"""Called with number, index and the envelope that does not fit."""


class Fitting:
    """Compares what is sent with the limits of the connection; costs nothing while they stand.

    :arg refuse: Takes a single or a group that may have been stored by an earlier attempt.
    """

    def __init__(self, connection: Connection, events: PublisherEvents, refuse: Refuse) -> None:
        self._connection = connection
        self._events = events
        self._refuse = refuse
        self._accepted = 0
        """The highest limit that was in force when something was accepted."""
        self._cut: deque[int] = deque(maxlen=CUT_BATCHES)
        """Batches that were ended before a message that does not fit."""
        self.inbox = 0
        """Bytes of the inbox."""

    @property
    def max_payload(self) -> int:
        """The limit for what is accepted now."""
        connection = self._connection
        limit = connection.max_payload if connection.is_up else ANY_PAYLOAD
        self._accepted = max(self._accepted, limit)
        return limit

    @property
    def is_needed(self) -> bool:
        """Whether something may not fit."""
        connection = self._connection
        return (
            self._accepted > connection.max_payload
            or connection.max_control_line < DEFAULT_CONTROL_LINE
        )

    def takes_batches(self, topic: str) -> bool:
        """Whether the protocol line of a message on this topic fits also in a batch."""
        limit = self._connection.max_control_line
        return limit == DEFAULT_CONTROL_LINE or (
            len(topic.encode()) + self.inbox + BATCH_REPLY <= limit
        )

    def sift(self, outgoing: Singles | Groups | Append) -> Singles | Groups | Append | None:
        """What of it is to be sent, with the same numbers and indices; the rest is refused.

        A wire of None, or a group of none, is not sent.
        """
        if isinstance(outgoing, Append):
            return self._sift_append(outgoing)
        if isinstance(outgoing, Groups):
            return self._sift_groups(outgoing)
        wires: list[Wire] = list(outgoing.wires)
        for index, (envelope, wire) in enumerate(zip(outgoing.envelopes, wires, strict=True)):
            if not isinstance(wire, bytes):
                continue  # it is not sent as it is
            refusal = self._misfit(envelope.topic, outgoing.number, index, wire)
            if refusal is not None:
                wires[index] = None
                self._report(outgoing.number, index, envelope, refusal)
        return Singles(outgoing.number, outgoing.envelopes, wires)

    def _sift_groups(self, groups: Groups) -> Groups:
        envelopes, wires = list(groups.envelopes), list(groups.wires)
        for index, (members, their_wires) in enumerate(
            zip(groups.envelopes, groups.wires, strict=True)
        ):
            if not all(isinstance(wire, bytes) for wire in their_wires):
                continue  # it is not sent as it is
            for envelope, wire in zip(members, cast(list[bytes], their_wires), strict=True):
                refusal = self._misfit(envelope.topic, groups.number, index, wire, LINES)
                if refusal is not None:
                    envelopes[index], wires[index] = [], []
                    self._report(groups.number, index, envelope, refusal)
                    break
        return Groups(groups.number, envelopes, wires)

    def _sift_append(self, append: Append) -> Append | None:
        """An append up to what does not fit, which then ends the batch: in one, a message that is
        missing would be one that the server waits for.
        """
        number, first, topics, wires = append.number, append.first, append.topics, append.wires
        if number in self._cut:
            return None
        at = self._first_misfit(topics, cast(list[bytes], wires))
        if at is None:
            return append
        self._cut.append(number)
        # As a single it is looked at once more, and gets an answer of its own.
        again = Refusal(Verdict.RETRY, "it does not fit in a batch")
        self._events.refused(number, first + at, again)
        if first + at == 0:
            return None  # nothing of the batch was sent
        return append._replace(topics=topics[:at], wires=wires[:at], last=True)

    def _first_misfit(self, topics: Sequence[str], wires: Sequence[bytes]) -> int | None:
        limit = self._connection.max_payload
        long = {topic for topic in set(topics) if not self.takes_batches(topic)}
        for index, (topic, wire) in enumerate(zip(topics, wires, strict=True)):
            if topic in long or (len(wire) > limit and _size(wire) > limit):
                return index
        return None

    def _misfit(
        self, topic: str, number: int, index: int, wire: bytes, more: int = 0
    ) -> Refusal | None:
        """Why a message does not fit that would be sent as a single, or in a group."""
        connection = self._connection
        if len(wire) + more > connection.max_payload:
            size, limit = _size(wire) + more, connection.max_payload
            if size > limit:
                reason = (
                    f"payload and headers have {size} bytes, the server's limit is {limit}: split "
                    "the message or raise max_payload of the server, the account or the user"
                )
                return Refusal(Verdict.REJECT, reason)
        limit = connection.max_control_line
        if limit < DEFAULT_CONTROL_LINE:
            reply = self.inbox + len(b"%d.%d" % (number, index))
            size = len(topic.encode()) + 1 + reply + wire.index(b"\r\n")
            if size > limit:
                reason = (
                    f"topic {topic[:80]}... is too long: its protocol line has {size} bytes, the "
                    f"server's max_control_line is {limit}; shorten the topic or raise the limit"
                )
                return Refusal(
                    Verdict.REJECT, reason, no_attempt_stored=connection.never_took(size)
                )
        return None

    def _report(self, number: int, index: int, envelope: Envelope, refusal: Refusal) -> None:
        if refusal.no_attempt_stored:
            self._events.refused(number, index, refusal)
        else:
            self._refuse(number, index, envelope, refusal)


def _size(wire: bytes) -> int:
    """Headers and payload together, as the frame says."""
    return int(wire[: wire.index(b"\r\n")].split()[1])
