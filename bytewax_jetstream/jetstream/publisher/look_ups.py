"""Refusals that may be owed to an envelope's own earlier success, and how that is found out.

The server looks at an expected sequence before it looks at the event id, and of a group it does not
say which ids it knows. So after an attempt whose ack was lost, and on a replay, a refusal is no
proof that nothing is stored.
"""

import asyncio
import base64
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from ...envelope import Envelope
from ...errors import ConnectError
from ...publishing.answers import Receipt, Refusal, Verdict
from ...publishing.publisher import PublisherEvents
from ...settings import JetStreamSettings
from ..connection import Connection, JetStreamApiError
from .encoding import message_id
from .error_codes import KNOWN_IDS, NO_MESSAGE, NO_ROLLUP, UNMET_CODES, classify

__all__ = ["LookUps"]


class _Doubt(NamedTuple):
    flight: int
    place: int
    stream: str
    refusal: Refusal


class LookUps:
    """Looks such messages up, one after the other, and reports what became of them."""

    def __init__(
        self, connection: Connection, settings: JetStreamSettings, events: PublisherEvents
    ) -> None:
        self._connection = connection
        self._dedupe = settings.dedupe
        self._seconds = settings.pool.ack_timeout / 2
        """Answered before the attempt is given up, or the next one would start the doubt anew."""
        self._events = events
        self._doubts: deque[_Doubt] = deque()
        self._task: asyncio.Task[None] | None = None

    def take(self, flight: int, place: int, stream: object, refusal: Refusal) -> bool:
        """Look into a refusal, if it is one of these; returns whether it is, and will be reported
        from here.
        """
        grouped = len(self._events.envelopes(flight, place)) > 1
        # Of a group the ids are looked at before the expectations, so an unmet one is not owed to
        # its own success.
        if refusal.code not in ({KNOWN_IDS} if grouped else UNMET_CODES) or not isinstance(
            stream, str
        ):
            return False
        self._doubts.append(_Doubt(flight, place, stream, refusal))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look())
        return True

    def close(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()

    async def _look(self) -> None:
        while self._doubts:
            doubt = self._doubts.popleft()
            envelopes = self._events.envelopes(doubt.flight, doubt.place)
            if not envelopes:
                continue  # answered otherwise, or tried again by now
            try:
                if doubt.refusal.code == KNOWN_IDS:
                    found = await self._group(doubt, envelopes)
                else:
                    found = await self._own_message(doubt, envelopes[0])
            except (ConnectError, JetStreamApiError) as error:
                reason = _in_doubt(doubt.refusal, error)
                found = Refusal(Verdict.GIVE_UP, reason, doubt.refusal.code)
            if isinstance(found, Receipt):
                self._events.acked(doubt.flight, doubt.place, found)
            else:
                self._events.refused(doubt.flight, doubt.place, found)
            self._events.turn()

    async def _own_message(self, doubt: _Doubt, envelope: Envelope) -> Receipt | Refusal:
        """Whether the message behind the expected last one is this envelope's."""
        options = envelope.options
        assert options is not None, "only an expectation can be unmet"
        if options.expected_last_sequence is not None:
            body: dict[str, object] = {"seq": options.expected_last_sequence + 1}
        else:
            body = {
                "seq": (options.expected_last_subject_sequence or 0) + 1,
                "next_by_subj": envelope.topic,
            }
        try:
            answer = await self._connection.request(
                f"STREAM.MSG.GET.{doubt.stream}", body, self._seconds
            )
        except JetStreamApiError as error:
            if error.code == NO_MESSAGE:
                return doubt.refusal
            raise
        message = answer["message"]
        headers = base64.b64decode(message.get("hdrs", ""))
        if b"\r\n" + message_id(envelope.event_id, dedupe=self._dedupe) in headers:
            return Receipt(doubt.stream, None, int(message["seq"]), True)
        return doubt.refusal

    async def _group(self, doubt: _Doubt, envelopes: Sequence[Envelope]) -> Receipt | Refusal:
        """A group of which ids are known is stored if all are, and otherwise never will be."""
        try:
            answers = await asyncio.gather(*map(self._ask_for, envelopes))
        except ConnectError as error:  # it may be asked again: nothing was changed
            reason = _in_doubt(doubt.refusal, error)
            return Refusal(Verdict.RETRY, reason, KNOWN_IDS)
        unknown = [answer["error"] for answer in answers if "error" in answer]
        for other in unknown:
            if other.get("err_code") != NO_ROLLUP:  # such as that an id is in process
                return classify(other)
        if not unknown:
            last = answers[-1]["seq"]
            together = [answer["seq"] for answer in answers] == list(
                range(last + 1 - len(answers), last + 1)
            )
            return Receipt(doubt.stream, None, last if together else None, True)
        if len(unknown) == len({envelope.event_id for envelope in envelopes}):
            return doubt.refusal._replace(
                verdict=Verdict.RETRY
            )  # they were known when it was refused, and are not now
        known = len(answers) - len(unknown)
        reason = (
            f"{doubt.refusal.reason}; {known} of the {len(answers)} envelopes of its group were "
            "stored before, the others were not"
        )
        return doubt.refusal._replace(reason=reason)

    async def _ask_for(self, envelope: Envelope) -> dict[str, Any]:
        """Ask the server whether it knows an event id, by a message that it never stores.

        The server looks for the id first; if it does not know it, it finds that it cannot make
        anything of the other header (tried against single servers and clusters:
        `tests/integration/jetstream/test_groups.py`).
        """
        line = message_id(envelope.event_id).partition(b"\r\n")[0].decode()
        name, _, value = line.partition(": ")
        return await self._connection.ask(
            envelope.topic, {name: value, "Nats-Rollup": "none"}, self._seconds
        )


def _in_doubt(refusal: Refusal, error: Exception) -> str:
    return f"{refusal.reason}; the server could not say whether it was stored before: {error}"
