"""Fills README and docs pages with medians, ratios and tables, as their comments ask for.

A page keeps each number, and each table, between two comments:

    <!-- bench FILE table brief scenario=low,high -->…<!-- /bench -->
    <!-- bench FILE median client_cpu_us_per_msg strategy=flow scenario=high -->…<!-- /bench -->
    <!-- bench FILE most threads_final broker=jetstream -->…<!-- /bench -->
    <!-- bench FILE ratio strategy=flow / strategy=sync scenario=high ids=msgid -->…<!-- /bench -->
    <!-- bench FILE ratios strategy=flow / strategy=sync -->1.5 (1.2-1.9)<!-- /bench -->

FILE is relative to the page. `fill` writes the text between the comments, and nothing else.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import BenchError
from .figures import (
    Round,
    Spread,
    median_text,
    number_text,
    ratios,
    select,
    share_text,
    spread,
    spread_text,
    values,
)
from .results import about, load
from .tables import as_markdown, tables

__all__ = ["fill"]

BLOCK = re.compile(r"(<!-- bench (\S+) (.+?) -->)(.*?)(<!-- /bench -->)", re.DOTALL)


def fill(page: Path) -> str:
    """The page, with every number and table as its results file says.

    :raises BenchError: when a comment asks for a figure that its results file does not have.
    """
    return BLOCK.sub(
        lambda block: block[1] + _answer(page, block[2], block[3]) + block[5], page.read_text()
    )


@lru_cache(maxsize=8)
def _results(path: Path, modified: int) -> dict[str, Any]:
    return load(path)


def _answer(page: Path, file: str, query: str) -> str:
    path = page.parent / file
    results = _results(path, path.stat().st_mtime_ns if path.exists() else 0)
    kind, *words = query.split()
    try:
        return _ANSWERS[kind](results, words)
    except (BenchError, KeyError, ValueError) as error:
        raise BenchError(
            f"{page.name} asks {file} for `{query}`, which has no answer: {error}"
        ) from None


def _conditions(words: Iterable[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if "=" in word)


def _rounds(results: dict[str, Any], words: list[str]) -> list[Round]:
    """The rounds that the words ask for; each value that they name must be that of some round."""
    wanted = _conditions(words)
    for key, value in wanted.items():
        if missing := set(value.split(",")) - {str(entry.get(key)) for entry in results["rounds"]}:
            raise BenchError(f"no round has {key}={min(missing)}")
    found = select(results["rounds"], wanted)
    if not found:
        raise BenchError("no round has all these conditions")
    return found


def _answer_about(results: dict[str, Any], words: list[str]) -> str:
    return f"\n\n{about(results)}\n\n"


def _answer_least(results: dict[str, Any], words: list[str]) -> str:
    lowest = min(values(_rounds(results, words), words[0]))
    return share_text(lowest) if words[0] == "success" else number_text(lowest)


def _answer_median(results: dict[str, Any], words: list[str]) -> str:
    return median_text(_rounds(results, words), words[0])


def _answer_most(results: dict[str, Any], words: list[str]) -> str:
    return number_text(max(values(_rounds(results, words), words[0])))


def _answer_ratio(results: dict[str, Any], words: list[str]) -> str:
    return number_text(_ratio(results, words).median)


def _answer_ratios(results: dict[str, Any], words: list[str]) -> str:
    found = _ratio(results, words)
    return f"{number_text(found.median)} ({number_text(found.low)}-{number_text(found.high)})"


def _ratio(results: dict[str, Any], words: list[str]) -> Spread:
    bar = words.index("/")
    common = _conditions(words[bar + 2 :])
    above, below = (
        select(results["rounds"], common | _conditions(words[at].split(",")))
        for at in (bar - 1, bar + 1)
    )
    figure = words[0] if "=" not in words[0] else "msgs_per_s"
    found = spread(ratios(above, below, figure))
    if found is None:
        raise BenchError(f"no pair of rounds has {figure}")
    return found


def _answer_spread(results: dict[str, Any], words: list[str]) -> str:
    return spread_text(_rounds(results, words), words[0])


def _answer_table(results: dict[str, Any], words: list[str]) -> str:
    return f"\n\n{as_markdown(tables(_rounds(results, words), brief='brief' in words))}\n\n"


_ANSWERS = {
    "about": _answer_about,
    "least": _answer_least,
    "median": _answer_median,
    "most": _answer_most,
    "ratio": _answer_ratio,
    "ratios": _answer_ratios,
    "spread": _answer_spread,
    "table": _answer_table,
}
