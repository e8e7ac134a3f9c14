"""`Commands`: a group of commands that reads its own options only where no command is named."""

from typing import Any

from typer.core import TyperGroup

__all__ = ["Commands"]


class Commands(TyperGroup):
    """All commands, and the options that are given instead of one, such as `--help`."""

    _names_command = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what comes before the command."""
        self._names_command = bool(args) and not args[0].startswith("-")
        try:
            return super().parse_args(ctx, args)
        finally:
            self._names_command = False

    def get_params(self, ctx: Any) -> list[Any]:
        """The options. To see that they are not given, typer would load pydantic, which takes half
        of the time of `COMMAND --help`.
        """
        return [] if self._names_command else super().get_params(ctx)
