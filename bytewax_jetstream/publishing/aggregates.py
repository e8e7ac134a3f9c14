"""Which envelopes belong together because they are of one aggregate."""

from collections.abc import Iterable

from ..envelope import Envelope

__all__ = ["indices_by_aggregate"]


def indices_by_aggregate(envelopes: Iterable[Envelope]) -> list[list[int]]:
    """The indices of each aggregate's envelopes, ordered by each aggregate's first envelope.

    An envelope without an aggregate stands alone. Example: aggregates `a, b, a, None` give
    `[[0, 2], [1], [3]]`.
    """
    groups: dict[str | int, list[int]] = {}
    for index, envelope in enumerate(envelopes):
        aggregate = envelope.aggregate_id
        # An id that is not a str makes only its own envelope bad, which is found elsewhere.
        key = aggregate if isinstance(aggregate, str) else index
        groups.setdefault(key, []).append(index)
    return list(groups.values())
