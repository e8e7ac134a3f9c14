"""`Report`: what each step found out, for a reader and for a machine."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from ..exit_codes import ExitCode

__all__ = ["Report", "Status", "Step", "parts"]


def parts(sentence: str) -> tuple[str, str]:
    """What happened and what to do: our errors say both, in this order."""
    cut = max(sentence.rfind(": "), sentence.rfind("; "))
    return (sentence[:cut], sentence[cut + 2 :]) if cut > 0 else (sentence, "see what it says")


class Status(StrEnum):
    """How a step ended."""

    OK = "ok"
    WARNING = "warning"
    """Flows run; somebody should look at it."""
    FAILED = "failed"
    """No flow can run."""
    SKIPPED = "skipped"
    """An earlier step failed, or there is nothing to look at."""


class Step(NamedTuple):
    """One thing that was looked at."""

    broker: str
    server: str
    """The address that was looked at; empty for all of them."""
    name: str
    status: Status
    said: str
    """What was found."""
    advice: str = ""
    """What to do."""
    code: ExitCode = ExitCode.STORED
    """What the exit code of a run would be, if it failed."""


class Report:
    """The steps in order; a problem of one server counts less if another one works.

    :arg broker: The broker that is looked at.
    """

    def __init__(self, broker: str) -> None:
        self.broker = broker
        self.steps: list[Step] = []

    def ok(self, name: str, said: str, server: str = "") -> None:
        """A step found nothing wrong."""
        self.steps.append(Step(self.broker, server, name, Status.OK, said))

    def warn(self, name: str, said: str, advice: str, server: str = "") -> None:
        """A step found something that stops no flow."""
        self.steps.append(Step(self.broker, server, name, Status.WARNING, said, advice))

    def skip(self, name: str, said: str, server: str = "") -> None:
        """A step had nothing to look at."""
        self.steps.append(Step(self.broker, server, name, Status.SKIPPED, said))

    def fail(self, name: str, said: str, advice: str, code: ExitCode, server: str = "") -> None:
        """A step found what stops every flow."""
        self.steps.append(Step(self.broker, server, name, Status.FAILED, said, advice, code))

    def excuse_servers(self) -> None:
        """Another server works, so that those which do not stop no flow."""
        self.steps = [
            step._replace(status=Status.WARNING, code=ExitCode.STORED)
            if step.server and step.status is Status.FAILED
            else step
            for step in self.steps
        ]

    @property
    def exit_code(self) -> ExitCode:
        """0, or the gravest code: somebody must change something before running again helps."""
        codes = [step.code for step in self.steps if step.status is Status.FAILED]
        for code in (ExitCode.USAGE, ExitCode.REFUSED, ExitCode.UNKNOWN):
            if code in codes:
                return code
        return ExitCode.STORED

    def lines(self) -> Iterator[str]:
        """The report for a reader."""
        yield "JetStream" if self.broker == "jetstream" else "Kafka"
        for step in self.steps:
            where = f"{step.server}: " if step.server else ""
            yield f"  {WORDS[step.status]:8}{step.name:16}{where}{step.said}"
            if step.advice:
                yield f"{'':10}{'':16}-> {step.advice}"

    def as_json(self) -> list[dict[str, Any]]:
        """The steps for a machine."""
        return [
            {
                "broker": step.broker,
                "server": step.server,
                "step": step.name,
                "status": step.status.value,
                "said": step.said,
                "advice": step.advice,
                "exit_code": int(step.code),
            }
            for step in self.steps
        ]


WORDS = {
    Status.OK: "ok",
    Status.WARNING: "WARNING",
    Status.FAILED: "FAILED",
    Status.SKIPPED: "-",
}
