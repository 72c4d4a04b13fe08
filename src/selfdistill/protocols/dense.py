"""The dense protocol: segmentation from the features at each place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor

from selfdistill.data.images import Pixels
from selfdistill.data.reading import BadImage, extensions, read_image
from selfdistill.errors import Misuse
from selfdistill.evaluate.dense import IGNORED, dense_probes, scenes
from selfdistill.evaluate.knn import TEMPERATURE, K
from selfdistill.parts.backbone import device_of
from selfdistill.protocols.frozen import Found, Protocol, Seed
from selfdistill.spec import Count, Positive
from selfdistill.train.subject import Subject
from selfdistill.views.augment import normalize
from selfdistill.views.crop import central_square
from selfdistill.views.draw import permutation

Masked = tuple[Tensor, Tensor]
"""uint8 images [N, C, S, S] and masks [N, S, S] int64, 255 for pixels that do not count"""


class Dense(Protocol):
    """Linear and kNN probe of a ViT's patch tokens or a convnet's last feature map, on masks; mIoU and accuracy over pixels."""

    data: str = "scenes"
    """a folder of images/ and masks/ (PNGs of class ids, of the images' names), or scenes: three of the run's own grey held-out
    images on a black canvas of twice their size, training images for the bank"""
    size: Annotated[int, Field(ge=4)] | None = None
    """pixels of a folder's images, by their central square; none: the views' size"""
    bank: Annotated[int, Field(ge=2)] = 1000
    """images at most that are learnt from"""
    test: Count = 500
    k: Count = K
    temperature: Positive = TEMPERATURE
    epochs: Count = 30
    """of the linear probe: an image gives as many examples as it has places"""
    seed: Seed = 0

    def measure(self, subject: Subject) -> Found:
        if self.size is not None and self.data == "scenes":
            raise Misuse(f"dense.size={self.size}: of a folder's images (dense.data=FOLDER); scenes are of twice the views' size")
        (bank, masks), (test, targets) = self._scenes(subject) if self.data == "scenes" else self._folder(subject)
        for name, of in (("learnt from", masks), ("held out", targets)):
            if len(of[of != IGNORED].unique()) < 2:
                raise Misuse(
                    f"dense.data={self.data}: the masks {name} have fewer than two classes; 255 is no class and not counted: write 1"
                )
        classes = 1 + max(int(m[m != IGNORED].max(initial=0)) for m in (masks.numpy(), targets.numpy()))
        found = dense_probes(
            _maps(subject, bank),
            masks,
            _maps(subject, test),
            targets,
            classes,
            self.k,
            self.temperature,
            epochs=self.epochs,
            seed=self.seed,
        )
        numbers = {name: {"mIoU": of.miou, "accuracy": of.accuracy} for name, of in found.items()}
        return Found({f"{name} {what}": number for name, of in numbers.items() for what, number in of.items()})

    def _scenes(self, subject: Subject) -> tuple[Masked, Masked]:
        bank, labels, test, targets = subject.images
        S, C = subject.recipe.views.size, subject.recipe.encoder.channels
        if not (isinstance(bank, Pixels) and isinstance(test, Pixels)) or bool((bank.pixels[:, :1] != bank.pixels).any()):
            raise Misuse(f"dense: scenes are made of grey images on black, and data={subject.source.name} has none: dense.data=FOLDER")

        def made(pixels: Tensor, of: Tensor, count: int, seed: int) -> Masked:
            grey = pixels[:, :1]
            if grey.shape[2:] != (S, S):
                grey = F.interpolate(grey, (S, S), mode="bilinear", antialias=True)
            canvas, mask = scenes(grey, of, count, seed=seed)
            return canvas.expand(-1, C, -1, -1), mask

        return made(bank.pixels, labels, self.bank, self.seed), made(test.pixels, targets, self.test, self.seed + 1)

    def _folder(self, subject: Subject) -> tuple[Masked, Masked]:
        pairs = list(_pairs(Path(self.data)))
        order = permutation(self.seed, 0, len(pairs)).tolist()
        n = len(pairs) // 5  # a fifth is held out
        size, channels = self.size or subject.recipe.views.size, subject.recipe.encoder.channels
        test, bank = ([pairs[i] for i in part] for part in (order[:n][: self.test], order[n:][: self.bank]))
        return _read(bank, size, channels), _read(test, size, channels)


@torch.inference_mode()
def _maps(subject: Subject, images: Tensor) -> Tensor:
    """[N, F, h, w] fp32 on the CPU."""
    backbone: Any = subject.backbone
    device = device_of(backbone)
    chunks = (normalize(chunk.to(device).float() / 255, subject.recipe.views) for chunk in images.split(64))
    maps = torch.cat([backbone.maps(x).float().cpu() for x in chunks])
    subject.check_finite(maps)
    return maps


def _pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """(image, mask) in the images' order. Raises `Misuse` where there are fewer than ten or one has no mask."""
    images = sorted(p for p in (folder / "images").glob("*") if p.suffix.lower() in extensions())
    if len(images) < 10 or not (folder / "masks").is_dir():
        raise Misuse(f"dense.data={folder}: wants images/ with ten images at least, and masks/ with a PNG of the same name for each")
    for image in images:
        mask = folder / "masks" / f"{image.stem}.png"
        if not mask.is_file():
            raise Misuse(f"dense.data={folder}: {image.name} has no mask {mask}")
        yield image, mask


def _read(pairs: list[tuple[Path, Path]], size: int, channels: int) -> Masked:
    images = torch.empty(len(pairs), channels, size, size, dtype=torch.uint8)
    masks = torch.empty(len(pairs), size, size, dtype=torch.long)
    for n, (image, mask) in enumerate(pairs):
        try:
            picture = read_image(image)
            with Image.open(mask) as ids:
                of = ids.copy()
        except (BadImage, OSError) as e:
            raise Misuse(f"dense.data: {e}") from e
        if of.mode not in ("L", "P", "1") or of.size != picture.size:
            raise Misuse(f"{mask}: a {of.mode} image of {of.size}; wanted 8-bit class ids of {image.name}'s size, {picture.size}")
        top, left, side, _ = central_square(picture.height, picture.width)
        box = (left, top, left + side, top + side)
        square = picture.resize((size, size), Image.Resampling.BILINEAR, box=box).convert("L" if channels == 1 else "RGB")
        images[n] = torch.from_numpy(np.array(square)).view(size, size, -1).permute(2, 0, 1)
        masks[n] = torch.from_numpy(np.array(of.resize((size, size), Image.Resampling.NEAREST, box=box))).long()
    return images, masks
