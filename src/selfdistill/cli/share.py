"""Commands that take a run's work elsewhere: export, embed, neighbours, duplicates, draw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill.cli.app import app, console

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    format: Annotated[str, typer.Option(help="timm, torchvision, hf, onnx or safetensors")],
    of: Annotated[str | None, typer.Option(help="student or teacher; if not given, the one that the recipe keeps")] = None,
    out: Annotated[Path | None, typer.Option(help="the new folder, RUN/export/FORMAT-OF if not given")] = None,
    data: Annotated[str | None, typer.Option(help="images to compare on, the run's own if not given")] = None,
) -> None:
    """Write a run's backbone for other libraries: selfdistill export runs/simsiam-digits-1 --format onnx."""
    from selfdistill import api

    done = api.export_run(api.load(run), format, of, out, data)
    console.print(
        f"the {done.of}'s backbone, loaded back and compared on images of the run: features differ by {done.difference:.1g} at most "
        f"(the largest is {done.largest:.3g}; {' and '.join(map(str, done.sizes))} pixels)",
        soft_wrap=True,
    )
    console.print(f"how to load it: {done.path / 'README.md'}", soft_wrap=True)
