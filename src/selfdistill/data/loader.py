"""Images in the order of a run, as views; and images as they are, for features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfdistill.data.images import BadImage, Files, Images, Pixels
from selfdistill.errors import Failure
from selfdistill.recipe import Recipe
from selfdistill.views.augment import draws, plain, views_of_crops, views_of_pixels
from selfdistill.views.batch import Views
from selfdistill.views.crop import DRAWS, crop_boxes
from selfdistill.views.draw import permutation
from selfdistill.views.spec import TwoCrops

SUBSTITUTES = 100
"""files in a row that may turn out unreadable before the folder is given up"""

Report = Callable[[Path, str], None]


def micro_batches(recipe: Recipe, images: int, step: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[int, Tensor]]:
    """(epoch, index [batch_size / accumulate / ranks]) for each micro-batch of this rank, from optimiser step `step` to the run's end.

    An epoch is a permutation of all images, by seed and epoch alone; what does not fill a batch is left out until the next.
    """
    steps = images // recipe.batch_size
    for s in range(step, recipe.epochs * steps):
        if s == step or s % steps == 0:
            order = permutation(recipe.seed, s // steps, images)
        batch = order[s % steps * recipe.batch_size :][: recipe.batch_size]
        for micro in batch.chunk(recipe.accumulate):
            yield s // steps, micro.chunk(ranks)[rank]


def training_views(
    images: Images, recipe: Recipe, step: int, device: torch.device, report: Report, rank: int = 0, ranks: int = 1
) -> Iterator[Views]:
    """The views of each micro-batch, on `device`. Files that prove unreadable are replaced by the next readable one and reported."""
    order = micro_batches(recipe, len(images), step, rank, ranks)
    if isinstance(images, Pixels):
        pixels = images.pixels.to(device)
        for epoch, index in order:
            index = index.to(device)
            yield views_of_pixels(pixels[index], index, recipe.views, recipe.global_views, recipe.seed, epoch)
        return
    todo = ([(epoch, int(i)) for i in index] for epoch, index in order)
    reported: set[Path] = set()
    for epoch, index, crops, bad in _loader(_Crops(images, recipe), todo, recipe.workers):
        for path, reason in bad:
            if path not in reported:
                reported.add(path)
                report(path, reason)
        index, crops = index.to(device, non_blocking=True), crops.to(device, non_blocking=True)
        yield views_of_crops(crops, index, recipe.views, recipe.seed, epoch)


def plain_batches(images: Images, spec: TwoCrops, device: torch.device, workers: int | str = "auto", size: int = 512) -> Iterator[Tensor]:
    """The images in order, without augmentation: normalised float [b, C, S, S] on `device`. An unreadable file is a mean-grey image."""
    if isinstance(images, Pixels):
        for chunk in images.pixels.split(size):
            yield plain(chunk.to(device), spec)
        return
    todo = (list(range(i, min(i + size, len(images)))) for i in range(0, len(images), size))
    for chunk in _loader(_Squares(images, spec), todo, workers):
        yield plain(chunk.to(device), spec)


class _Crops(Dataset[Any]):
    """(epoch, i) to uint8 crops [V, C, S, S], cut by the same draw that a whole batch of pixels would use."""

    def __init__(self, files: Files, recipe: Recipe):
        self.files, self.recipe = files, recipe

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int, np.ndarray, list[tuple[Path, str]]]:
        epoch, first = key
        spec, bad = self.recipe.views, []
        for i in ((first + n) % len(self.files) for n in range(min(SUBSTITUTES, len(self.files)))):
            try:
                image = self.files.read(i)
            except BadImage as e:
                bad.append((e.path, e.reason))
                continue
            crops = []
            for v in range(self.recipe.global_views):
                u = draws(self.recipe.seed, epoch, torch.tensor([i]), v)
                top, left, height, width = crop_boxes(u[:, :DRAWS], image.height, image.width, spec.of_view(v))[0].tolist()
                crops.append(_resized(image, (left, top, left + width, top + height), spec.size))
            return epoch, i, np.stack(crops), bad
        raise Failure(f"{len(bad)} files in a row could not be read, the last one {bad[-1][0]}: {bad[-1][1]}. Is the folder still there?")


class _Squares(Dataset[Any]):
    """i to the central square, uint8 [C, S, S]."""

    def __init__(self, files: Files, spec: TwoCrops):
        self.files, self.spec = files, spec

    def __getitem__(self, i: int) -> np.ndarray:
        try:
            image = self.files.read(i, at_least=self.spec.size)
        except BadImage:
            return np.full((3, self.spec.size, self.spec.size), 124, np.uint8)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return _resized(image, (left, top, left + side, top + side), self.spec.size)


def _resized(image: Image.Image, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)


def _loader(dataset: Dataset[Any], todo: Iterator[list[Any]], workers: int | str) -> Iterator[Any]:
    count = min(os.cpu_count() or 1, 16) if workers == "auto" else int(workers)
    return iter(
        DataLoader(
            dataset,
            batch_sampler=todo,
            num_workers=count,
            collate_fn=_collate,
            worker_init_fn=_one_thread,
            pin_memory=torch.cuda.is_available(),
        )
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _collate(samples: list[Any]) -> Any:
    if isinstance(samples[0], np.ndarray):
        return torch.from_numpy(np.stack(samples))
    epochs, index, crops, bad = zip(*samples, strict=True)
    return epochs[0], torch.tensor(index), torch.from_numpy(np.stack(crops)), [b for some in bad for b in some]
