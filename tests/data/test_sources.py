"""Sets with a name. Nothing here touches the network: torchvision's classes are replaced by small stand-ins."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from selfdistill.data import sources
from selfdistill.data.images import Files, Pixels
from selfdistill.data.sources import SOURCES, open_source
from selfdistill.errors import Failure, Misuse


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data root."""
    monkeypatch.setenv("SELFDISTILL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def idx(path: Path, values: np.ndarray) -> None:
    content = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def fashion(folder: Path, suffix: str, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", 20), ("t10k", 10)):
        idx(folder / f"{stem}-images-idx3-ubyte{suffix}", np.full((count, 28, 28), first, np.uint8))
        idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)


def test_digits() -> None:
    source = open_source("digits")
    assert isinstance(source.train, Pixels)
    assert isinstance(source.test, Pixels)
    assert source.train.pixels.shape == (1437, 1, 8, 8)
    assert source.test.pixels.shape == (360, 1, 8, 8)
    assert source.train.pixels.dtype == torch.uint8
    assert int(source.train.pixels.max()) == 255
    assert int(source.train.pixels.min()) == 0
    assert source.train.classes == tuple("0123456789")
    assert source.train.channels == 1
    assert source.bank is None
    assert source.train.labels is not None
    assert source.test.labels is not None
    shares = torch.bincount(source.test.labels) / torch.bincount(torch.cat([source.train.labels, source.test.labels]))
    assert ((shares - 360 / 1797).abs() < 0.01).all()
    again = open_source("digits")
    assert isinstance(again.train, Pixels)
    assert torch.equal(again.train.pixels, source.train.pixels)


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    source = open_source("digits")
    assert isinstance(source.train, Pixels)
    assert isinstance(source.test, Pixels)
    assert source.train.labels is not None
    ours = torch.cat([source.train.pixels, source.test.pixels]).long().sum()
    assert int(ours) == pytest.approx(load_digits().images.sum() * 255 / 16, rel=0.01)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_in_the_data_root(root: Path, suffix: str) -> None:
    fashion(root / "FashionMNIST/raw", suffix, first=7)
    source = open_source("fashion-mnist")
    assert isinstance(source.train, Pixels)
    assert isinstance(source.test, Pixels)
    assert source.train.pixels.shape == (20, 1, 28, 28)
    assert source.test.pixels.shape == (10, 1, 28, 28)
    assert (source.train.pixels == 7).all()
    assert source.train.labels is not None
    assert source.train.labels.dtype == torch.int64
    assert len(source.train.classes) == 10
    assert source.train.classes[9] == "Ankle boot"


def test_fashion_mnist_gzipped_and_unpacked_side_by_side(root: Path) -> None:
    for suffix in (".gz", ""):  # as a download by torchvision leaves it
        fashion(root / "FashionMNIST/raw", suffix)
    assert len(open_source("fashion-mnist").train) == 20


@pytest.mark.skipif(not sources.DEBIAN_FASHION_MNIST.is_dir(), reason="the Debian package dataset-fashion-mnist is absent")
def test_fashion_mnist_of_debian() -> None:
    source = open_source("fashion-mnist")
    assert isinstance(source.train, Pixels)
    assert source.test is not None
    assert source.train.labels is not None
    assert source.train.pixels.shape == (60000, 1, 28, 28)
    assert len(source.test) == 10000
    assert torch.bincount(source.train.labels).tolist() == [6000] * 10
    assert source.train.labels[:4].tolist() == [9, 0, 0, 3]
    assert source.train.pixels.float().mean() == pytest.approx(0.2860 * 255, rel=1e-3)


def test_damaged_idx_files_are_a_failure(root: Path) -> None:
    fashion(root / "FashionMNIST/raw", ".gz")
    path = root / "FashionMNIST/raw/t10k-images-idx3-ubyte.gz"
    for content in (path.read_bytes()[:30], b"garbage", gzip.compress(b"\0\0\x08"), gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\x05" * 3)):
        path.write_bytes(content)
        with pytest.raises(Failure, match="fashion-mnist"):
            open_source("fashion-mnist")


class NoNetwork:
    """A torchvision data set that cannot be downloaded."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise URLError("no route\nto host")


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("fashion-mnist", "FashionMNIST"),
        ("cifar10", "CIFAR10"),
        ("cifar100", "CIFAR100"),
        ("stl10", "STL10"),
        ("imagenette", "Imagenette"),
        ("imagenette-full", "Imagenette"),
    ],
)
def test_a_failed_download_is_one_clear_failure(
    name: str, dataset: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, dataset, NoNetwork)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    with pytest.raises(Failure) as caught:
        open_source(name)
    message = str(caught.value)
    assert name in message
    assert str(root) in message
    assert "SELFDISTILL_DATA" in message
    assert "no route to host" in message
    assert "\n" not in message
    assert ("dataset-fashion-mnist" in message) == (name == "fashion-mnist")


@pytest.mark.parametrize(("name", "dataset"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_is_channels_first(name: str, dataset: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand:
        classes = ("cat", "dog")

        def __init__(self, where: str, train: bool, download: bool) -> None:
            assert where == str(root)
            assert download
            count = 6 if train else 2
            self.data = np.arange(count * 32 * 32 * 3, dtype=np.int64).astype(np.uint8).reshape(count, 32, 32, 3)
            self.targets = [i % 2 for i in range(count)]

    monkeypatch.setattr(torchvision.datasets, dataset, Stand)
    source = open_source(name)
    assert isinstance(source.train, Pixels)
    assert source.test is not None
    assert source.name == name
    assert source.train.pixels.shape == (6, 3, 32, 32)
    assert source.train.pixels[0, :, 0, 1].tolist() == [3, 4, 5]
    assert source.train.pixels.is_contiguous()
    assert source.train.classes == ("cat", "dog")
    assert len(source.test) == 2


def test_stl10_has_a_labelled_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand:
        classes = ("cat", "dog")

        def __init__(self, where: str, split: str, download: bool) -> None:
            self.labels = np.array([0, 1, 1]) if split == "test" else np.array([0, 1, -1, -1, -1])
            self.data = np.transpose(np.zeros((len(self.labels), 3, 96, 96), np.uint8), (0, 1, 3, 2))

    monkeypatch.setattr(torchvision.datasets, "STL10", Stand)
    source = open_source("stl10")
    assert isinstance(source.train, Pixels)
    assert isinstance(source.bank, Pixels)
    assert source.test is not None
    assert len(source.train) == 5
    assert source.train.labels is not None
    assert source.train.labels.tolist() == [0, 1, -1, -1, -1]
    assert source.bank.labels is not None
    assert source.bank.labels.tolist() == [0, 1]
    assert source.bank.pixels.data_ptr() == source.train.pixels.data_ptr()


def test_imagenette_is_read_from_its_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand:
        classes = (("tench", "Tinca tinca"), ("English springer", "English springer spaniel"))

        def __init__(self, where: str, size: str, download: bool) -> None:
            assert (where, size) == (str(root), "160px")
            for name in ("train/n01440764/a", "train/n02102040/b", "val/n01440764/c", "val/n02102040/d"):
                path = root / "imagenette2-160" / f"{name}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(path)

    monkeypatch.setattr(torchvision.datasets, "Imagenette", Stand)
    source = open_source("imagenette")
    assert isinstance(source.train, Files)
    assert source.test is not None
    assert source.name == "imagenette"
    assert source.train.classes == source.test.classes == ("tench", "English springer")
    assert source.test.labels is not None
    assert source.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("cifar-10", "cifar10"), ("CIFAR100", "cifar100"), ("digit", "digits"), ("mnist", "fashion-mnist"), ("stl", "stl10")],
)
def test_a_wrong_name_gets_the_nearest_one(wrong: str, near: str) -> None:
    with pytest.raises(Misuse) as caught:
        open_source(wrong)
    assert f"data={wrong}" in str(caught.value)
    assert f"Did you mean {near}?" in str(caught.value)
    assert "exists" in str(caught.value)
    assert all(name in str(caught.value) for name in SOURCES)


@pytest.mark.parametrize("wrong", ["", "qqqqqqqq"])
def test_a_name_near_nothing(wrong: str) -> None:
    with pytest.raises(Misuse, match="neither a known data set nor"):
        open_source(wrong)


@pytest.mark.parametrize("path", ["./digits", "/no/such/folder", "some/folder", "~/no-such-folder-of-images", "."])
def test_what_looks_like_a_path_is_one(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Misuse, match=r"does not exist|no images"):
        open_source(path)


def test_folders_by_every_kind_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "digits/a.png")
    (tmp_path / "mine").symlink_to(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    for path in ("./digits", "mine", str(tmp_path / "digits"), tmp_path / "digits", Path("digits")):
        assert len(open_source(path).train) == 1
    assert len(open_source("digits").train) == 1437  # a name wins over a folder in the current directory
    (tmp_path / "digits/b.png").touch()
    with pytest.raises(Misuse, match="on_bad_image=skip"):
        open_source("mine", on_bad_image="error")
