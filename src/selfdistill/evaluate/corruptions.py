"""Corruptions of images at five strengths (Hendrycks & Dietterich 2019, Sec. 4.1), seven of theirs: three of noise and blur, two of
light, two of coding. Strengths are those of the authors' CIFAR-10-C below 64 pixels and of ImageNet-C from there."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

SMALL = 64
"""pixels of the shorter side below which an image is small"""


class Corruption(NamedTuple):
    """of: (uint8 images [B, C, H, W], strength, draws) to images, float in [0, 1] or uint8."""

    of: Callable[[Tensor, float, torch.Generator], Tensor]
    small: tuple[float, ...]
    large: tuple[float, ...]


def corrupt(images: Tensor, name: str, strength: int, seed: int = 0) -> Tensor:
    """uint8 images [B, C, H, W], C 1 or 3, corrupted at `strength` 1 to 5; uint8. The same for the same images and seed."""
    corruption = CORRUPTIONS[name]
    value = (corruption.small if min(images.shape[2:]) < SMALL else corruption.large)[strength - 1]
    draws = torch.Generator().manual_seed(seed)
    done = [corruption.of(chunk, value, draws) for chunk in images.split(1024)]
    return torch.cat([x if x.dtype == torch.uint8 else (x.clamp(0, 1) * 255).to(torch.uint8) for x in done])


def _gaussian_noise(x: Tensor, std: float, draws: torch.Generator) -> Tensor:
    return x / 255 + std * torch.randn(x.shape, generator=draws)


def _shot_noise(x: Tensor, photons: float, draws: torch.Generator) -> Tensor:
    return torch.poisson(x / 255 * photons, generator=draws) / photons


def _gaussian_blur(x: Tensor, sigma: float, draws: torch.Generator) -> Tensor:
    radius = min(round(4 * sigma), min(x.shape[2:]) - 1)  # scipy's reach; torchvision reflects at the border, so no further than the image
    return gaussian_blur(x / 255, [2 * radius + 1] * 2, [sigma] * 2)


def _brightness(x: Tensor, added: float, draws: torch.Generator) -> Tensor:
    """HSV's value grows, hue and saturation stay."""
    x = x / 255
    value = x.amax(1, keepdim=True)
    return torch.where(value > 0, x / value.clamp(min=1e-6) * (value + added).clamp(max=1), added)


def _contrast(x: Tensor, kept: float, draws: torch.Generator) -> Tensor:
    x = x / 255
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * kept + mean


def _pixelate(x: Tensor, kept: float, draws: torch.Generator) -> Tensor:
    def coarse(image: Image.Image) -> Image.Image:
        small = image.resize((max(1, int(image.width * kept)), max(1, int(image.height * kept))), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BOX)

    return _each(x, coarse)


def _jpeg(x: Tensor, quality: float, draws: torch.Generator) -> Tensor:
    def coded(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _each(x, coded)


def _each(x: Tensor, f: Callable[[Image.Image], Image.Image]) -> Tensor:
    arrays = x.permute(0, 2, 3, 1).numpy() if x.shape[1] == 3 else x[:, 0].numpy()
    done = torch.from_numpy(np.stack([np.asarray(f(Image.fromarray(array))) for array in arrays]))
    return done.permute(0, 3, 1, 2) if done.ndim == 4 else done[:, None]


CORRUPTIONS = {
    "gaussian-noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot-noise": Corruption(_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "gaussian-blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": Corruption(_jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
