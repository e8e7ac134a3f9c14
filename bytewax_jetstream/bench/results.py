"""Results files in JSON: loaded, saved and checked; the machine and the installed versions."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import BenchError
from .figures import Round

__all__ = ["about", "check", "commit", "installed_versions", "load", "machine", "save"]

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("bytewax-jetstream", "bytewax", "nats-py", "confluent-kafka")


def load(path: Path) -> dict[str, Any]:
    """Read a results file.

    :raises BenchError: when it is not a results file.
    """
    try:
        results = json.loads(path.read_text())
        if not isinstance(results["rounds"], list):
            raise TypeError("its rounds are not a list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{path} is not a results file ({error}): name one that --json has written"
        ) from None
    return dict(results)


def save(results: dict[str, Any], path: Path) -> None:
    """Write a results file, a line per round, so that two files can be compared."""
    head = {key: value for key, value in results.items() if key != "rounds"}
    lines = ",\n".join(json.dumps(entry) for entry in results["rounds"])
    path.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "rounds": [\n{lines}\n ]\n}}\n')


def check(rounds: Iterable[Round]) -> list[str]:
    """A sentence for each round that lost or duplicated a message, or a result."""
    return [
        f"{entry['scenario']}, {entry['broker']} {entry['strategy']}, {entry['storage']}, "
        f"{entry['ids']}, round {entry['round']}: {entry['acked']} of {entry['messages']} "
        f"acknowledged, {entry['found']} found, {entry['duplicates']} twice, "
        f"{entry.get('repeated', 0)} acknowledged again"
        for entry in rounds
        if entry["success"] < 1
        or entry["found"] != entry["messages"]
        or entry["duplicates"]
        or entry.get("repeated")
    ]


def about(results: dict[str, Any]) -> str:
    """How and where a results file was made, in two lines."""
    machine, versions = results["machine"], results["versions"]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    made = results.get("commit")
    return (
        f"`{results['command']}`\n\n"
        f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gb']} GB; {software}"
        f"{f'; commit {made}' if made else ''}."
    )


def commit() -> str | None:
    """The commit of the package that is measured, `+` for a change since; None without one."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(
            command, cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=10
        )
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", "__init__.py"],
            cwd=PACKAGE, capture_output=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """What this machine is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
