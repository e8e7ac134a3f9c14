"""Values of users, as text and as arguments: whatever they are, no code of theirs raises here."""

from collections.abc import Sequence

from ..envelope import Envelope

__all__ = ["check_envelopes", "printable", "text_of"]

LONGEST = 80
"""Characters of a value that an error shows."""
JUST_ENVELOPES = frozenset({Envelope})


def text_of(value: object) -> str:
    """A value as text: of a `str` its characters, of anything else its `repr`, cut."""
    if isinstance(value, str):
        return str.__str__(value)  # a type of the user's may have another `__format__`
    try:
        text = repr(value)
    except Exception:  # the code of the value's type
        text = object.__repr__(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def printable(text: str) -> str:
    """A text that every log can write: a lone surrogate, which no file takes, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_envelopes(items: Sequence[object], step: str) -> None:
    """Check that all items are envelopes, before any of them is published.

    :raises TypeError: with the step and the item.
    """
    if JUST_ENVELOPES.issuperset(map(type, items)):
        return
    for item in items:
        if isinstance(item, Envelope):
            continue
        what = f"step {step} publishes Envelopes, and got {type(item).__name__} {text_of(item)}"
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Envelope):
            raise TypeError(f"{what}: remove the key with op.key_rm before this step")
        raise TypeError(f"{what}: make an Envelope of each item before this step")
