"""Draws random lines of the package, for a reader who says in which file each of them is.

    python -m tests.support.placement SEED

Prints the tree with the first docstring line of each module and, indented below it, of its public
classes and functions; then 20 lines of code. With `--modules` only those of the modules are
printed, with `--answers` also the files of the lines. Drawn are lines with a statement or an
expression of at least 50 characters; imports, comments, docstrings, `__all__`, and the heads of
classes and functions are left out, and no file is drawn more than twice. A line such as
`if time.monotonic() > deadline:`, all of whose words stand in more than three files, says nothing
of its file, and is left out too.
"""

import ast
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import NamedTuple

__all__ = ["Line", "draw", "tree"]

PACKAGE = Path(__file__).parents[2] / "bytewax_jetstream"
LINES = 20
SHORTEST = 50
MOST_OF_A_FILE = 2
COMMON = 3
"""Files in which a word may stand and still tell where a line is."""
WORDS = re.compile(r"[A-Za-z_]{3,}").findall


class Line(NamedTuple):
    """A line of code, and where it is."""

    file: str
    text: str


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def tree(*, modules_only: bool = False) -> list[str]:
    """Each module with the first line of its docstring, and those of what it defines."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ast.parse(path.read_text())
        found.append(f"{path.relative_to(PACKAGE)}  {_first_line(module)}")
        if not modules_only:
            found += [f"    {line}" for node in module.body if (line := _first_line(node))]
    return found


def _first_line(node: ast.AST) -> str:
    """The first docstring line of a module, or of a public class or function; else nothing."""
    if not isinstance(node, ast.Module | Definition):
        return ""
    if isinstance(node, Definition) and node.name.startswith("_"):
        return ""
    return (ast.get_docstring(node) or "").partition("\n")[0]


def draw(seed: int) -> list[Line]:
    """The lines to place."""
    paths = sorted(PACKAGE.rglob("*.py"))
    files_of = Counter(word for path in paths for word in set(WORDS(path.read_text())))
    lines = [
        line
        for path in paths
        for line in _candidates(path)
        if min((files_of[word] for word in WORDS(line.text)), default=COMMON + 1) <= COMMON
    ]
    Random(seed).shuffle(lines)
    taken: list[Line] = []
    files = Counter[str]()
    for line in lines:
        if files[line.file] < MOST_OF_A_FILE and len(taken) < LINES:
            taken.append(line)
            files[line.file] += 1
    return taken


def _candidates(path: Path) -> list[Line]:
    source = path.read_text()
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if is_text or is_names or isinstance(node, ast.Import | ast.ImportFrom):
            assert isinstance(node, ast.stmt)
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, Definition):  # their names give away what their docstrings say
            skipped.update(range(node.lineno, node.body[0].lineno))
    texts = enumerate(source.splitlines(), start=1)
    return [
        Line(str(path.relative_to(PACKAGE)), text.strip())
        for number, text in texts
        if number not in skipped
        and len(text.strip()) >= SHORTEST
        and not text.strip().startswith("#")
    ]


if __name__ == "__main__":
    seed = int(sys.argv[1])
    print(*tree(modules_only="--modules" in sys.argv), "", sep="\n")
    for number, line in enumerate(draw(seed), start=1):
        print(
            f"{number:2}. {line.text}" + (f"    [{line.file}]" if "--answers" in sys.argv else "")
        )
