"""The command of the EM view."""

from __future__ import annotations

import math
from typing import Annotated

import typer
from rich.table import Table

from selfdistill.cli.app import Settings, app, console, print_table
from selfdistill.errors import Failure

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.


@app.command()
def em(
    settings: Settings = None,
    rounds: Annotated[int, typer.Option(min=1, help="of an E-step and an M-step")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="of SGD in SimSiam's M-step")] = 20,
    augmentations: Annotated[int, typer.Option(min=1, help="of each image in SimSiam's E-step")] = 8,
    images: Annotated[int, typer.Option(min=2, help="at most, spread evenly over the data")] = 1000,
    clusters: Annotated[int | None, typer.Option(min=1, help="of k-means; the data's classes, or 10")] = None,
) -> None:
    """The EM view: k-means and the SimSiam alternation side by side, selfdistill em data=digits."""
    from selfdistill import api

    console.print(
        "E-step: the latents given the parameters. k-means assigns each image to its nearest centre; SimSiam sets eta_x to E_T[F(T(x))].\n"
        "M-step: the parameters given the latents. k-means moves the centres; SimSiam moves the weights towards the fixed eta.\n"
        "(The standard names. The lecture swaps them: it calls the centres and theta E, the assignment and eta M.)",
        soft_wrap=True,
    )
    table = Table("round", "k-means: after E", "after M", "SimSiam: after E", "after M", "output_std", "effective rank")
    pairs = api.alternate(*(settings or []), rounds=rounds, steps=steps, augmentations=augmentations, images=images, clusters=clusters)
    found = []
    for kmeans, simsiam in pairs:
        table.add_row(str(table.row_count + 1), *(f"{value:.4g}" for value in (*kmeans[:2], *simsiam)))
        found.append((kmeans, simsiam))
    print_table(table)
    for name, of in zip(("k-means", "SimSiam"), zip(*found, strict=True), strict=True):
        values = [value for r in of for value in r[:2]]
        if not all(map(math.isfinite, values)):
            raise Failure(f"{name}: the objective is not finite: lower lr.base")
        rises = [i for i in range(1, len(values)) if values[i] > values[i - 1]]
        how = (
            f"it rose in {len(rises)} of {len(values)} steps, {sum(i % 2 == 0 for i in rises)} of them E-steps"
            if rises
            else "down in every step"
        )
        console.print(f"{name}: objective {values[0]:.4g} to {values[-1]:.4g}, {how}", soft_wrap=True)
