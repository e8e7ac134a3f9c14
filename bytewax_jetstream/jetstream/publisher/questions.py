"""`Questions`: asks the server which event ids it knows, many at once, and stores nothing by it.

A question is a message with the id and an invalid `Nats-Rollup`. The server checks the id first: a
known id is answered as a duplicate, an unknown one with an error about the rollup, so the message
is never stored (tried with single servers and clusters in
`tests/integration/jetstream/test_groups.py`). The server knows an id for as long as the stream's
duplicate window, also when the message was purged, expired or consumed meanwhile.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from ...envelope import Envelope
from .encoding import message_id
from .error_codes import ROLLUP_FAILED

__all__ = ["NO_ANSWER", "UNKNOWN_ID", "Known", "Questions"]

TRIES = 3
"""How often a question is asked before it counts as not answered."""

UNKNOWN_ID = "unknown id"
NO_ANSWER = "no answer"

Known = Mapping[str, Any] | str
"""What is known of an event id: the server's PubAck of the stored message, its error, `UNKNOWN_ID`
or `NO_ANSWER`."""


class _Asked:
    """Envelopes whose ids are asked for together."""

    __slots__ = ("answers", "envelopes", "missing", "then", "timer", "tries")

    def __init__(
        self, envelopes: Sequence[Envelope], then: Callable[[Sequence[Known]], None]
    ) -> None:
        self.envelopes = envelopes
        self.answers: list[Known] = [NO_ANSWER] * len(envelopes)
        self.missing = set(range(len(envelopes)))
        self.then = then
        self.tries = 0
        self.timer: asyncio.TimerHandle | None = None


class Questions:
    """The questions of one publisher that are not answered yet.

    :arg write: Writes frames to the server, one on each of these topics.
    :arg seconds: How long to wait for the answers of all tries.
    :arg on_late: Called after questions were given up, because no read of the connection follows.
    """

    def __init__(
        self, write: Callable[[bytes, list[str]], None], seconds: float, on_late: Callable[[], None]
    ) -> None:
        self._write = write
        self._seconds = seconds / TRIES
        self._on_late = on_late
        self._numbers = count(1)
        self._asked: dict[int, _Asked] = {}
        self.inbox = b""
        """How the reply subjects of questions begin."""

    def ask(self, envelopes: Sequence[Envelope], then: Callable[[Sequence[Known]], None]) -> None:
        """Ask for the ids of envelopes; `then` is called once with what is known of each."""
        number = next(self._numbers)
        self._asked[number] = asked = _Asked(envelopes, then)
        self._send(number, asked)

    def answered(self, number: int, index: int, answer: Mapping[str, Any]) -> None:
        """The server has answered a question."""
        asked = self._asked.get(number)
        if asked is None or index not in asked.missing:
            return
        error = answer.get("error")
        unknown = error is not None and error["err_code"] == ROLLUP_FAILED
        asked.answers[index] = UNKNOWN_ID if unknown else answer
        asked.missing.discard(index)
        if not asked.missing:
            self._end(number, asked)

    def topic(self, number: int, index: int) -> str | None:
        """The topic on which a question was asked, if it is not answered."""
        asked = self._asked.get(number)
        return asked.envelopes[index].topic if asked and index in asked.missing else None

    def denied(self, topic: str) -> bool:
        """The server has dropped a message on a topic; returns whether it was a question."""
        for number, asked in self._asked.items():
            for index in asked.missing:
                if asked.envelopes[index].topic == topic:
                    asked.missing.discard(index)
                    if not asked.missing:
                        self._end(number, asked)
                    return True
        return False

    def forget(self) -> None:
        """Nobody waits for the answers any more: the connection is lost, or closed."""
        for asked in self._asked.values():
            if asked.timer is not None:
                asked.timer.cancel()
        self._asked.clear()

    def _send(self, number: int, asked: _Asked) -> None:
        asked.tries += 1
        frames, topics = [], []
        for index in sorted(asked.missing):
            envelope = asked.envelopes[index]
            topics.append(envelope.topic)
            line = message_id(envelope.event_id).partition(b"\r\n")[0]
            headers = b"NATS/1.0\r\n%s\r\nNats-Rollup: none\r\n\r\n" % line
            frames.append(
                b"HPUB %s %s%d.%d %d %d\r\n%s\r\n"
                % (
                    envelope.topic.encode(),
                    self.inbox,
                    number,
                    index,
                    len(headers),
                    len(headers),
                    headers,
                )
            )
        self._write(b"".join(frames), topics)
        loop = asyncio.get_running_loop()
        asked.timer = loop.call_later(self._seconds, self._silent, number)

    def _silent(self, number: int) -> None:
        asked = self._asked[number]
        if asked.tries < TRIES:
            self._send(number, asked)
        else:
            self._end(number, asked)
            self._on_late()

    def _end(self, number: int, asked: _Asked) -> None:
        del self._asked[number]
        if asked.timer is not None:
            asked.timer.cancel()
        asked.then(asked.answers)
