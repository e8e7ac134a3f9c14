"""Preparing envelopes one at a time, so that a bad one cannot harm the others."""

from collections.abc import Callable, Iterable

from ..envelope import Envelope
from ..errors import EnvelopeError
from .outgoing import Wire

__all__ = ["prepare_each"]


def prepare_each(
    prepare: Callable[[Envelope], Wire], envelopes: Iterable[Envelope]
) -> list[Wire | EnvelopeError]:
    """For each envelope its wire form, or the `EnvelopeError` that says why it cannot have one."""
    prepared: list[Wire | EnvelopeError] = []
    for envelope in envelopes:
        try:
            wire = prepare(envelope)
        except EnvelopeError as error:
            wire = error
        except Exception as error:  # an unforeseen value must harm its own envelope only
            wire = EnvelopeError(
                f"it cannot be encoded ({type(error).__name__}): "
                "give its fields the types that Envelope names"
            )
        prepared.append(wire)
    return prepared
