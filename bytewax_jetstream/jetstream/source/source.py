"""`JetStreamSource`: a Bytewax source whose partitions are streams, or subjects of streams."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from ... import drain
from ...drain import DrainingPartition
from ...errors import SourceError
from ...recovery_state import SourceState, read_source_state
from ...settings import JetStreamSettings
from ..message import Item, Start
from .by_durable import DurablePartition
from .by_sequence import SequencePartition
from .consumers import Reading
from .shared_connection import lease, release

__all__ = ["JetStreamSource"]

ACK_WAIT = timedelta(seconds=90)
"""Default of `ack_wait`: an epoch of 10 s, plus 60 s in which a publisher may wait for its broker,
and a margin.
"""
NAME = re.compile(r"[^\s.*>/\\]{1,255}").fullmatch
WORD = r"(\*|[^\x00-\x20\x7f-\x9f.*>]+)"
SUBJECT = re.compile(rf"{WORD}(\.{WORD})*(\.>)?|>").fullmatch


class JetStreamSource(FixedPartitionedSource[Item, SourceState]):
    """Reads every message of one or more streams; after a crash it goes on from the last committed
    epoch.

    Messages come in the stream's order. One that cannot be read comes in its place as an
    `UnreadableMessage`. The unit of parallelism is a stream, or a pair of a stream and one of
    `subjects`: as many workers can read as there are pairs. Do not remove a stream or a subject
    from the arguments while its recovery state is kept. At SIGTERM or SIGINT all partitions stop,
    and the epoch is committed.

    *By sequence*, without `durable`: the server keeps nothing for the source. The position is in
    Bytewax's recovery store; with it, every message counts once in the dataflow's state. Messages
    that were purged or expired before they were read are skipped.

    *With a durable consumer*: for work-queue and interest streams, or where the server should keep
    the position. A message is acknowledged when Bytewax has committed its epoch, never before.
    After a crash, unacknowledged messages come again once `ack_wait` has passed: at least once,
    and no longer in the stream's order. With recovery, a committed message is not emitted again,
    even if its ack was lost.

    :arg settings: How to reach JetStream.

    :arg streams: Names of streams.

    :arg subjects: Read only messages on these subjects (`orders.*`, `orders.>`), which must not
    overlap.

    :arg durable: Name of the durable consumer, made if it is missing. With several `subjects`,
        each has its own consumer, named `durable` and a digest of the subject.

    :arg tail: Wait for new messages at the end. If False, reading by sequence ends at the stream's
        last message at start. With `durable` it ends when no message is left and the last epoch's
        messages are acknowledged, so at the end of that epoch.

    :arg start: Where to start without recovery state, or when the durable consumer is made:
        `first`, `new`, a stream sequence, or a time (with its zone).

    :arg batch_size: How many messages a batch may have. Each partition reads four batches ahead,
        up to 32 MiB.

    :arg ack_wait: With `durable`: after how long the server delivers an unacknowledged message
        again. It must be longer than an epoch; when an epoch takes 80 % of it, the run stops with
        an error.

    :arg max_ack_pending: With `durable`: how many messages may be unacknowledged. It should exceed
        the messages of an epoch; if it does not, reading waits for the epoch's end.
    """

    def __init__(
        self,
        settings: JetStreamSettings,
        *,
        streams: Sequence[str] | str,
        subjects: Sequence[str] | str = (),
        durable: str | None = None,
        tail: bool = True,
        start: Start = "first",
        batch_size: int = 1000,
        ack_wait: timedelta = ACK_WAIT,
        max_ack_pending: int = 100_000,
    ) -> None:
        streams = (streams,) if isinstance(streams, str) else tuple(streams)
        subjects = (subjects,) if isinstance(subjects, str) else tuple(subjects)
        _check_names(streams, subjects, durable)
        if batch_size < 1 or max_ack_pending < 1 or ack_wait <= timedelta(0):
            raise ValueError("batch_size, max_ack_pending and ack_wait must be positive")
        if isinstance(start, datetime):
            if start.tzinfo is None:
                raise ValueError(f"start {start} has no time zone: add one, such as datetime.UTC")
        elif start not in ("first", "new") and (type(start) is not int or start < 1):
            raise ValueError(
                f"invalid start {start!r}: give 'first', 'new', a sequence from 1, or a time"
            )
        drain.install(settings.pool.drain_timeout)
        self._settings = settings
        self._tail = tail
        self._batch_size = batch_size
        self._readings: dict[str, Reading] = {}
        for stream in streams:
            for subject in subjects or (None,):
                name = durable
                if durable is not None and subject is not None and len(subjects) > 1:
                    name = f"{durable}-{sha256(subject.encode()).hexdigest()[:8]}"
                # A stream's name has no slash, so the first one tells the two apart.
                part = stream if subject is None else f"{stream}/{subject}"
                self._readings[part] = Reading(
                    stream, subject, start, name, ack_wait, max_ack_pending
                )

    def list_parts(self) -> list[str]:
        """The streams, or the pairs `stream/subject`."""
        return list(self._readings)

    def build_part(
        self, step_id: str, for_part: str, resume_state: SourceState | None
    ) -> DrainingPartition:
        """Connect, and find or make the consumer, so that errors come before any message.

        :raises ConnectError: when the server cannot be reached, or does not let this user in.
        :raises StreamError: when the stream is missing.
        :raises SourceError: when the stream cannot be read as the arguments require.
        """
        reading = self._readings[for_part]
        resumed = None if resume_state is None else read_source_state(resume_state, step_id)
        if resumed is not None and isinstance(resumed, int) != (reading.durable is None):
            was = "by sequence" if isinstance(resumed, int) else "with a durable consumer"
            raise SourceError(
                f"{reading} was read {was} by step {step_id} before: give the input another step "
                "id, or read it as before",
                step=step_id,
                stream=reading.stream,
                subject=reading.subject,
                consumer=reading.durable,
            )
        shared = lease(self._settings)
        try:
            part: StatefulSourcePartition[Item, SourceState]
            if reading.durable is None:
                assert not isinstance(resumed, tuple)
                part = SequencePartition(shared, reading, self._tail, self._batch_size, resumed)
            else:
                assert not isinstance(resumed, int)
                part = DurablePartition(
                    shared, reading, self._tail, self._batch_size, resumed or ()
                )
        except BaseException:
            release(shared)
            raise
        return DrainingPartition(part)


def _check_names(streams: Sequence[str], subjects: Sequence[str], durable: str | None) -> None:
    """Check that names are valid and that no message would come twice.

    :raises ValueError: with what is wrong, and what to do.
    """
    if not streams or len(set(streams)) < len(streams):
        raise ValueError(f"streams {streams!r}: give at least one, and each once")
    for name in (*streams, *((durable,) if durable is not None else ())):
        if not NAME(name):
            raise ValueError(
                f"{name!r} is not a valid name of a stream or consumer: "
                "use no spaces, dots, wildcards or slashes"
            )
    for at, subject in enumerate(subjects):
        if not SUBJECT(subject):
            raise ValueError(
                f"{subject!r} is not a valid subject: use words with dots between them, * for one "
                "word, > for the rest"
            )
        for other in subjects[:at]:
            if _overlap(subject, other):
                raise ValueError(
                    f"subjects {other} and {subject} overlap, so a message on both would come "
                    "twice: leave one out"
                )


def _overlap(one: str, other: str) -> bool:
    """Whether a subject can match both patterns."""
    ours, theirs = one.split("."), other.split(".")
    for mine, its in zip(ours, theirs, strict=False):
        if ">" in (mine, its):
            return True
        if mine != its and "*" not in (mine, its):
            return False
    return len(ours) == len(theirs)
