"""From run folders and images to each figure: what `selfdistill picture` draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from selfdistill.data.images import Files, Images, Source, spread
from selfdistill.data.loader import in_memory
from selfdistill.data.reading import BadImage, printable, read_image
from selfdistill.errors import Misuse, did_you_mean
from selfdistill.report import attention, curves, embeddings
from selfdistill.train.diagnosis import projections
from selfdistill.train.run import Run, features_of
from selfdistill.views.augment import normalize

IMAGES = 1_000
"""held-out images in a figure at most"""


class Look:
    """A run and what it makes of held-out images, each thing computed once."""

    def __init__(self, run: Run):
        self.run = run

    @cached_property
    def images(self) -> Images:
        """At most IMAGES held-out ones; training images where none are held out."""
        return spread(self.run.source.looked_at, IMAGES)

    @property
    def part(self) -> str:
        """What the images are, for captions."""
        return "training" if self.run.source.test is None else "held-out"

    @cached_property
    def features(self) -> Tensor:
        """[N, F]"""
        return features_of(self.run.backbone, self.images, self.run.recipe)

    @cached_property
    def projections(self) -> Tensor:
        """[2, N, D]: of two views of each image"""
        return projections(self.run, self.images, 2)


class Asked(NamedTuple):
    """looks: most figures show the first. files: images in place of held-out ones. size: pixels of their shorter side, for a ViT.
    near: training images among which neighbours are sought, at most; all if None."""

    looks: Sequence[Look]
    files: Sequence[Path] = ()
    size: int | None = None
    near: int | None = None

    @property
    def look(self) -> Look:
        return self.looks[0]

    @property
    def run(self) -> Run:
        return self.look.run


def training(asked: Asked) -> Figure:
    """loss, std and kNN over epochs, of one or several runs"""
    return curves.training_curves(_rows(asked))


def teacher(asked: Asked) -> Figure:
    """the targets' entropy and KL over epochs"""
    return curves.teacher_curves(_rows(asked))


def spectrum(asked: Asked) -> Figure:
    """eigenvalues of features and projections"""
    found: dict[str, Tensor] = {}
    for name, look in named(asked.looks).items():
        found[f"{name} features"] = look.features
        found[f"{name} projections"] = look.projections[0]
    return embeddings.spectrum_figure(found)


def hypersphere(asked: Asked) -> Figure:
    """alignment and uniformity on the circle, by class"""
    look = asked.look
    return embeddings.hypersphere_figure(look.projections, look.images.labels, look.images.classes)


def sphere(asked: Asked) -> Figure:
    """the same on the sphere"""
    look = asked.look
    return embeddings.sphere_figure(look.projections, look.images.labels, look.images.classes)


def classes_map(asked: Asked) -> Figure:
    """features in the plane, by t-SNE"""
    look = asked.look
    return embeddings.map_figure(look.features, look.images.labels, look.images.classes)


def neighbours(asked: Asked, k: int = 8, queries: int = 8) -> Figure:
    """images and their nearest training images"""
    run = asked.run
    bank = run.source.bank or run.source.train
    bank = bank if asked.near is None else spread(bank, asked.near)
    images = spread(asked.look.images, queries)
    if asked.files:
        for file in asked.files:
            _read(run, file)  # raises for what is no image, which would be a grey square
        images = Source("files", Files(list(asked.files))).of_channels(run.recipe.encoder.channels).train
    pixels = in_memory(images, run.recipe.views, run.recipe.workers).pixels
    cosine = F.normalize(run.embed(pixels), dim=1) @ F.normalize(features_of(run.backbone, bank, run.recipe), dim=1).T
    if not asked.files and run.source.test is None:
        cosine[cosine > 1 - 1e-5] = -1.0  # a training image asks: itself, and copies of it, are no answer
    similarity, places = cosine.topk(min(k, len(bank)), dim=1)
    near = in_memory(bank.pick(places.flatten()), run.recipe.views, run.recipe.workers)
    right = None
    if images.labels is not None and bank.labels is not None:
        theirs, mine = bank.labels[places], images.labels[:, None]  # [Q, k], [Q, 1]
        right = (theirs == mine) | (theirs < 0) | (mine < 0)  # of an image without a label nothing is known
    return embeddings.neighbours_figure(pixels, near.pixels.unflatten(0, places.shape), similarity, right)


def attention_maps(asked: Asked) -> Figure:
    """what a ViT's class token looks at, head by head"""
    run, shown = asked.run, _images(asked, 4)
    return attention.attention_figure(shown, [attention.attention_of(run.backbone, _normal(run, image))[0] for image in shown])


def patches(asked: Asked) -> Figure:
    """a ViT's patch tokens as colours"""
    run, shown = asked.run, _images(asked, 8)
    tokens = [attention.patches_of(run.backbone, _normal(run, image))[0] for image in shown]
    together = attention.rgb_of(torch.cat([t.flatten(0, 1) for t in tokens])[None, :, None])[0, :, 0]
    parts = together.split([t.shape[0] * t.shape[1] for t in tokens])
    return attention.patches_figure(shown, [part.view(*t.shape[:2], 3) for part, t in zip(parts, tokens, strict=True)])


PICTURES: dict[str, Callable[[Asked], Figure]] = {
    "curves": training,
    "teacher": teacher,
    "spectrum": spectrum,
    "hypersphere": hypersphere,
    "sphere": sphere,
    "map": classes_map,
    "neighbours": neighbours,
    "attention": attention_maps,
    "patches": patches,
}


OF_RUNS, OF_FILES, OF_SIZE = ("curves", "teacher", "spectrum"), ("neighbours", "attention", "patches"), ("attention", "patches")
"""those that show several runs, take image files, and take a size"""


def drawn(what: str, asked: Asked) -> Figure:
    """The figure of that name. Raises `Misuse` for one that there is not, and for what it does not take."""
    if what not in PICTURES:
        raise Misuse(f"picture {what}: allowed: {', '.join(PICTURES)}.{did_you_mean(what, PICTURES)}")
    asks = {
        OF_RUNS: [f"a second run, {look.run.path}" for look in asked.looks[1:]],
        OF_FILES: list(map(str, asked.files)),
        OF_SIZE: [f"size={asked.size}"] if asked.size else [],
    }
    for takes, given in asks.items():
        if given and what not in takes:
            raise Misuse(f"picture {what}: does not take {given[0]}: {', '.join(takes)} do")
    return PICTURES[what](asked)


def named(looks: Sequence[Look]) -> dict[str, Look]:
    """By the run folder's name, or its path where two share one."""
    names = [printable(look.run.path.resolve().name) for look in looks]
    return {name if names.count(name) == 1 else printable(look.run.path): look for name, look in zip(names, looks, strict=True)}


def _rows(asked: Asked) -> dict[str, curves.Rows]:
    return {name: look.run.metrics for name, look in named(asked.looks).items()}


def _images(asked: Asked, count: int) -> list[Tensor]:
    """uint8 [C, H, W], sides a multiple of a patch: files with their ratio kept, or held-out images."""
    run, side = asked.run, attention.patch_side(asked.run.backbone)
    held_out = () if asked.files else in_memory(spread(asked.look.images, count), run.recipe.views, run.recipe.workers).pixels
    return [_fitted(image, asked.size or run.recipe.views.size, side) for image in (*map(partial(_read, run), asked.files), *held_out)]


def _fitted(image: Tensor, size: int, multiple: int) -> Tensor:
    """[C, H, W] with a shorter side of `size` pixels, both sides rounded to a multiple."""
    height, width = image.shape[1:]
    scale = size / min(height, width)
    sides = [max(1, round(n * scale / multiple)) * multiple for n in (height, width)]
    resized = F.interpolate(image[None].float(), sides, mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def _read(run: Run, file: Path) -> Tensor:
    """uint8 [C, H, W] of an image file, in the run's channels."""
    try:
        image = read_image(file)
    except BadImage as e:
        raise Misuse(f"{e.path}: {e.reason}") from e
    pixels = np.asarray(image.convert("L" if run.recipe.encoder.channels == 1 else "RGB"))
    return torch.tensor(pixels).view(image.height, image.width, -1).permute(2, 0, 1)


def _normal(run: Run, image: Tensor) -> Tensor:
    return normalize(image[None].float() / 255, run.recipe.views)
