"""Objects that nobody expects in an envelope."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Array", "Broken"]


class Broken(Mapping[str, str]):
    """A mapping that does not have the key it names."""

    def __getitem__(self, name: str) -> str:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


class Array:
    """Like an array of numpy or pandas: its truth is an error, and `==` gives an array again."""

    __hash__ = None  # type: ignore[assignment]  # as theirs

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    def __eq__(self, other: object) -> Any:
        return self
