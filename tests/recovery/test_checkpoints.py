"""An epoch's checkpoint comes soon after the epoch, also while the input is idle."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import publishing, run
from tests.support.lanes import jetstream
from tests.support.streams import envelopes, make_stream
from tests.support.waiting import PATIENCE


class _OnceThenIdle(FixedPartitionedSource[Envelope, None]):
    """Gives a batch, and then nothing until it is told that this is enough."""

    def __init__(self, batch: Sequence[Envelope], enough: Callable[[], bool]) -> None:
        self._batch, self._enough = batch, enough

    def list_parts(self) -> list[str]:
        return ["only"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_OnceThenIdlePart":
        return _OnceThenIdlePart(self._batch, self._enough)


class _OnceThenIdlePart(StatefulSourcePartition[Envelope, None]):
    def __init__(self, batch: Sequence[Envelope], enough: Callable[[], bool]) -> None:
        self._batch, self._enough = batch, enough
        self._deadline = time.monotonic() + PATIENCE

    def next_batch(self) -> Sequence[Envelope]:
        batch, self._batch = self._batch, ()
        if not batch and self._enough():
            raise StopIteration
        assert time.monotonic() < self._deadline, f"not within {PATIENCE:g} s"
        return batch

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + timedelta(milliseconds=5)

    def snapshot(self) -> None:
        return None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_checkpoint_comes_while_the_input_is_idle(workers: int, nats_server: NatsServer) -> None:
    stream = f"IDLE-{workers}"
    make_stream(nats_server.url, stream, f"{stream}.>")
    source = _OnceThenIdle(envelopes(5, f"{stream}.rows"), lambda: len(made.checkpoints) == 1)
    made = publishing(source, jetstream(nats_server.url))

    run(made.flow, workers=workers)

    (checkpoint,) = made.checkpoints
    assert (checkpoint.stored, checkpoint.rejected) == (5, 0)
    assert {result.epoch for result in made.oks} == {checkpoint.epoch}
