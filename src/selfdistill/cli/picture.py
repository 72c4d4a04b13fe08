"""Commands that show: picture and report, of runs; draw, of a method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill.cli.app import Settings, app, console

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
    from selfdistill.data.images import Files
    from selfdistill.disk import check_place
    from selfdistill.report.style import FORMATS, save

    run = next((p for p in paths if not p.is_file()), Path())
    drawn = Files([p for p in paths if p.is_file()])
    place = out or run / f"{what}.png"
    if out or run.is_dir():  # else the run is missing, which api.picture says
        check_place(place, "--out", FORMATS, drawn.holds)
    save(api.picture(what, *paths, size=size), place)
    console.print(f"{what}: {place}", soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders; several are compared")],
    out: Annotated[
        Path | None, typer.Option(help="the file; report.html in the run folder, or here where there are several, if not given")
    ] = None,
) -> None:
    """Write all that there is to see of a run as one HTML file: selfdistill report runs/a, or runs/a runs/b side by side."""
    from selfdistill import api

    console.print(f"report: {api.write_report(*runs, out=out)}", soft_wrap=True)


@app.command()
def draw(
    method: Annotated[str, typer.Argument(help="a method, a recipe's YAML or .py file, or a run folder")],
    settings: Settings = None,
    without: Annotated[list[str] | None, typer.Option("--without", help="take an ingredient out; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="an .svg, or .mmd for Mermaid; its text is printed if not given")] = None,
) -> None:
    """Draw a method as a picture, from its recipe: selfdistill draw byol --without momentum-teacher --out byol.svg."""
    from selfdistill import api
    from selfdistill.ablate.edits import without as edits
    from selfdistill.disk import check_place, write_whole
    from selfdistill.report.draw import mermaid, picture, svg

    kinds = {".svg": svg, ".mmd": mermaid}
    check_place(out, "--out", list(kinds))
    recipe = api.recipe_of(method, settings or [])
    recipe = recipe.edit(edits(recipe, without or []))
    made = picture(recipe, " ".join([recipe.method, *(settings or []), *(f"without {name}" for name in without or [])]))
    if out is None:
        print(mermaid(made), end="")
        return
    write_whole(out, kinds[out.suffix.lower()](made))
    console.print(f"{out}", soft_wrap=True)
