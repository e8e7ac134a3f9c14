"""Exit codes are a table that the documentation has, too."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from bytewax_jetstream import exit_codes
from bytewax_jetstream.exit_codes import ExitCode

ROOT = Path(__file__).parents[2]


def _docstrings() -> dict[str, str]:
    """What stands below each member of `ExitCode`."""
    module = ast.parse(Path(exit_codes.__file__).read_text())
    (table,) = [node for node in module.body if isinstance(node, ast.ClassDef)]
    body = table.body[1:]
    return {
        member.targets[0].id: " ".join(text.value.value.split())
        for member, text in zip(body[::2], body[1::2], strict=True)
        if isinstance(member, ast.Assign)
        and isinstance(member.targets[0], ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def test_the_page_has_the_table_of_the_code() -> None:
    docstrings = _docstrings()
    rows = [f"| {int(code)} | {code.name.lower()} | {docstrings[code.name]} |" for code in ExitCode]

    assert "\n".join(rows) in (ROOT / "docs" / "operate.md").read_text()


def test_the_help_of_run_names_each_code() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "bytewax_jetstream.cli", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout

    words = help_text[help_text.index("Exit codes:") :].replace(",", " ").split()
    assert {str(int(code)) for code in ExitCode} <= set(words)


def test_exit_now_ends_a_process_that_cannot_write_any_more() -> None:
    program = (
        "import os, sys, threading\n"
        "from bytewax_jetstream.exit_codes import exit_now\n"
        "exit_now(3, threading.Event().wait)\n"
    )

    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, cwd=ROOT)

    assert ended.returncode == 3


def test_exit_now_writes_what_was_printed_and_calls_what_is_registered() -> None:
    program = (
        "from bytewax_jetstream.exit_codes import before_exit_now, exit_now\n"
        "before_exit_now.append(lambda: print('registered', flush=True))\n"
        "print('before', end=' ')\n"
        "exit_now(4, lambda: print('last words', end=' '))\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, timeout=60, cwd=ROOT, capture_output=True
    )

    assert ended.returncode == 4
    assert ended.stdout == b"before last words registered\n"
