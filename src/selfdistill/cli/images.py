"""Commands on images alone: pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill.cli.app import app, console

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.


@app.command()
def pack(
    data: Annotated[str, typer.Argument(help="a folder of images, or what else data= takes")],
    out: Annotated[Path, typer.Argument(help="the new folder")],
    side: Annotated[int, typer.Option(min=16, help="pixels of the shorter side, beyond which an image is made smaller")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="of the JPEGs")] = 95,
) -> None:
    """Write a folder of photographs as WebDataset shards of smaller JPEGs, which decode faster: then data=OUT."""
    from selfdistill.data.pack import pack as write

    written = write(data, out, side, quality, lambda said: console.print(said, soft_wrap=True))
    console.print(f"{written} images in {out}: selfdistill pretrain METHOD data={out}", soft_wrap=True)
