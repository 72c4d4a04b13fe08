"""What the commands share: the app they register with, the console they print to, how a message ends the process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])
Use = Annotated[
    list[Path] | None, typer.Option("--use", metavar="FILE", help="a .py with ingredients of your own, which is run; repeatable")
]


class App(typer.Typer):
    """Every command takes --use: a recipe, also a run's, may name what only a file of the user's own defines."""

    def command(self, *args: Any, **kwargs: Any) -> Callable[[F], F]:
        def register(f: F) -> F:
            @wraps(f)
            def run(*given: Any, use: list[Path] | None = None, **named: Any) -> Any:
                if use:
                    from selfdistill import own

                    for file in use:
                        own.use(file)
                # "--out=~/x" reaches us as it is: a shell expands a word's beginning alone.
                return f(*given, **{name: _home(value) for name, value in named.items()})

            takes = signature(f, eval_str=True)
            last = Parameter("use", Parameter.KEYWORD_ONLY, default=None, annotation=Use)
            run.__signature__ = takes.replace(parameters=[*takes.parameters.values(), last])  # type: ignore[attr-defined]
            run.__annotations__ = {name: one.annotation for name, one in [*takes.parameters.items(), ("use", last)]}
            typer.Typer.command(self, *args, **kwargs)(run)
            return f

        return register


app = App(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console(markup=False, emoji=False)  # names of files may have brackets and colons

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="any field of the recipe, e.g. epochs=20")]


def _say_version(asked: bool) -> None:
    if asked:
        console.print(", ".join(f"{name} {version(package)}" for name, package in (("selfdistill", "selfdistill"), ("PyTorch", "torch"))))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="which version this is")] = False,
) -> None:
    """What stands before a command."""


def _home(value: Any) -> Any:
    return [_home(one) for one in value] if isinstance(value, list) else value.expanduser() if isinstance(value, Path) else value


def print_table(table: Table) -> None:
    """Prints it; whole where there is no terminal, whose width it must keep to: a number cut short is lost."""
    (console if console.is_terminal else Console(width=10_000, markup=False, emoji=False)).print(table)


def is_setting(word: str) -> bool:
    """Whether it is key=value, and not a run or a recipe at a path with "="."""
    return "=" in word and not os.path.exists(word)  # Path's raises where a name would be too long


def said(e: BaseException, code: int) -> int:
    """Prints the one message that ends the process; returns `code`."""
    print(f"selfdistill: {e}", file=sys.stderr)
    return code
