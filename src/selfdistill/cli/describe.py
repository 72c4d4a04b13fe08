"""Commands that describe: methods, show, diff, doctor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from selfdistill.cli.app import Settings, app, console, print_table

if TYPE_CHECKING:
    from selfdistill.api import Recipe

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.


@app.command()
def methods() -> None:
    """List the methods and what fills their slots."""
    from selfdistill import api

    rows = {name: slots(recipe) for name, recipe in api.METHODS.items()}
    table = Table("method", *rows["simsiam"], show_lines=True)
    table.columns[0].no_wrap = True
    for name, filled in rows.items():
        table.add_row(name, *filled.values())
    print_table(table)


def slots(r: Recipe) -> dict[str, str]:
    """What fills each slot, in a few words: the table of slots, read off the recipe."""
    g, h, teacher, views = r.projector, r.predictor, r.teacher, r.views
    locals_ = f" + {views.locals.count} local" if views.locals else ""
    losses = [
        f"{name}: {term.loss.kind}" + (f", {term.loss.target.kind}" if term.loss.kind == "cross-entropy" else "")
        for name, term in r.terms.items()
    ]
    return {
        "views": f"{r.global_views} crops{locals_}" + (", asymmetric" if views.second else "") + (", masks" if views.masks else ""),
        "projector": f"{g.kind} {'-'.join(map(str, (*getattr(g, 'hidden', ()), g.out)))}" if g else "none",
        "predictor": f"{h.kind} {'-'.join(map(str, h.hidden))}" if h and h.kind == "mlp" else h.kind if h else "none",
        "teacher": f"ema {teacher.tau.course}" if teacher.kind == "ema" else teacher.kind,
        "stop-gradient": "yes" if r.stop_gradient else "no",
        "loss": "; ".join(losses),
        "pairs": "; ".join(term.pairs if term.on == "cls" else "same view" for term in r.terms.values()),
    }


@app.command()
def show(
    method: Annotated[str, typer.Argument(help="a method, a recipe's YAML or .py file, or a run folder")],
    settings: Settings = None,
) -> None:
    """Print a recipe: the paper's pseudocode and every field, with KEY=VALUE applied; with data=DATA as a run on it has them."""
    from selfdistill import api

    recipe, changed = api.shown(api.recipe_of(method), settings or [])
    module = sys.modules.get(f"selfdistill.methods.{recipe.method.replace('-', '_')}")
    if module and module.__doc__:
        print("".join(f"# {line}".rstrip() + "\n" for line in module.__doc__.splitlines()))
    print("".join(f"# preset {recipe.preset}: {field}\n" for field in changed) + recipe.to_yaml(), end="")


@app.command()
def diff(a: str, b: str) -> None:
    """Print the fields in which two methods, recipes or runs differ."""
    from selfdistill import api

    table = Table(*(Column(name, overflow="fold") for name in ("field", a, b)))
    for path, left, right in api.diff(api.recipe_of(a), api.recipe_of(b)):
        table.add_row(path, str(left), str(right))
    if table.row_count:
        print_table(table)
    else:
        console.print(f"{a} and {b} do not differ")


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, devices, bf16, data sets."""
    import shutil

    import torch

    from selfdistill.data.sources import SOURCES, data_root
    from selfdistill.train.machine import has_bf16, machine, versions

    found = {
        **versions(),
        "device": machine(),
        "threads": str(torch.get_num_threads()),
        "bf16": "in hardware" if has_bf16() else "no: precision=auto means fp32",
        "data root": f"{data_root()} (set SELFDISTILL_DATA to move it)",
        "data sets": ", ".join(SOURCES),
        "free disk here": f"{shutil.disk_usage('.').free / 1e9:.0f} GB",
    }
    for name, value in found.items():
        console.print(f"{name:15} {value}", soft_wrap=True, highlight=False)
