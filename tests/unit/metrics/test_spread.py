"""Values by bucket."""

import pytest

from bytewax_jetstream.metrics import Spread


@pytest.mark.parametrize(
    ("value", "buckets"),
    [
        (0.0, [1, 1, 1]),
        (1.0, [1, 1, 1]),
        (1.000001, [0, 1, 1]),
        (5.0, [0, 1, 1]),
        (5.1, [0, 0, 1]),
    ],
)
def test_value_is_in_each_bucket_that_it_is_not_above(value: float, buckets: list[int]) -> None:
    spread = Spread((1.0, 5.0))
    spread.add(value)
    assert spread.cumulative() == [
        (bound, float(count)) for bound, count in zip(("1.0", "5.0", "+Inf"), buckets, strict=True)
    ]


def test_values_are_counted_and_summed() -> None:
    spread = Spread((1.0,))
    spread.add(0.5, 3)
    spread.add(2.0, 2)
    both = spread + spread

    assert (spread.counts, spread.sum) == ([3, 2], 5.5)
    assert (both.counts, both.sum) == ([6, 4], 11.0)


def test_copy_does_not_change_with_the_original() -> None:
    spread = Spread((1.0,))
    copied = spread.copy()
    spread.add(0.5)
    assert copied.counts == [0, 0]
