"""Images in the order of a run, as views; and images as they are, for features."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms.functional import rgb_to_grayscale

from selfdistill.data.images import Encoded, Images, Pixels
from selfdistill.data.order import micro_batches, visible_labels
from selfdistill.data.reading import BadImage, Photo
from selfdistill.errors import Failure, in_one_line
from selfdistill.parts import collective
from selfdistill.recipe import Recipe
from selfdistill.views.augment import draws, plain, views_of_crops, views_of_pixels
from selfdistill.views.batch import Views
from selfdistill.views.crop import DRAWS, central_square, crop_boxes
from selfdistill.views.fused import cut_crops
from selfdistill.views.spec import Crops

SUBSTITUTES = 100
"""files in a row that may turn out unreadable before the folder is given up"""

RESIDENT = 0.25
"""of a GPU's memory that a data set may take; a larger one stays in the machine's, a batch at a time"""

SPARE = 2.0
"""pixels, in each direction, that a photograph is decoded to for one of a crop: with 1, a rounded box is off by up to half a pixel"""

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""microseconds of all cores that a container may use in a period, and the period (docker --cpus)"""

Report = Callable[[Path, str], None]
Timer = Callable[[str], AbstractContextManager[object]]
"""counts the time that a part of a step takes"""


def training_views(
    images: Images,
    recipe: Recipe,
    step: int,
    device: torch.device,
    report: Report,
    rank: int = 0,
    ranks: int = 1,
    clock: Timer = nullcontext,
) -> Generator[Views, None, None]:
    """The views of each micro-batch, on `device`. Files that prove unreadable are replaced by the next readable one and reported."""
    visible = visible_labels(images, recipe)
    order = micro_batches(recipe, len(images), step, rank, ranks, visible)
    labels = None if visible is None else visible.to(device)
    for rounds, views in _views(images, recipe, device, report, order, clock):
        # What fills up the batch counts as unlabelled, even where an image has a label: the labelled share is the recipe's.
        chosen = (rounds >= recipe.epochs).to(device, non_blocking=True)
        yield views if labels is None else views._replace(labels=labels[views.ids].where(chosen, -1))


def _views(
    images: Images, recipe: Recipe, device: torch.device, report: Report, order: Iterator[tuple[Tensor, Tensor]], clock: Timer
) -> Iterator[tuple[Tensor, Views]]:
    """The rounds [B] of each batch, and its views."""
    if isinstance(images, Pixels):
        pixels = images.pixels.to(device) if _fits(images.pixels, device) else images.pixels
        for rounds, index in order:
            batch = pixels[index.to(pixels.device, non_blocking=True)].to(device, non_blocking=True)
            with clock("views"):
                views = views_of_pixels(batch, index, recipe.views, recipe.global_views, recipe.seed, rounds)
            yield rounds, views
        return
    todo = (list(zip(rounds.tolist(), index.tolist(), strict=True)) for rounds, index in order)
    reported: set[Path] = set()
    for rounds, index, cut, bad in _loader(_Crops(images, recipe), todo, recipe.workers):
        for path, reason in bad:
            if path not in reported:
                reported.add(path)
                report(path, reason)
        if not cut:
            raise Failure(f"{len(bad)} files in a row could not be read, the last {bad[-1][0]}: {bad[-1][1]}. Is the folder still there?")
        crops = [c.to(device, non_blocking=True) for c in cut]
        with clock("views"):
            views = views_of_crops(crops, index, recipe.views, recipe.global_views, recipe.seed, rounds)
        yield rounds, views


def _fits(pixels: Tensor, device: torch.device) -> bool:
    """Whether a data set may live on the device."""
    return device.type != "cuda" or pixels.nbytes <= RESIDENT * torch.cuda.get_device_properties(device).total_memory


def plain_batches(
    images: Images,
    spec: Crops,
    device: torch.device,
    workers: int | str = "auto",
    size: int = 512,
    report: Callable[[int, str], None] = lambda i, reason: None,
) -> Iterator[Tensor]:
    """The images in order, without augmentation: normalised float [b, C, S, S] on `device`. An unreadable file is a mean-grey image,
    and is reported with its place and the reason before its batch comes."""
    if isinstance(images, Pixels):
        for chunk in images.pixels.split(size):
            yield plain(chunk.to(device), spec)
        return
    todo = (list(range(i, min(i + size, len(images)))) for i in range(0, len(images), size))
    for chunk, bad in _loader(_Squares(images, spec), todo, workers):
        for i, reason in bad:
            report(i, reason)
        yield plain(chunk.to(device), spec)


def in_memory(images: Images, spec: Crops, workers: int | str = "auto") -> Pixels:
    """The images as pixels: files as their central squares of the views' size, an unreadable one mean grey."""
    if isinstance(images, Pixels):
        return images
    todo = (chunk.tolist() for chunk in torch.arange(len(images)).split(512))
    return Pixels(torch.cat([chunk for chunk, _ in _loader(_Squares(images, spec), todo, workers)]), images.labels, images.classes)


Key = tuple[int, int]
"""(round, image)"""
Bad = list[tuple[Path, str]]


class _Crops(Dataset[Any]):
    """A batch of keys to uint8 crops [B, V, C, S, S] for each size, cut by the same draws that pixels in memory would use. An image is
    decoded once, at the smallest scale that leaves every crop twice its size, and each crop is resized as torchvision does (antialiased
    bilinear), to a grey level."""

    def __init__(self, images: Encoded, recipe: Recipe):
        self.images, self.seed = images, recipe.seed  # not the recipe: a worker need not know a class of the user's own that it names
        self.sizes = recipe.views.of_each_size(recipe.global_views)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor, list[Tensor], Bad]:
        """(rounds [B], index [B], crops of each size, files that another had to stand in for); no crops where none could."""
        bad: Bad = []
        rounds, index = torch.tensor(keys).unbind(1)
        crops = [_memory(len(keys), len(views), 3, views[0][1], views[0][1]) for views in self.sizes]
        todo = torch.arange(len(keys))
        for _ in range(min(SUBSTITUTES, len(self.images))):
            todo = self._cut(rounds, index, todo, crops, bad)
            if not len(todo):
                return rounds, index, [rgb_to_grayscale(of) for of in crops] if self.images.channels == 1 else crops, bad
            index[todo] = (index[todo] + 1) % len(self.images)
        return rounds, index, [], bad  # given up; said by the process that trains, as an exception would bring its traceback

    def _cut(self, rounds: Tensor, index: Tensor, todo: Tensor, crops: list[Tensor], bad: Bad) -> Tensor:
        """Cuts the crops at the places `todo` of the batch; returns those whose file proved unreadable."""
        left: list[int] = []

        def attempt(place: int, f: Callable[[Photo], Any]) -> Any:
            try:
                with self.images.open(int(index[place])) as photo:
                    return f(photo)
            except BadImage as e:
                bad.append((e.path, e.reason))
                left.append(place)

        sides = {place: attempt(place, lambda photo: (photo.height, photo.width)) for place in todo.tolist()}
        places = [place for place, found in sides.items() if found]
        ids, (height, width) = index[places], torch.tensor([sides[place] for place in places]).view(-1, 2).unbind(1)
        boxes = [
            torch.stack([crop_boxes(draws(self.seed, rounds[places], ids, v)[:, :DRAWS], height, width, how) for v, _, how in views], 1)
            for views in self.sizes
        ]  # [b, V, 4] for each size
        needs = [views[0][1] / of[..., 2:].amin((1, 2)) for views, of in zip(self.sizes, boxes, strict=True)]  # [b] for each size
        need = (SPARE * torch.stack(needs).amax(0)).tolist()
        for n, place in enumerate(places):
            pixels = attempt(place, partial(Photo.pixels, scale=need[n]))
            if pixels is not None:
                scale = pixels.shape[0] / sides[place][0]
                for out, of in zip(crops, boxes, strict=True):
                    _resize(pixels, of[n], scale, out[place])
        return torch.tensor(left, dtype=torch.long)


class _Squares(Dataset[Any]):
    """Indices to central squares, uint8 [B, C, S, S], and the unreadable files among them with the reason: they are mean grey."""

    def __init__(self, images: Encoded, spec: Crops):
        self.images, self.spec = images, spec

    def __getitems__(self, index: list[int]) -> tuple[Tensor, list[tuple[int, str]]]:
        bad: list[tuple[int, str]] = []
        squares = _memory(len(index), 3, self.spec.size, self.spec.size)
        for square, i in zip(squares, index, strict=True):
            try:
                with self.images.open(i) as photo:
                    box = central_square(photo.height, photo.width)
                    pixels, height = photo.pixels(SPARE * self.spec.size / box[-1]), photo.height
            except BadImage as e:
                bad.append((i, e.reason))
                square.fill_(124)
            else:
                _resize(pixels, torch.tensor([box]), pixels.shape[0] / height, square[None])
        return rgb_to_grayscale(squares) if self.images.channels == 1 else squares, bad


def _resize(pixels: np.ndarray, boxes: Tensor, scale: float, out: Tensor) -> None:
    """`boxes` [V, 4] (top, left, height, width, in pixels of the whole image) of an image decoded at `scale`, into out [V, C, S, S]."""
    corner, sides = np.rint(boxes.numpy() * scale).astype(int).reshape(-1, 2, 2).swapaxes(0, 1)  # [V, 2] each
    whole = np.array(pixels.shape[:2])
    corner = np.minimum(corner, whole - 1)
    cut_crops(pixels, np.concatenate([corner, np.clip(sides, 1, whole - corner)], 1), out)


def _memory(*shape: int) -> Tensor:
    """uint8 memory, which a worker hands over without a copy."""
    empty = torch.empty(shape, dtype=torch.uint8)
    return empty.share_memory_() if get_worker_info() else empty


def _loader(dataset: Dataset[Any], todo: Iterator[list[Any]], workers: int | str) -> Iterator[Any]:
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", collective.ranks()[1]))  # processes on this machine, each with workers of its own
    count = max(1, min(cores() // beside, 16)) if workers == "auto" else int(workers)
    loader = DataLoader(
        dataset,
        batch_sampler=todo,
        num_workers=count,
        collate_fn=_as_it_is,
        worker_init_fn=_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # to draw from the global one would be felt by the network's dropout
    )
    others = set(active_children())
    batches = iter(loader)
    weakref.finalize(batches, _end, [worker for worker in active_children() if worker not in others])
    try:
        with workers_alive():
            yield from batches
    except (ConnectionError, EOFError) as e:  # a batch is fetched from the worker that made it
        raise _died(e) from e


def cores() -> int:
    """Those that this process may use: a queue or taskset may leave fewer than there are, and a container a share of their time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no Linux, no cgroup, or "max", no limit
        quota, period = map(int, QUOTA.read_text().split())
        count = min(count, max(1, quota // period))
    return count


@contextmanager
def workers_alive() -> Iterator[None]:
    """PyTorch hears of a worker's death by a signal, and raises wherever the process then is, in a backward pass too. Raises `Failure`."""
    try:
        yield
    except RuntimeError as e:
        if "DataLoader worker" not in str(e):
            raise
        raise _died(e) from e


def _died(e: Exception) -> Failure:
    return Failure(
        f"one of the processes that decode images died ({in_one_line(e, 160)}). Killed for memory? "
        "Fewer need less: workers=2. The last checkpoint is untouched: --resume goes on"
    )


def _end(workers: list[BaseProcess]) -> None:
    """When nobody asks for batches any more, or Python ends: it would wait for workers that do not hear its SIGTERM (`_worker`)."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _as_it_is(batch: Any) -> Any:
    return batch


def _worker(number: int) -> None:
    """A signal to all processes (Ctrl-C, a queue's SIGTERM) is for the one that saves the run, which needs its workers until then.
    They end when it does."""
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
