"""How often somebody who follows a batch through the core has to change files."""

from tests.support.module_switches import count_switches


def test_batch_of_three_changes_modules_at_most_20_times() -> None:
    assert count_switches().changes <= 20
