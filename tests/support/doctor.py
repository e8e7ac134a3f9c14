"""What `bytewax-jetstream doctor` found, looked at step by step."""

from typing import Any

from tests.support.commands import call

__all__ = ["Steps", "doctor", "failure", "only"]

Steps = list[dict[str, Any]]


def doctor(code: int, *arguments: str) -> Steps:
    """The steps; with that exit code, and the same said to a reader."""
    ended = call("doctor", "--json", *arguments)
    told = ended.json
    steps: Steps = told["steps"]
    assert (ended.code, told["exit_code"]) == (code, code), steps
    assert ended.err == ""
    assert all(step["advice"] for step in steps if step["status"] in ("failed", "warning"))
    failed = [step for step in steps if step["status"] == "failed"]
    assert {step["exit_code"] for step in failed} >= ({code} if code else set())
    return steps


def only(steps: Steps, name: str, status: str) -> dict[str, Any]:
    """The one step of that name that ended like that."""
    found = [step for step in steps if (step["step"], step["status"]) == (name, status)]
    assert len(found) == 1, steps
    return found[0]


def failure(code: int, name: str, *arguments: str) -> str:
    """What the one step that failed has found, and what it says to do."""
    steps = doctor(code, *arguments)
    assert [step["step"] for step in steps if step["status"] == "failed"] == [name], steps
    step = only(steps, name, "failed")
    return f"{step['said']} -> {step['advice']}"
