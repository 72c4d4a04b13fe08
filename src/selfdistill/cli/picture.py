"""Commands that draw: picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill.cli.app import app, console

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.

KINDS = "curves, teacher, spectrum, hypersphere, sphere, map, neighbours, attention or patches"


@app.command()
def picture(
    what: Annotated[str, typer.Argument(help=KINDS)],
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN... [IMAGE]...", help="run folders, and image files in place of held-out ones")
    ],
    out: Annotated[Path | None, typer.Option(help="a .png, .svg or .pdf; WHAT.png in the run folder if not given")] = None,
    size: Annotated[int | None, typer.Option(min=2, help="attention, patches: pixels of the images' shorter side")] = None,
) -> None:
    """Draw a run: its curves, spectrum, embeddings on the circle, attention: selfdistill picture curves runs/a runs/b."""
    from selfdistill import api
    from selfdistill.report.style import save, writable

    run = next((p for p in paths if not p.is_file()), Path())
    out = writable(out or run / f"{what}.png")
    save(api.picture(what, *paths, size=size), out)
    console.print(f"{what}: {out}", soft_wrap=True)
