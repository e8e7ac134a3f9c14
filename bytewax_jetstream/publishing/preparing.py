"""What both brokers share when they check envelopes: one bad one harms no other."""

from collections.abc import Callable, Iterable, Mapping

from ..envelope import Envelope
from ..errors import EnvelopeError
from .outgoing import Wire

__all__ = ["header_items", "prepare_each"]


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


def header_items(headers: object) -> list[tuple[object, object]]:
    """Names and values of an envelope's headers, which the broker has to check.

    :raises EnvelopeError: when the headers are not a mapping, or cannot be read.
    """
    if not isinstance(headers, Mapping):
        raise EnvelopeError(
            f"the headers must be a mapping of str to str, not {type(headers).__name__}",
            field="headers",
        )
    try:
        return list(dict(headers).items())
    except Exception as error:  # the user's own mapping may raise anything
        raise EnvelopeError(
            f"the headers cannot be read ({type(error).__name__}): give a dict of str to str",
            field="headers",
        ) from None
