"""Brings docs/commands.md in step with the commands: `python -m tests.support.commands_page`.

What is between the two comments is typer's own description of every command and option.
"""

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from bytewax_jetstream.cli.program import app

__all__ = ["PAGE", "fill"]

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
BLOCK = re.compile(r"(<!-- commands -->\n).*(<!-- /commands -->)", re.DOTALL)
UNWRAPPED = re.compile(r"\x08\n(.+?)(?=\n\n|\Z)", re.DOTALL)
"""A paragraph that the terminal shows as it is, line by line."""


def fill(page: str) -> str:
    """The page, with every command and option as they are now."""
    command = get_command(app)
    docs = get_docs_for_click(
        obj=command, ctx=typer.Context(command), indent=1, name="bytewax-jetstream"
    )
    docs = UNWRAPPED.sub(lambda found: f"```text\n{found[1]}\n```", docs)
    docs = re.sub(r"^## .+\n\n", "", docs.strip())  # the page has a title
    filled, count = BLOCK.subn(lambda block: f"{block[1]}\n{docs}\n{block[2]}", page)
    assert count == 1, "the page needs the comments <!-- commands --> and <!-- /commands -->"
    return filled


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
