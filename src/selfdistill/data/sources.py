"""The data sets that have a name, and `open_source`, which takes a name or a folder."""

from __future__ import annotations

import gzip
import os
import re
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.data.folder import Policy, open_folder
from selfdistill.data.images import Files, Images, Pixels, Source
from selfdistill.data.reading import printable
from selfdistill.data.shards import is_shards, open_shards
from selfdistill.data.table import PREFIX, open_table
from selfdistill.errors import Failure, Misuse, did_you_mean, in_one_line
from selfdistill.own import PYTHON

# scikit-learn and torchvision are imported where they are used: a command that opens a folder starts without them.

Data = str | Path | Tensor | np.ndarray | Source
"""what a Python program may pass: a name, a folder, uint8 images [N, C, H, W], or a set with held-out images and labels"""
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def open_source(data: str | os.PathLike[str], on_bad_image: Policy = "skip") -> Source:
    """The data set named `data` (a key of SOURCES), `hf:NAME` (`open_table`), tar shards (`open_shards`), else the folder at that path
    (a folder called like a set: ./digits).

    Raises Misuse for what is neither, a stream among them; Failure when a set can be neither found nor downloaded.
    """
    check_data(data)
    name = os.path.expanduser(data)
    if name.startswith(PYTHON):
        raise Misuse(f"data={name}: images of a Python program, which passes them again: sd.load(RUN, data=images), or with resume=True")
    if isinstance(data, str) and name in SOURCES:
        return SOURCES[name]()
    if name.startswith(PREFIX):
        return open_table(name)
    if is_shards(name):
        return open_shards(name)
    looks_like_path = name.startswith((".", "~")) or any(separator in name for separator in (os.sep, os.altsep) if separator)
    if looks_like_path or (name and os.path.exists(name)):
        return open_folder(name, on_bad_image)
    raise Misuse(
        f"data={printable(name)} is neither a known data set nor a path that exists: use one of {', '.join(SOURCES)}, an existing folder "
        f"of images, shards-{{000..127}}.tar, or {PREFIX}NAME (Hugging Face).{did_you_mean(name.lower(), SOURCES, cutoff=0.4)}"
    )


def word_of(data: str | os.PathLike[str]) -> str:
    """What a recipe says of it, for `open_source` to read again: a path that is called like a set is a path still."""
    name = os.fspath(data)
    return os.path.join(".", name) if name in SOURCES and not isinstance(data, str) else name


def given(data: Any) -> str | Source:
    """`Data` as what can be opened, or is open. Raises `Misuse` for what is none."""
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8:
            raise Misuse(f"data is an array of {data.dtype}, not uint8 images [N, C, H, W]: convert it first")
        data = torch.from_numpy(data if data.flags.writeable and min(data.strides, default=0) >= 0 else data.copy())
    if isinstance(data, Tensor):
        return Source("tensor", Pixels(data))
    if isinstance(data, Source):
        return data
    check_data(data)
    return word_of(data)


def check_data(data: Any) -> None:
    """Raises `Misuse` for what is no name and no path, and for what gives its images in an order of its own: a URL, a pipe, an iterator."""
    if not isinstance(data, (str, os.PathLike)):
        said = f" is a {type(data).__module__}.{type(data).__name__}, not a name, a path, uint8 images [N, C, H, W] or a Source"
        if hasattr(data, "__len__"):
            raise Misuse(
                f"data{said}. Of image files give their folder; of images in memory stack a tensor, and Source(name, Pixels(tensor))"
            )
    elif re.match(r"pipe:|\w+://", name := os.fspath(data)):
        said = f"={printable(name)} is a stream"
    else:
        return
    raise Misuse(
        f"data{said}. Streams are not read: a run's order, each process's share and a resume want images in any order. Download shards for"
        f" data='shards-{{000..127}}.tar', or load the set without streaming=True, save_to_disk(FOLDER), and use data={PREFIX}FOLDER"
    )


def data_root() -> Path:
    """Where data sets are kept, in torchvision's layout: $SELFDISTILL_DATA, else ~/.cache/selfdistill."""
    return Path(os.path.expanduser(os.environ.get("SELFDISTILL_DATA") or "~/.cache/selfdistill"))


def read_idx(path: Path) -> Tensor:
    """A uint8 array in MNIST's idx format, gzipped or not. Raises ValueError, OSError, EOFError or zlib.error on damaged files."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of bytes")
    dims = data[3]
    shape = struct.unpack_from(f">{dims}I", data, 4)
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape).copy())


def digits() -> Source:
    """scikit-learn's digits, [N, 1, 8, 8]: 1437 train, 360 test, no network needed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)  # values come as 0..16
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    classes = tuple(str(name) for name in bunch.target_names)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=bunch.target, random_state=0)
    return Source("digits", Pixels(pixels[train], labels[train], classes), Pixels(pixels[test], labels[test], classes))


def fashion_mnist() -> Source:
    """Fashion-MNIST, [N, 1, 28, 28]: 60,000 train, 10,000 test; from the data root, the Debian package or the network."""
    from torchvision.datasets import FashionMNIST

    raw = data_root() / "FashionMNIST" / "raw"
    with _fetching("fashion-mnist", debian="dataset-fashion-mnist"):
        folder = next((folder for folder in (raw, DEBIAN_FASHION_MNIST) if _idx_files(folder)), None)
        if folder is None:
            FashionMNIST(str(data_root()), download=True)
            folder = raw
        train_pixels, train_labels, test_pixels, test_labels = map(read_idx, _idx_files(folder))
        return Source(
            "fashion-mnist",
            Pixels(train_pixels.unsqueeze(1), train_labels.long(), FASHION_CLASSES),
            Pixels(test_pixels.unsqueeze(1), test_labels.long(), FASHION_CLASSES),
        )


def cifar10() -> Source:
    """CIFAR-10, [N, 3, 32, 32]: 50,000 train, 10,000 test."""
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10)


def cifar100() -> Source:
    """CIFAR-100 with its 100 fine classes, [N, 3, 32, 32]: 50,000 train, 10,000 test."""
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100)


def stl10() -> Source:
    """STL-10, [N, 3, 96, 96]: 105,000 train (2.9 GB), the first 5,000 of them labelled and the probes' bank; 8,000 test."""
    from torchvision.datasets import STL10

    def tensors(split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        part = STL10(str(data_root()), split=split, download=True)
        return torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels).long(), tuple(part.classes)

    with _fetching("stl10"):
        pixels, labels, classes = tensors("train+unlabeled")
        test = Pixels(*tensors("test"))
    labelled = int((labels >= 0).sum())  # they come first
    bank = Pixels(pixels[:labelled], labels[:labelled], classes)  # a view: no second copy
    return Source("stl10", Pixels(pixels, labels, classes), test, bank)


def imagenette() -> Source:
    """Ten classes of ImageNet as files, shorter side 160: 9,469 train, 3,925 test."""
    return _imagenette("imagenette", "160px", "imagenette2-160")


def imagenette_full() -> Source:
    """Imagenette at its full size."""
    return _imagenette("imagenette-full", "full", "imagenette2")


SOURCES: dict[str, Callable[[], Source]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "stl10": stl10,
    "imagenette": imagenette,
    "imagenette-full": imagenette_full,
}


@contextmanager
def _fetching(name: str, debian: str = "", patience: float = 30.0) -> Iterator[None]:
    """Turns whatever goes wrong while a set is read or downloaded into one Failure. patience: seconds without an answer from a server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(patience)  # without one, a firewall that swallows packets hangs the run
    try:
        yield
    except (OSError, RuntimeError, ValueError, EOFError, zlib.error, struct.error) as error:
        package = f" or install the Debian package {debian}" if debian else ""
        raise Failure(
            f"cannot read or download the data set {name} ({in_one_line(error)}):"
            f" put torchvision's files of it into {data_root()} (SELFDISTILL_DATA names another folder){package}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _idx_files(folder: Path) -> list[Path]:
    """train images, train labels, test images, test labels: the four files, gzipped or not, or [] where one is missing."""
    stems = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    paths = [path if path.is_file() else path.with_name(f"{path.name}.gz") for path in (folder / stem for stem in stems)]
    return paths if all(path.is_file() for path in paths) else []


def _cifar(name: str, dataset: Callable[..., Any]) -> Source:
    def pixels(train: bool) -> Images:
        part = dataset(str(data_root()), train=train, download=True)
        return Pixels(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets), tuple(part.classes))

    with _fetching(name):
        return Source(name, pixels(True), pixels(False))


def _imagenette(name: str, size: str, folder: str) -> Source:
    from torchvision.datasets import Imagenette

    with _fetching(name):
        names = Imagenette(str(data_root()), size=size, download=True).classes  # a tuple of synonyms per class, in the order of the folders
    classes = tuple(synonyms[0] for synonyms in names)
    source = open_folder(data_root() / folder)
    train, test = (replace(images, classes=classes) if isinstance(images, Files) else None for images in (source.train, source.test))
    assert train is not None
    return replace(source, name=name, train=train, test=test)
