"""Images by what a backbone says of them: the nearest of one, and pairs that are nearly the same; as rows and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from selfdistill.data.images import Files, Images, Pixels, Source
from selfdistill.data.reading import BadImage, read_image
from selfdistill.disk import check_place, write_whole
from selfdistill.errors import Misuse
from selfdistill.evaluate.neighbours import alike, mean_cosine, nearest_to
from selfdistill.export.embeddings import embedded
from selfdistill.train.subject import Subject

TILE, CAPTION, COLUMNS, LINE = 144, 34, 6, 22
"""of a sheet: pixels of an image, and of the words below it; images in a row; letters in a line, of which the end tells files apart"""
PAIRS = 5_000_000
"""at most: more are no duplicates, but a low threshold"""


class Found(NamedTuple):
    """An image and how alike it is, the cosine of features."""

    path: str
    cosine: float


class Pair(NamedTuple):
    first: str
    second: str
    cosine: float


class Pairs(NamedTuple):
    """pairs: the most alike first. images: how many there are; mean: the cosine of two of them, on average."""

    pairs: list[Pair]
    images: int
    mean: float


def neighbours(
    subject: Subject, image: Path, k: int = 10, sheet: Path | None = None, say: Callable[[str], None] = lambda sentence: None
) -> list[Found]:
    """The k of a subject's images most like the file `image`, the nearest first; the file itself, where it is one of them, too. sheet: a
    PNG of them. The features stream by: memory is a batch's. `say` is told what is unreadable. Raises `Misuse`."""
    if k < 1:
        raise Misuse(f"k={k}: one at least")
    try:
        read_image(image)
    except BadImage as e:
        raise Misuse(f"{e}: name a file that is an image") from e
    source, asked = subject.source, Source(image.name, Files([image]))
    check_place(sheet, "--sheet", [".png"], lambda path: asked.holds(path) or source.holds(path))
    query = subject.features(subject.on(asked).source.train)[0]
    cosines, places = nearest_to(query, (h for _, h in embedded(subject, say)), k)
    found = [Found(_path(source, i), cosine) for i, cosine in zip(places.tolist(), cosines.tolist(), strict=True)]
    if sheet:
        tiles = [(_picture(source, i), f"{f.cosine:.3f}\n{Path(f.path).name}") for i, f in zip(places.tolist(), found, strict=True)]
        _draw(sheet, [(_picture(asked, 0), f"nearest to\n{image.name}"), *tiles])
    return found


def duplicates(
    subject: Subject,
    threshold: float,
    out: Path | None = None,
    sheet: Path | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Pairs:
    """Pairs of a subject's images whose features' cosine is at least `threshold`, every pair compared. out: a CSV of them; sheet: a PNG of
    the 18 most alike. All features are in memory, 4 F bytes an image. `say` is told what is unreadable. Raises `Misuse`."""
    if not -1 <= threshold <= 1:
        raise Misuse(f"threshold={threshold}: a cosine lies in -1..1; 0.99 is a start")
    source = subject.source
    check_place(out, "--out", [".csv"], source.holds)
    check_place(sheet, "--sheet", [".png"], source.holds)
    features = torch.cat([h for _, h in embedded(subject, say)])
    if len(features) < 2:
        raise Misuse(f"data={source.name}: one image is no pair")
    chunks, count = [], 0
    for chunk in alike(features, threshold):
        count += len(chunk[0])
        if count > PAIRS:
            raise Misuse(f"threshold={threshold}: more than {PAIRS:,} pairs of images are as much alike: raise it")
        chunks.append(chunk)
    first, second, cosine = (torch.cat(part) for part in zip(*chunks, strict=True))
    order = cosine.argsort(descending=True, stable=True)
    rows = list(zip(first[order].tolist(), second[order].tolist(), cosine[order].tolist(), strict=True))
    pairs = [Pair(_path(source, i), _path(source, j), c) for i, j, c in rows]
    if out:
        lines = io.StringIO()
        csv.writer(lines).writerows([Pair._fields, *pairs])
        write_whole(out, lines.getvalue())
    if sheet:
        places = [(i, c) for *both, c in rows[:18] for i in both]
        _draw(sheet, [(_picture(source, i), f"{c:.4f}\n{Path(_path(source, i)).name}") for i, c in places])
    return Pairs(pairs, len(features), mean_cosine(features[features.isfinite().all(1)]))


def _at(source: Source, place: int) -> tuple[Images, int]:
    """The images among which the one at `place` is, counted as `embedded` does, and its place there."""
    if place < len(source.train):
        return source.train, place
    assert source.test is not None
    return source.test, place - len(source.train)


def _path(source: Source, place: int) -> str:
    images, i = _at(source, place)
    return images.path(i) or f"{source.name}[{place}]"


def _picture(source: Source, place: int) -> Image.Image:
    """A tile; an unreadable image is an empty one."""
    images, i = _at(source, place)
    if isinstance(images, Pixels):
        pixels = images.pixels[i].permute(1, 2, 0).cpu().numpy()  # [H, W, C]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] != 3 else pixels)
        return ImageOps.contain(image.convert("RGB"), (TILE, TILE), Image.Resampling.NEAREST)
    try:
        with images.open(i) as photo:
            return ImageOps.contain(Image.fromarray(photo.pixels(2 * TILE / min(photo.width, photo.height))), (TILE, TILE))
    except BadImage:
        return Image.new("RGB", (1, 1), "white")


def _draw(path: Path, tiles: list[tuple[Image.Image, str]]) -> None:
    """A PNG of tiles, words of two lines below each."""
    gap, font = 8, ImageFont.load_default(12)
    columns = min(COLUMNS, max(1, len(tiles)))
    wide, high = TILE + gap, TILE + CAPTION + gap
    sheet = Image.new("RGB", (columns * wide + gap, -(-len(tiles) // columns) * high + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for n, (tile, words) in enumerate(tiles):
        x, y = gap + n % columns * wide, gap + n // columns * high
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        lines = [line if len(line) <= LINE else f"...{line[3 - LINE :]}" for line in words.split("\n")]
        pen.multiline_text((x, y + TILE + 2), "\n".join(lines), "black", font, spacing=2)
    content = io.BytesIO()
    sheet.save(content, "PNG")
    write_whole(path, content.getbuffer())
