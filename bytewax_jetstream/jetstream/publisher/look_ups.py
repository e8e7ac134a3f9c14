"""`LookUps`: whether a refused envelope was stored by an earlier attempt, asked of the server.

A refusal does not prove that nothing is stored, after a lost ack or on a replay:

- Wrong last sequence. The server checks it before the event id. Say an envelope expects 7 and is
  stored as 8, but its ack is lost. Then the second attempt is refused, because the last sequence is
  8: its own.
- A limit that was lowered since. Some servers look at the size of a message before its id; and the
  publisher itself sends nothing that is too large.
- A group that can never be stored as it is. The source may have cut it differently before.
- A duplicate id in a group. The server does not say which ids it knows: all of them if an earlier
  attempt stored the group, or some that were stored otherwise.

So the ids are asked for (see `questions`), those of all refused envelopes at once. Known is stored;
unknown is refused. Without an answer the envelope is sent again, until its delivery timeout.

An expected sequence is also compared with the stream: after the duplicate window, the message that
is in the way may still be this very one.
"""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...envelope import Envelope
from ...errors import ConnectError
from ...publishing import PublisherEvents, Receipt, Refusal, Verdict
from ...settings import JetStreamSettings
from ..connection import Connection, JetStreamApiError
from .encoding import message_id
from .error_codes import (
    DUPLICATE_IN_GROUP,
    IN_PROCESS,
    NO_MESSAGE_FOUND,
    WRONG_LAST_SEQUENCE,
    classify,
)
from .groups import several_times
from .questions import NO_ANSWER, UNKNOWN_ID, Known, Questions

__all__ = ["LookUps", "known_sequence"]

AT_ONCE = 500
"""Messages of streams that are asked for at the same time."""


def known_sequence(known: Known) -> int | None:
    """The stream sequence of a known id; None when the id is not known, or nothing was said."""
    return None if isinstance(known, str) or "error" in known else int(known["seq"])


class _LookUp(NamedTuple):
    number: int
    at: int
    stream: str
    refusal: Refusal
    envelopes: Sequence[Envelope]


class LookUps:
    """Looks refused envelopes up, and reports them as stored or refused."""

    def __init__(
        self,
        connection: Connection,
        settings: JetStreamSettings,
        events: PublisherEvents,
        questions: Questions,
    ) -> None:
        self._connection = connection
        self._dedupe = settings.dedupe
        self._seconds = settings.pool.ack_timeout / 2
        """How long to wait for an answer. Half of the ack timeout: after the whole of it the
        envelope is sent again, refused again, and looked up from the start.
        """
        self._events = events
        self._questions = questions
        self._asked_for: set[tuple[int, int]] = set()
        """Number and index of what is looked up. Of a group the server may refuse several messages:
        the first refusal says why, the others only that the group is incomplete."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(AT_ONCE)

    def take(self, number: int, index: int, stream: str, refusal: Refusal) -> bool:
        """Start to look a single or a group up, if its refusal leaves a doubt; returns whether it
        does. If so, the result is reported from here.
        """
        if (number, index) in self._asked_for:
            return True
        envelopes = self._events.in_flight(number, index)
        if not envelopes or refusal.verdict is not Verdict.REJECT:
            return False
        look_up = _LookUp(number, index, stream, refusal, envelopes)
        if self._dedupe:
            self._asked_for.add((number, index))
            self._questions.ask(envelopes, lambda known: self._asked(look_up, known))
            return True
        # Of a group the server checks the ids first, and without `dedupe` there are none.
        if len(envelopes) == 1 and refusal.code in WRONG_LAST_SEQUENCE:
            self._read_stream(look_up)
            return True
        return False

    def disconnected(self) -> None:
        """What is asked for is not answered, and what was refused is sent again."""
        self._asked_for.clear()

    def close(self) -> None:
        """Stop looking up: what is not reported yet never will be."""
        for task in self._tasks:
            task.cancel()

    def _asked(self, look_up: _LookUp, known: Sequence[Known]) -> None:
        """Report what the ids say of an envelope, or of a group."""
        refusal, number, index = look_up.refusal, look_up.number, look_up.at
        self._asked_for.discard((number, index))
        answers = [each for each in known if not isinstance(each, str)]
        retry = _why_again(refusal, known)
        if retry is not None:
            self._events.refused(number, index, retry)
        elif any("error" in each for each in answers):
            self._events.refused(number, index, refusal)  # the server does not say
        elif UNKNOWN_ID not in known:
            self._store(look_up, answers)
        elif answers:
            receipts = [
                Receipt(str(each["stream"]), None, known_sequence(each), True)
                if not isinstance(each, str)
                else None
                for each in known
            ]
            self._events.group_known(number, index, receipts)
        elif refusal.code == DUPLICATE_IN_GROUP:
            repeated = several_times(look_up.envelopes)
            if repeated is not None:
                refusal = refusal._replace(reason=repeated, no_attempt_stored=True)
            else:  # the ids have left the duplicate window since the refusal
                refusal = refusal._replace(verdict=Verdict.RETRY)
            self._events.refused(number, index, refusal)
        elif refusal.code in WRONG_LAST_SEQUENCE and len(known) == 1:
            self._read_stream(look_up)
        else:
            self._events.refused(number, index, refusal._replace(no_attempt_stored=True))

    def _store(self, look_up: _LookUp, answers: Sequence[Mapping[str, Any]]) -> None:
        """All ids are known: each message is stored, not always in one stream or in one go."""
        streams = {str(answer["stream"]) for answer in answers}
        sequences = [int(answer["seq"]) for answer in answers]
        together = sequences == list(range(sequences[-1] + 1 - len(sequences), sequences[-1] + 1))
        stream = streams.pop() if len(streams) == 1 else None
        sequence = sequences[-1] if together and stream is not None else None
        self._events.acked(look_up.number, look_up.at, Receipt(stream, None, sequence, True))

    def _read_stream(self, look_up: _LookUp) -> None:
        task = asyncio.get_running_loop().create_task(self._compare(look_up))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(self, look_up: _LookUp) -> None:
        async with self._room:
            found = await self._own_message(look_up, look_up.envelopes[0])
        if isinstance(found, Receipt):
            self._events.acked(look_up.number, look_up.at, found)
        else:
            self._events.refused(look_up.number, look_up.at, found)
        self._events.process()

    async def _own_message(self, look_up: _LookUp, envelope: Envelope) -> Receipt | Refusal:
        """A receipt if the first message after the expected last one has this envelope's id."""
        options = envelope.options
        assert options is not None, "a wrong last sequence needs an expected one"
        # Without `dedupe` an earlier attempt can have been stored and removed since.
        refused = look_up.refusal._replace(no_attempt_stored=self._dedupe)
        if options.expected_last_sequence is not None:
            body: dict[str, object] = {"seq": options.expected_last_sequence + 1}
        else:
            body = {
                "seq": (options.expected_last_subject_sequence or 0) + 1,
                "next_by_subj": envelope.topic,
            }
        try:
            answer = await self._connection.request(
                f"STREAM.MSG.GET.{look_up.stream}", body, self._seconds
            )
            message = answer["message"]
            headers = base64.b64decode(message.get("hdrs", ""))
            if b"\r\n" + message_id(envelope.event_id, dedupe=self._dedupe) in headers:
                return Receipt(look_up.stream, None, int(message["seq"]), True)
        except JetStreamApiError as error:
            if error.code != NO_MESSAGE_FOUND:
                return _again(look_up.refusal, str(error))
        except ConnectError as error:
            forbidden = error.subject is not None and error.seconds is None
            if forbidden and self._dedupe:
                return refused  # this user may not read the stream, and the id is not known
            if forbidden:
                reason = _unsaid(look_up.refusal, str(error))
                return Refusal(Verdict.GIVE_UP, reason, look_up.refusal.code)
            return _again(look_up.refusal, str(error))
        except (KeyError, TypeError, ValueError) as error:
            return _again(look_up.refusal, f"malformed answer ({error})")
        return refused


def _why_again(refusal: Refusal, known: Sequence[Known]) -> Refusal | None:
    """Why an envelope is sent again, if its id was not found out; None if it was."""
    if NO_ANSWER in known:
        return _again(refusal, "it did not answer")
    for each in known:
        if isinstance(each, str) or "error" not in each:
            continue
        said = classify(each["error"])
        if said.code == IN_PROCESS:
            return said
        if said.verdict is not Verdict.REJECT:
            return _again(refusal, said.reason)
    return None


def _again(refusal: Refusal, why: str) -> Refusal:
    return Refusal(Verdict.RETRY, _unsaid(refusal, why), refusal.code)


def _unsaid(refusal: Refusal, why: str) -> str:
    return f"{refusal.reason}; the server could not say whether it was stored before: {why}"
