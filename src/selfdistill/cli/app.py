"""What the commands share: the app they register with, the console they print to, how a message ends the process."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console()

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="any field of the recipe, e.g. epochs=20")]


def said(e: BaseException, code: int) -> int:
    """Prints the one message that ends the process; returns `code`."""
    print(f"selfdistill: {e}", file=sys.stderr)
    return code
