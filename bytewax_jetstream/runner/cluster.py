"""`Cluster`: which process of a dataflow this is, and where the others are."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

from ..errors import RunError

__all__ = ["Cluster"]

ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:;]+):(\d{1,5})").fullmatch


class Cluster(NamedTuple):
    """The processes of one dataflow; they exchange items by Bytewax's own cluster."""

    process: int = 0
    """The number of this process."""
    addresses: tuple[str, ...] = ()
    """`host:port` of every process, in their order; empty when this is the only one."""

    @property
    def size(self) -> int:
        """How many processes there are."""
        return len(self.addresses) or 1

    @property
    def hosts(self) -> list[str]:
        """The host of every process."""
        return [address.rpartition(":")[0] for address in self.addresses]

    @classmethod
    def of(
        cls,
        process: int | None,
        addresses: str | None,
        environment: Mapping[str, str] = os.environ,
    ) -> Self:
        """Read it from the options, or as Bytewax does in a StatefulSet.

        `BYTEWAX_POD_NAME` and `BYTEWAX_STATEFULSET_NAME` give the number (`orders-2` of `orders`),
        and the file `BYTEWAX_HOSTFILE_PATH` or `BYTEWAX_ADDRESSES` the addresses.

        :raises RunError: when they do not fit each other.
        """
        if addresses is None and (path := environment.get("BYTEWAX_HOSTFILE_PATH")):
            try:
                addresses = ";".join(Path(path).read_text(encoding="utf-8").split())
            except (OSError, ValueError) as error:
                raise RunError(
                    f"BYTEWAX_HOSTFILE_PATH: {path} cannot be read ({error}): correct the path"
                ) from None
        given = tuple(each.strip() for each in (addresses or "").split(";") if each.strip())
        if process is None:
            process = _ordinal(environment)
        if process is None and not given:
            return cls()
        if process is None:
            raise RunError(
                f"the addresses of {len(given)} processes are given, and which of them this is, is "
                "not: set BYTEWAX_PROCESS_ID, or BYTEWAX_POD_NAME and BYTEWAX_STATEFULSET_NAME"
            )
        if not given:
            raise RunError(
                f"this is process {process} of a dataflow, and the addresses of its processes are "
                "not given: set BYTEWAX_ADDRESSES, as in 'host-0:2101;host-1:2101'"
            )
        for address in given:
            if not ADDRESS(address) or not 0 < int(address.rpartition(":")[2]) < 65_536:
                raise RunError(
                    f"{address!r} is not an address of a process: write host:port, with ';' "
                    "between two of them"
                )
        if process >= len(given):
            raise RunError(
                f"this is process {process}, and there are addresses of {len(given)} processes, "
                "counted from 0: correct the one or the other"
            )
        return cls(process, given)


def _ordinal(environment: Mapping[str, str]) -> int | None:
    pod, stateful_set = (
        environment.get("BYTEWAX_POD_NAME"),
        environment.get("BYTEWAX_STATEFULSET_NAME"),
    )
    if not pod or not stateful_set:
        return None
    ordinal = pod.removeprefix(stateful_set + "-")
    if not ordinal.isdecimal():
        raise RunError(
            f"BYTEWAX_POD_NAME is {pod}, which is not a pod of the StatefulSet {stateful_set} "
            "(BYTEWAX_STATEFULSET_NAME): correct the one or the other"
        )
    return int(ordinal)
