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
from selfdistill.errors import Failure, Misuse
from selfdistill.recipe import Recipe
from selfdistill.views.augment import draws, plain, views_of_crops, views_of_pixels
from selfdistill.views.batch import Views
from selfdistill.views.crop import DRAWS, crop_boxes
from selfdistill.views.draw import permutation
from selfdistill.views.spec import Crops

SUBSTITUTES = 100
"""files in a row that may turn out unreadable before the folder is given up"""

Report = Callable[[Path, str], None]


def micro_batches(
    recipe: Recipe, images: int, step: int, rank: int = 0, ranks: int = 1, visible: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(epoch, index [batch_size / accumulate / ranks]) for each micro-batch of this rank, from optimiser step `step` to the run's end.

    An epoch is a permutation of all images, by seed and epoch alone; what does not fill a batch is left out until the next.
    Where labels are trained on (`visible` [N], -1 for no label), a share of each batch is labelled.
    """
    share = recipe.micro_batch(ranks)
    labelled = None if visible is None else (visible >= 0).nonzero()[:, 0]
    steps = images // recipe.batch_size
    for s in range(step, recipe.epochs * steps):
        if s == step or s % steps == 0:
            order = permutation(recipe.seed, s // steps, images)
        batch = order[s % steps * recipe.batch_size :][: recipe.batch_size]
        if labelled is not None:
            batch = with_labelled(batch, labelled, round(recipe.labelled_share * recipe.batch_size), s, recipe.seed)
        for micro in batch.split(ranks * share):
            yield s // steps, micro.split(share)[rank]


def training_views(
    images: Images, recipe: Recipe, step: int, device: torch.device, report: Report, rank: int = 0, ranks: int = 1
) -> Iterator[Views]:
    """The views of each micro-batch, on `device`. Files that prove unreadable are replaced by the next readable one and reported."""
    visible = visible_labels(images, recipe)
    order = micro_batches(recipe, len(images), step, rank, ranks, visible)
    for views in _views(images, recipe, device, report, order):
        yield views if visible is None else views._replace(labels=visible.to(device)[views.ids])


def _views(images: Images, recipe: Recipe, device: torch.device, report: Report, order: Iterator[tuple[int, Tensor]]) -> Iterator[Views]:
    if isinstance(images, Pixels):
        pixels = images.pixels.to(device)
        for epoch, index in order:
            index = index.to(device)
            yield views_of_pixels(pixels[index], index, recipe.views, recipe.global_views, recipe.seed, epoch)
        return
    todo = ([(epoch, int(i)) for i in index] for epoch, index in order)
    reported: set[Path] = set()
    for epoch, index, cut, bad in _loader(_Crops(images, recipe), todo, recipe.workers):
        for path, reason in bad:
            if path not in reported:
                reported.add(path)
                report(path, reason)
        index, crops = index.to(device, non_blocking=True), [c.to(device, non_blocking=True) for c in cut]
        yield views_of_crops(crops, index, recipe.views, recipe.global_views, recipe.seed, epoch)


def plain_batches(images: Images, spec: Crops, device: torch.device, workers: int | str = "auto", size: int = 512) -> Iterator[Tensor]:
    """The images in order, without augmentation: normalised float [b, C, S, S] on `device`. An unreadable file is a mean-grey image."""
    if isinstance(images, Pixels):
        for chunk in images.pixels.split(size):
            yield plain(chunk.to(device), spec)
        return
    todo = (list(range(i, min(i + size, len(images)))) for i in range(0, len(images), size))
    for chunk in _loader(_Squares(images, spec), todo, workers):
        yield plain(chunk.to(device), spec)


def in_memory(images: Images, spec: Crops, workers: int | str = "auto") -> Pixels:
    """The images as pixels: files as their central squares of the views' size, an unreadable one mean grey."""
    if isinstance(images, Pixels):
        return images
    todo = ([i] for i in range(len(images)))
    return Pixels(torch.cat(list(_loader(_Squares(images, spec), todo, workers))), images.labels, images.classes)


def with_labelled(batch: Tensor, labelled: Tensor, count: int, step: int, seed: int) -> Tensor:
    """The batch with `count` of its images, spread evenly, replaced by labelled ones: the next in an endless row of permutations."""
    places = torch.arange(step * count, (step + 1) * count)
    n = len(labelled)
    orders = {int(c): permutation(seed + 1, int(c), n) for c in (places // n).unique()}
    chosen = torch.stack([labelled[orders[int(place) // n][place % n]] for place in places])
    mixed = batch.clone()
    mixed[torch.linspace(0, len(batch) - 1, count).long()] = chosen
    return mixed


def visible_labels(images: Images, recipe: Recipe) -> Tensor | None:
    """[N] int64, the labels that the run may learn from, -1 for the others: `recipe.labels` of them, balanced, drawn by seed.

    Raises `Misuse` when there are no labels, or fewer in a class than asked.
    """
    if recipe.labels is None:
        return None
    if images.labels is None:
        raise Misuse(f"labels={recipe.labels}: data={recipe.data} has no labels to learn from; put each class into a folder of its own")
    classes = len(images.classes)
    total = recipe.labels if isinstance(recipe.labels, int) else round(recipe.labels * len(images))
    each, rest = divmod(total, classes)
    order = permutation(recipe.seed, 0, len(images))
    visible = torch.full((len(images),), -1)
    for c in range(classes):
        found = order[images.labels[order] == c]
        want = each + (c < rest)
        if not 0 < want <= len(found):
            raise Misuse(f"labels={recipe.labels} is {want} for {images.classes[c]}, which has {len(found)} images; each class needs one")
        visible[found[:want]] = c
    return visible


class _Crops(Dataset[Any]):
    """(epoch, i) to uint8 crops, [V, C, S, S] for each size, cut by the same draw that a whole batch of pixels would use."""

    def __init__(self, files: Files, recipe: Recipe):
        self.files, self.recipe = files, recipe

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int, list[np.ndarray], list[tuple[Path, str]]]:
        epoch, first = key
        spec, bad = self.recipe.views, []
        for i in ((first + n) % len(self.files) for n in range(min(SUBSTITUTES, len(self.files)))):
            try:
                image = self.files.read(i)
            except BadImage as e:
                bad.append((e.path, e.reason))
                continue
            sizes = []
            for views in spec.of_each_size(self.recipe.global_views):
                crops = []
                for v, size, how in views:
                    u = draws(self.recipe.seed, epoch, torch.tensor([i]), v)
                    top, left, height, width = crop_boxes(u[:, :DRAWS], image.height, image.width, how)[0].tolist()
                    crops.append(_resized(image, (left, top, left + width, top + height), size))
                sizes.append(np.stack(crops))
            return epoch, i, sizes, bad
        raise Failure(f"{len(bad)} files in a row could not be read, the last one {bad[-1][0]}: {bad[-1][1]}. Is the folder still there?")


class _Squares(Dataset[Any]):
    """i to the central square, uint8 [C, S, S]."""

    def __init__(self, files: Files, spec: Crops):
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
    epochs, index, sizes, bad = zip(*samples, strict=True)
    crops = [torch.from_numpy(np.stack(of_size)) for of_size in zip(*sizes, strict=True)]
    return epochs[0], torch.tensor(index), crops, [b for some in bad for b in some]
