"""`JetStreamSource`: a Bytewax source whose partitions are streams, or subjects of streams."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from bytewax.inputs import FixedPartitionedSource

from ... import drain
from ...drain import DrainingPartition
from ...errors import SourceError
from ...recovery_state import DurableState, SequenceState, SourceState, read_source_state
from ...settings import JetStreamSettings
from ..message import Item, Start
from .by_durable import DurablePartition
from .by_sequence import SequencePartition
from .reading import Reading
from .shared_connection import lease, release

__all__ = ["JetStreamSource"]

ACK_WAIT = timedelta(seconds=90)
"""Default of `ack_wait`: an epoch of 10 s, plus 60 s in which a publisher may wait for its broker,
and a margin. So a process that stands still for as long, and renews nothing, repeats nothing.
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
    that were purged or expired before they were read are skipped, with a warning that says how
    many; `skipped` counts them. A stream that was deleted and created again since is refused.

    *With a durable consumer*: for work-queue and interest streams, or where the server should keep
    the position. A message is acknowledged when Bytewax has committed its epoch, never before.
    Until then the server is told that it is being worked on, for at most 15 minutes (or ten times
    `ack_wait`, if that is longer); an epoch that takes longer stops the run with an error. A
    consumer that was deleted, or deleted and made again, since the last run is refused. After a
    crash, unacknowledged messages come again once `ack_wait` has passed: at least once,
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

    :arg batch_size: How many messages a batch may have. Each partition reads four batches ahead.
        All partitions of a process with equal settings request up to 32 MiB ahead together; if the
        server cuts the connection meanwhile, as it does with a slow consumer, they request less.

    :arg ack_wait: With `durable`: after how long the server delivers the messages of a crashed run
        again. An epoch may take longer.

    :arg max_ack_pending: With `durable`: how many messages may be unacknowledged. It should exceed
        the messages of an epoch; if it does not, reading waits for the epoch's end. Where the
        stream's `consumer_limits` allow less, it is as many as they allow.
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
        self._parts: dict[str, SequencePartition | DurablePartition] = {}
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
        reading = self._readings[for_part]._replace(step=step_id)
        before = None if resume_state is None else read_source_state(resume_state, step_id)
        _check_way(reading, before)
        shared = lease(self._settings)
        try:
            part: SequencePartition | DurablePartition
            if reading.durable is None:
                assert not isinstance(before, DurableState), "it was checked"
                part = SequencePartition(shared, reading, self._tail, self._batch_size, before)
            else:
                assert not isinstance(before, SequenceState), "it was checked"
                part = DurablePartition(shared, reading, self._tail, self._batch_size, before)
        except BaseException:
            release(shared)
            raise
        self._parts[for_part] = part
        return DrainingPartition(part)

    @property
    def skipped(self) -> int:
        """How many messages were removed from the streams before this process read them.

        Limits can overtake a reader, somebody may purge. With `subjects` it is the most it can be.
        """
        return sum(part.skipped for part in self._parts.values())


def _check_way(reading: Reading, before: SequenceState | DurableState | None) -> None:
    """Check that the partition is read in the same way as before.

    :raises SourceError: when it is not.
    """
    if before is None:
        return
    if isinstance(before, SequenceState):
        was, same = "by sequence", reading.durable is None
    else:
        was = f"with a durable consumer{f' ({before.consumer})' if before.consumer else ''}"
        same = reading.durable is not None and before.consumer in (None, reading.durable)
    if not same:
        raise SourceError(
            f"{reading} was read {was} by step {reading.step} before: give the input another step "
            "id, or read it as before",
            step=reading.step,
            stream=reading.stream,
            subject=reading.subject,
            consumer=reading.durable,
        )


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
