"""`LookUps`: whether a refused envelope was stored by an earlier attempt, asked of the stream.

Two refusals do not prove that nothing is stored, after a lost ack or on a replay:

- Wrong last sequence. The server checks it before the event id. Say an envelope expects 7 and is
  stored as 8, but its ack is lost. Then the second attempt is refused, because the last sequence is
  8: its own.
- A duplicate id in a group. The server does not say which ids it knows: all of them if an earlier
  attempt stored the group, or some that were stored otherwise.
"""

import asyncio
import base64
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...envelope import Envelope
from ...errors import ConnectError
from ...publishing import PublisherEvents, Receipt, Refusal, Verdict
from ...settings import JetStreamSettings
from ..connection import Connection, JetStreamApiError
from .encoding import message_id
from .error_codes import (
    DUPLICATE_IN_GROUP,
    NO_MESSAGE_FOUND,
    ROLLUP_FAILED,
    WRONG_LAST_SEQUENCE,
    classify,
)

__all__ = ["LookUps"]


@dataclass(frozen=True, slots=True)
class _Doubt:
    number: int
    index: int
    stream: str
    refusal: Refusal


class LookUps:
    """Looks refused envelopes up, one after the other, and reports them as stored or refused."""

    def __init__(
        self, connection: Connection, settings: JetStreamSettings, events: PublisherEvents
    ) -> None:
        self._connection = connection
        self._dedupe = settings.dedupe
        self._seconds = settings.pool.ack_timeout / 2
        """How long to wait for an answer. Half of the ack timeout: after the whole of it the
        envelope is sent again, refused again, and looked up from the start.
        """
        self._events = events
        self._doubts: deque[_Doubt] = deque()
        self._task: asyncio.Task[None] | None = None

    def take(self, number: int, index: int, stream: object, refusal: Refusal) -> bool:
        """Start to look an envelope up, if its refusal is one of the two; returns whether it is. If
        so, the result is reported from here.
        """
        grouped = len(self._events.in_flight(number, index)) > 1
        # Of a group the server checks the ids first. So a wrong last sequence in a group does not
        # come from an earlier attempt that stored the group.
        codes = {DUPLICATE_IN_GROUP} if grouped else WRONG_LAST_SEQUENCE.keys()
        if refusal.code not in codes or not isinstance(stream, str):
            return False
        self._doubts.append(_Doubt(number, index, stream, refusal))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look())
        return True

    def close(self) -> None:
        """Stop looking up: what is not reported yet never will be."""
        if self._task is not None:
            self._task.cancel()

    async def _look(self) -> None:
        while self._doubts:
            doubt = self._doubts.popleft()
            envelopes = self._events.in_flight(doubt.number, doubt.index)
            if not envelopes:
                continue  # settled, or sent again, in the meantime
            try:
                if doubt.refusal.code == DUPLICATE_IN_GROUP:
                    found = await self._group(doubt, envelopes)
                else:
                    found = await self._own_message(doubt, envelopes[0])
            except (ConnectError, JetStreamApiError) as error:
                reason = _in_doubt(doubt.refusal, error)
                found = Refusal(Verdict.GIVE_UP, reason, doubt.refusal.code)
            if isinstance(found, Receipt):
                self._events.acked(doubt.number, doubt.index, found)
            else:
                self._events.refused(doubt.number, doubt.index, found)
            self._events.process()

    async def _own_message(self, doubt: _Doubt, envelope: Envelope) -> Receipt | Refusal:
        """A receipt if the first message after the expected last one has this envelope's id."""
        options = envelope.options
        assert options is not None, "a wrong last sequence needs an expected one"
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
            if error.code == NO_MESSAGE_FOUND:
                return doubt.refusal
            raise
        message = answer["message"]
        headers = base64.b64decode(message.get("hdrs", ""))
        if b"\r\n" + message_id(envelope.event_id, dedupe=self._dedupe) in headers:
            return Receipt(doubt.stream, None, int(message["seq"]), True)
        return doubt.refusal

    async def _group(self, doubt: _Doubt, envelopes: Sequence[Envelope]) -> Receipt | Refusal:
        """A receipt if the server knows all ids of the group.

        If it knows only some, the group can never be stored. If it knows none any more, the group
        is tried again.
        """
        try:
            answers = await asyncio.gather(*map(self._ask_for, envelopes))
        except ConnectError as error:  # asking changed nothing, so it can be asked again
            reason = _in_doubt(doubt.refusal, error)
            return Refusal(Verdict.RETRY, reason, DUPLICATE_IN_GROUP)
        unknown = [answer["error"] for answer in answers if "error" in answer]
        for error_reply in unknown:
            if error_reply.get("err_code") != ROLLUP_FAILED:  # for example: the id is in process
                return classify(error_reply)
        if not unknown:
            last = answers[-1]["seq"]
            together = [answer["seq"] for answer in answers] == list(
                range(last + 1 - len(answers), last + 1)
            )
            return Receipt(doubt.stream, None, last if together else None, True)
        if len(unknown) == len({envelope.event_id for envelope in envelopes}):
            # The ids have left the duplicate window since the refusal.
            return doubt.refusal._replace(verdict=Verdict.RETRY)
        known = len(answers) - len(unknown)
        reason = (
            f"{doubt.refusal.reason}; {known} of the {len(answers)} envelopes of its group were "
            "stored before, the others were not"
        )
        return doubt.refusal._replace(reason=reason)

    async def _ask_for(self, envelope: Envelope) -> dict[str, Any]:
        """Ask the server whether it knows an event id, with a message that it never stores.

        The message carries the id and an invalid `Nats-Rollup`. The server checks the id first: a
        known id is answered as a duplicate, an unknown one with an error about the rollup (tried
        with single servers and clusters in `tests/integration/jetstream/test_groups.py`).
        """
        line = message_id(envelope.event_id).partition(b"\r\n")[0].decode()
        name, _, value = line.partition(": ")
        return await self._connection.ask(
            envelope.topic, {name: value, "Nats-Rollup": "none"}, self._seconds
        )


def _in_doubt(refusal: Refusal, error: Exception) -> str:
    return f"{refusal.reason}; the server could not say whether it was stored before: {error}"
