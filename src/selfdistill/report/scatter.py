"""A map of images for a page: each a point that shows its picture when it is pointed at."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from matplotlib.markers import MarkerStyle
from PIL import Image

from selfdistill.data.loader import in_memory
from selfdistill.report.embeddings import by_class, plane_of, shown
from selfdistill.report.pictures import Look
from selfdistill.report.style import GREY, MARKERS
from selfdistill.views.draw import evenly_spaced

POINTS = 500
"""at most: their thumbnails are some 600 kB, and a page stays quick"""
COLUMNS, TILE = 25, 48
"""of the sheet of thumbnails: images in a row; pixels of one"""
SIDE, MARGIN, LETTER, RADIUS = 600, 30, 9, 5
"""of the map, in its own units; LETTER: the width of one of a class's name; RADIUS: of a point"""


class Point(NamedTuple):
    """x, y: of the map. shape: the place of its marker in MARKERS. words: class and file."""

    x: float
    y: float
    colour: str
    shape: int
    words: str


@dataclass(frozen=True)
class Scatter:
    """names: of the classes, at the median of their points. outlines: of the shapes, as SVG paths. sheet: a JPEG of all thumbnails, in the
    order of the points."""

    points: list[Point]
    names: list[Point]
    outlines: dict[int, str]
    sheet: bytes
    columns: int = COLUMNS
    tile: int = TILE
    side: int = SIDE
    kind: ClassVar[str] = "scatter"


def scatter_of(look: Look) -> Scatter:
    """Of at most POINTS held-out images of a run. Raises `Misuse` where there is no map."""
    rows = evenly_spaced(len(look.images), POINTS)
    images, run = look.images.pick(rows), look.run
    xy = plane_of(look.features[rows])
    low, high = xy.min(0), xy.max(0)
    xy = MARGIN + (xy - low) / (high - low).clip(min=1e-9) * (SIDE - 2 * MARGIN)
    where = [images.path(n) or f"image {row}" for n, row in enumerate(rows.tolist())]
    points, names = [Point(x, y, GREY, 0, said) for (x, y), said in zip(xy.tolist(), where, strict=True)], []
    for name, members, colour, marker in by_class(images.labels, images.classes, len(images)):
        for i in members.nonzero()[:, 0].tolist():
            points[i] = points[i]._replace(colour=colour, shape=MARKERS.index(marker), words=f"{name}: {where[i]}" if name else where[i])
        if name:
            x, y = np.median(xy[members.numpy()], 0).tolist()
            wide = LETTER * len(name) / 2
            names.append(Point(min(max(x, wide + LETTER), SIDE - wide), y, colour, MARKERS.index(marker), name))
    outlines = {shape: _outline(MARKERS[shape]) for shape in {point.shape for point in points}}
    return Scatter(points, names, outlines, _sheet(in_memory(images, run.recipe.views, run.recipe.workers).pixels))


def _outline(marker: str) -> str:
    """A marker of matplotlib's as an SVG path, 2 RADIUS wide around 0."""
    style = MarkerStyle(marker)
    drawn: Any = style.get_path().transformed(style.get_transform()).to_polygons()  # 1 wide, y up
    return "".join("M" + "L".join(f"{2 * RADIUS * x:.1f},{-2 * RADIUS * y:.1f}" for x, y in polygon) + "Z" for polygon in drawn)


def _sheet(pixels: torch.Tensor) -> bytes:
    """uint8 images [N, C, H, W] as one JPEG of tiles."""
    made = Image.new("RGB", (COLUMNS * TILE, -(-len(pixels) // COLUMNS) * TILE))
    for n, image in enumerate(pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1]):
        tile = Image.fromarray(shown(image)).convert("RGB")
        how = Image.Resampling.NEAREST if max(tile.size) < TILE else Image.Resampling.LANCZOS
        made.paste(tile.resize((TILE, TILE), how), (n % COLUMNS * TILE, n // COLUMNS * TILE))
    buffer = io.BytesIO()
    made.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
