"""Commands that take a run's work elsewhere: export, embed, neighbours, duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill.cli.app import Settings, app, console
from selfdistill.errors import Misuse

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.


What = Annotated[str, typer.Argument(help="a run folder; or random-init, timm:NAME or a file of weights, with settings of a recipe")]
Data = Annotated[
    list[str],
    typer.Argument(
        metavar="data=DATA [KEY=VALUE]...",
        help="what pretrain takes: a folder, shards, a set's name; data= may be left out. encoder=... and others where WHAT is no run",
    ),
]


@app.command()
def export(
    what: What,
    format: Annotated[str, typer.Option(help="timm, torchvision, hf, onnx or safetensors")],
    settings: Settings = None,
    of: Annotated[str | None, typer.Option(help="student or teacher; if not given, the one that the recipe keeps")] = None,
    out: Annotated[Path | None, typer.Option(help="the new folder, RUN/export/FORMAT-OF if not given")] = None,
    data: Annotated[str | None, typer.Option(help="images to compare on, the run's own if not given")] = None,
) -> None:
    """Write a backbone for other libraries: selfdistill export runs/simsiam-digits-1 --format onnx."""
    from selfdistill import api

    words = [*([f"data={data}"] if data else []), *(settings or [])]
    images, others = _images(words) if any(word.startswith("data=") for word in words) else (None, words)
    done = api.export_run(what, format, of, out, images, others)
    console.print(
        f"the {done.of}'s backbone, loaded back and compared on images: features differ by {done.difference:.1g} at most "
        f"(the largest is {done.largest:.3g}; {' and '.join(map(str, done.sizes))} pixels)",
        soft_wrap=True,
    )
    console.print(f"how to load it: {done.path / 'README.md'}", soft_wrap=True)


@app.command()
def embed(
    what: What,
    data: Data,
    out: Annotated[Path, typer.Option(help="the file: .parquet, or .npy with a .csv of ids and paths beside it")] = Path("embeddings.npy"),
) -> None:
    """Write the features of every image: selfdistill embed runs/simsiam-digits-1 data=photos --out photos.parquet."""
    from selfdistill import api

    images, settings = _images(data)
    count = api.embed_to(what, images, out, _said, settings)
    console.print(f"{count} images in {out}", soft_wrap=True)


@app.command()
def neighbours(
    what: What,
    image: Annotated[Path, typer.Argument(help="an image's file")],
    data: Data,
    k: Annotated[int, typer.Option(min=1, help="how many")] = 10,
    sheet: Annotated[Path | None, typer.Option(help="a PNG of them")] = None,
) -> None:
    """List the images of a set that are most like one: selfdistill neighbours RUN cat.png data=photos --sheet near.png."""
    from selfdistill import api

    images, settings = _images(data)
    for found in api.neighbours(what, image, images, k, sheet, _said, settings):
        console.print(f"{found.cosine:.4f}  {found.path}", soft_wrap=True, highlight=False)
    if sheet:
        console.print(f"pictures: {sheet}", soft_wrap=True)


@app.command()
def duplicates(
    what: What,
    data: Data,
    threshold: Annotated[float, typer.Option(help="the cosine of features from which two images are one")] = 0.99,
    out: Annotated[Path | None, typer.Option(help="a CSV of all pairs")] = None,
    sheet: Annotated[Path | None, typer.Option(help="a PNG of the pairs most alike")] = None,
) -> None:
    """List pairs of images that are nearly the same: selfdistill duplicates RUN data=photos --threshold 0.99 --out pairs.csv."""
    from selfdistill import api

    images, settings = _images(data)
    found = api.duplicates(what, images, threshold, out, sheet, _said, settings)
    for pair in found.pairs[:20]:
        console.print(f"{pair.cosine:.4f}  {pair.first}  {pair.second}", soft_wrap=True, highlight=False)
    console.print(
        f"{len(found.pairs)} pairs of {found.images} images at {threshold} or above; two of them are at {found.mean:.2f} on average. "
        f"{'All are in ' + str(out) if out else '--out pairs.csv writes all'}",
        soft_wrap=True,
    )


def _said(sentence: str) -> None:
    console.print(sentence, soft_wrap=True, highlight=False)


def _images(words: list[str]) -> tuple[str, list[str]]:
    """(data, the other settings). Raises `Misuse` where there are two sets."""
    named = [word for word in words if word.startswith("data=")]
    data, *more = [*named, *(word for word in words if "=" not in word)] or words[:1]
    if more:
        raise Misuse(f"{more[0]}: the images are those of {data.removeprefix('data=')} already: name one set")
    return data.removeprefix("data="), [word for word in words if word is not data]
