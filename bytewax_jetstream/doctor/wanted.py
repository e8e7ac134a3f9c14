"""The steps `streams` and `topics`: what a run would find at its start, by its strategy."""

from ..exit_codes import ExitCode
from ..planning import Action, Entry, Plan
from .report import Report, parts

__all__ = ["report_plan"]

CREATES = ("create", "create_or_update")


def report_plan(plan: Plan, strategy: str, report: Report) -> None:
    """Each stream and topic of the plan, as the strategy of the settings deals with it."""
    if not plan.entries:
        report.skip("streams", "the settings name no streams and no topics")
    for entry in plan.entries:
        _report(entry, strategy, report)


def _report(entry: Entry, strategy: str, report: Report) -> None:
    name, what = f"{entry.kind}s", f"{entry.kind} {entry.name}"
    if entry.action is Action.KEEP:
        by = f"stored by stream {entry.stored_by}" if entry.stored_by else "as the settings require"
        report.ok(name, f"{what} is {by}")
        return
    if entry.action is Action.CREATE and strategy in CREATES:
        later = (
            f"will be stored by stream {entry.stored_by}"
            if entry.stored_by
            else "is missing, and the run will create it"
        )
        report.ok(name, f"{what} {later}")
        return
    updates = strategy == "create_or_update"
    if (not entry.shortcomings and not updates) or (entry.action is Action.CHANGE and updates):
        report.ok(name, f"{what} is there; bytewax-jetstream streams plan shows what would change")
        return
    made = "have it made: bytewax-jetstream streams apply does it, by a user who may"
    found = [(each, made) for each in entry.shortcomings]
    if entry.obstacles and (strategy in CREATES or not found):
        found = [parts(each) for each in entry.obstacles]
    said = "; ".join(each for each, _ in found)
    advice = "; ".join(dict.fromkeys(each for _, each in found))
    if strategy == "skip":
        report.warn(name, said, advice)
    else:
        report.fail(name, said, advice, ExitCode.REFUSED)
