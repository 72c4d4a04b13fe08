"""Commands that look for what is wrong: diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from selfdistill.cli.app import Settings, app, console, print_table

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.


@app.command()
def diagnose(
    what: Annotated[
        str,
        typer.Argument(help="a run folder, embeddings (.npy, .parquet, [N, D]); or random-init, timm:NAME, weights with data=..."),
    ],
    settings: Settings = None,
    labels: Annotated[Path | None, typer.Option(help="of embeddings: a .npy of [N]")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="of timm:NAME: with timm's weights, not random ones")] = False,
    augmentations: Annotated[int, typer.Option(min=4, help="of each held-out image, for a run's predictor")] = 32,
) -> None:
    """Name the collapse of a run, of embeddings or of a backbone: the verdict, since when it holds, why, and the metrics behind it."""
    from selfdistill import api
    from selfdistill.diagnose.describe import READING

    found = api.diagnosis_of(what, *(settings or []), labels=labels, pretrained=pretrained, augmentations=augmentations)
    table = Table("metric", *found.of, "how to read it")
    for name in READING:
        values = [of.get(name) for of in found.of.values()]
        if any(value is not None for value in values):
            table.add_row(name, *("" if v is None else f"{v:.4g}" for v in values), READING[name])
    if table.row_count:  # none of a run that diverged before its first probe
        print_table(table)
    if found.since:
        console.print(f"since epoch {found.since['epoch']:g}, step {found.since['step']}", highlight=False)
    console.print(found.because, soft_wrap=True)
    if gap := found.expectation:
        console.print(
            f"predictor and expectation over {augmentations} augmentations (SimSiam Sec. 5.2): |h(z1) - E[z2]|^2 {gap['predictor']:.4f}, "
            f"|z1 - E[z2]|^2 {gap['projection']:.4f}, of another image {gap['other']:.4f}",
            soft_wrap=True,
        )
