"""Whether a step of the finished dataflow reads a stream."""

from collections.abc import Iterable

from bytewax.dataflow import Operator, Stream

__all__ = ["is_read"]


def is_read(stream: Stream[object]) -> bool:
    """Whether any step reads this stream; ask when the dataflow runs, because it is complete then.

    The operators of Bytewax's core do the reading. All others are made of these, and may take a
    stream, or give it back, without reading it.
    """
    return any(stream.stream_id in _read_by(step) for step in _core(stream.flow().substeps))


def _core(steps: Iterable[Operator]) -> Iterable[Operator]:
    for step in steps:
        if getattr(step, "core", False):
            yield step
        yield from _core(step.substeps)


def _read_by(step: Operator) -> set[str]:
    ports = (getattr(step, name) for name in step.ups_names)
    return {stream_id for port in ports for stream_id in port.stream_ids.values()}
