"""What a data set is: `Pixels` in memory, or `Encoded` images that are decoded when they are needed, gathered in a `Source`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, final

import torch
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

from selfdistill.data.reading import Photo, open_photo, printable
from selfdistill.errors import Misuse
from selfdistill.views.draw import evenly_spaced

if TYPE_CHECKING:
    from typing_extensions import Self


@final
@dataclass(frozen=True, eq=False)
class Pixels:
    """Images in memory. pixels: uint8 [N, C, H, W]; labels: int64 [N], -1 where there is none, or None; classes: a name per label."""

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise Misuse(f"pixels are {self.pixels.dtype} {list(self.pixels.shape)}, not uint8 [N, C, H, W]: convert them first")
        if self.pixels.shape[3] in (1, 3) and min(self.pixels.shape[1:3]) > 4:
            raise Misuse(f"pixels are {list(self.pixels.shape)}, channels last: .permute(0, 3, 1, 2) makes them [N, C, H, W]")
        _check_labels(self.labels, self.classes, len(self))

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    def path(self, i: int) -> None:
        """An image in memory lies nowhere."""

    def holds(self, path: Path) -> bool:
        return False

    def pick(self, rows: Tensor) -> Pixels:
        """The images at the places `rows` [n]."""
        return Pixels(self.pixels[rows], picked(self.labels, rows), self.classes)


class Encoded(ABC):
    """Images to be read in any order, as RGB: a file, a piece of an archive or a row of a table each. Random access keeps the order
    of a run exact: a function of seed and epoch, shared among ranks and workers without overlap, and known after a resume."""

    labels: Tensor | None
    classes: tuple[str, ...]
    channels = 3

    def __post_init__(self) -> None:
        _check_labels(self.labels, self.classes, len(self))

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def open(self, i: int) -> AbstractContextManager[Photo]:
        """Image i; raises BadImage, also for what goes wrong while it is open."""

    @abstractmethod
    def path(self, i: int) -> str:
        """Where image i lies, in words that no other image has."""

    def holds(self, path: Path) -> bool:
        """Whether `path` is one of the files that they are read from, where that is known."""
        return False

    @abstractmethod
    def pick(self, rows: Tensor) -> Self:
        """The images at the places `rows` [n]."""


@final
@dataclass(frozen=True, eq=False)
class Files(Encoded):
    """Images on disk. paths: N files; labels and classes as in `Pixels`."""

    paths: list[Path]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> AbstractContextManager[Photo]:
        return open_photo(self.paths[i])

    def path(self, i: int) -> str:
        return printable(self.paths[i])

    def holds(self, path: Path) -> bool:
        return any(mine.name == path.name and mine.resolve() == path.resolve() for mine in self.paths)

    def pick(self, rows: Tensor) -> Files:
        return replace(self, paths=[self.paths[i] for i in rows], labels=picked(self.labels, rows))


@final
class Grey(Encoded):
    """The same images for a network that looks at grey levels: their squares are of one channel (`data.loader`)."""

    channels = 1

    def __init__(self, of: Encoded):
        self.of, self.labels, self.classes = of, of.labels, of.classes

    def __len__(self) -> int:
        return len(self.of)

    def open(self, i: int) -> AbstractContextManager[Photo]:
        return self.of.open(i)

    def path(self, i: int) -> str:
        return self.of.path(i)

    def holds(self, path: Path) -> bool:
        return self.of.holds(path)

    def pick(self, rows: Tensor) -> Grey:
        return Grey(self.of.pick(rows))


Images: TypeAlias = Pixels | Encoded


def spread(images: Images, n: int) -> Images:
    """n of the images, or all where there are fewer, `evenly_spaced`."""
    return images if len(images) <= n else images.pick(evenly_spaced(len(images), n))


@dataclass(frozen=True, eq=False)
class Source:
    """A data set. test: held-out images, labelled if the set is. bank: the labelled images that probes learn from, where `train`
    is not fully labelled; None means `train`. bad: files left out, and why. notes: sentences to say at the start of a run."""

    name: str
    train: Images
    test: Images | None = None
    bank: Images | None = None
    bad: tuple[tuple[Path, str], ...] = ()
    notes: tuple[str, ...] = ()

    def holds(self, path: Path) -> bool:
        """Whether `path` is one of the files that its images are read from."""
        return any(images.holds(path) for images in (self.train, self.test, self.bank) if images is not None)

    @property
    def looked_at(self) -> Images:
        """What pictures and diagnoses are of: held-out images, or training ones where none are held out."""
        return self.test or self.train

    def labelled(self) -> tuple[Images, Tensor, Images, Tensor]:
        """(bank, its labels, held-out images, their labels), without those that have no label. Raises `Misuse` where there are none."""
        bank, test = self.bank or self.train, self.test
        if test is None and bank.labels is not None:
            raise Misuse(f"data={self.name} has labels, and no image could be held out for the probes: a class needs two images at least")
        if test is None or any(images.labels is None or not (images.labels >= 0).any() for images in (bank, test)):
            raise Misuse(
                f"data={self.name} has no labels, which the probes need: put each class into a folder of its own, or name a labelled set"
            )
        return *_with_label(bank), *_with_label(test)

    def of_channels(self, channels: int) -> Source:
        """As a network of so many channels looks at it: grey images as RGB, colour as grey levels. Raises `Misuse` for other numbers."""
        found = self.train.channels
        if found == channels:
            return self
        if {found, channels} != {1, 3}:
            raise Misuse(f"data={self.name}: images of {found} channels for a network of {channels}")

        def seen(images: Images) -> Images:
            if isinstance(images, Encoded):
                return images.of if isinstance(images, Grey) else Grey(images)
            return replace(images, pixels=images.pixels.expand(-1, 3, -1, -1) if channels == 3 else rgb_to_grayscale(images.pixels))

        test, bank = (None if images is None else seen(images) for images in (self.test, self.bank))
        return replace(self, train=seen(self.train), test=test, bank=bank)

    @property
    def left_out(self) -> str:
        """A sentence on `bad`, empty where there are none."""
        if not self.bad:
            return ""
        file, reason = self.bad[0]
        return f"{self.name}: {len(self.bad)} bad files are left out, the first: {printable(file)}: {reason}"


def _with_label(images: Images) -> tuple[Images, Tensor]:
    """Those that have one, and it: -1 is none."""
    assert images.labels is not None
    rows = (images.labels >= 0).nonzero()[:, 0]
    return (images, images.labels) if len(rows) == len(images) else (images.pick(rows), images.labels[rows])


def picked(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    """The labels of the images at the places `rows` [n], where there are any."""
    return None if labels is None else labels[rows]


def _check_labels(labels: Tensor | None, classes: tuple[str, ...], images: int) -> None:
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise Misuse(f"labels are a {type(labels).__name__}, not a tensor: torch.as_tensor(labels)")
    if labels.dtype != torch.int64 or labels.shape != (images,):
        raise Misuse(f"labels are {labels.dtype} {list(labels.shape)}, not int64 [{images}], one for each image")
    if images and not -1 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise Misuse(
            f"labels go from {int(labels.min())} to {int(labels.max())}: with {len(classes)} classes use -1 (none) to {len(classes) - 1}"
        )
