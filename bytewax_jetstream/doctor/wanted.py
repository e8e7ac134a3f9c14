"""The steps `streams` and `topics`: what a run would find at its start, by its strategy."""

from ..exit_codes import ExitCode
from ..planning import Action, Entry, Plan
from .report import Report

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
    made = strategy in CREATES
    if entry.action is Action.KEEP:
        by = f"stored by stream {entry.stored_by}" if entry.stored_by else "as the settings require"
        report.ok(name, f"{what} is {by}")
        return
    if entry.action is Action.CREATE and made:
        later = (
            f"will be stored by stream {entry.stored_by}"
            if entry.stored_by
            else "is missing, and the run will create it"
        )
        report.ok(name, f"{what} {later}")
        return
    if entry.action is Action.CHANGE and (not entry.shortcomings or strategy == "create_or_update"):
        report.ok(name, f"{what} is there; bytewax-jetstream streams plan shows what would change")
        return
    said = "; ".join(entry.obstacles or entry.shortcomings)
    advice = "" if entry.obstacles else "bytewax-jetstream streams apply makes it"
    if strategy == "skip":
        report.warn(name, said, advice or "publishing to it will be refused")
    else:
        report.fail(name, said, advice, ExitCode.REFUSED)
