"""Colour operations on float images [B, C, H, W] in [0, 1], one strength per image: torchvision's definitions, batched."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """[n] of the dtype and on the device of `like`, sent there once: sent in each step it would wait for what is queued there."""
    return _sent(values, like.dtype, like.device)


@cache
def _sent(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def grey(x: Tensor) -> Tensor:
    """[B, 1, H, W] luma; an image of one channel is its own."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * constant(LUMA, x)[:, None, None]).sum(1, keepdim=True)


def blend(x: Tensor, factor: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """factor x + (1 - factor) other, clamped, all [B]: other is black (brightness), where `contrast` is 1 the mean of the grey image, and
    where `saturation` is 1 the grey image."""
    f, c, s = (w[:, None, None, None] for w in (factor, contrast, saturation))
    g = grey(x)  # [B, 1, H, W]
    other = torch.addcmul(c * g.mean((2, 3), keepdim=True), g, s)
    return (x * f).add_(other.mul_(1 - f)).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` of the circle, in [-0.5, 0.5], through HSV."""
    r, g, b = x.unbind(1)  # [B, H, W]
    value = x.amax(1)
    chroma = value - x.amin(1)
    inverse = chroma.clamp(min=1e-12).reciprocal_()  # of a grey pixel the sector is 0 or so, and chroma 0
    sector = torch.where(
        value == r, (g - b) * inverse, torch.where(value == g, (b - r).mul_(inverse).add_(2), (r - g).mul_(inverse).add_(4))
    )
    sector = sector.mul_(1 / 6).add_(shift[:, None, None])  # of the circle
    # HSV to RGB in closed form: channel n is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + sector) mod 6
    k = constant((5 / 6, 3 / 6, 1 / 6), x)[:, None, None] + sector[:, None]  # [B, 3, H, W]
    k = k.sub_(k.floor()).mul_(6)  # 4 times faster than remainder
    return torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma[:, None]).neg_().add_(value[:, None])


def solarize(x: Tensor) -> Tensor:
    return torch.where(x >= 128 / 255, 1 - x, x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with reflected borders, sigma [B] in pixels; the kernel spans a tenth of the image (SimCLR App. A), 23 of 224.
    Separable: two products with a matrix per image."""
    across = blur_matrix(sigma, x.shape[-1])[:, None]
    down = across if x.shape[-2] == x.shape[-1] else blur_matrix(sigma, x.shape[-2])[:, None]
    return down @ x @ across.mT


def blur_matrix(sigma: Tensor, n: int) -> Tensor:
    """[B, n, n]: the blur along an axis of n pixels as a matrix, borders reflected."""
    radius = max(1, n // 20)
    taps = torch.arange(-radius, radius + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weight = weight / weight.sum(1, keepdim=True)  # [B, k]
    where = F.pad(torch.arange(n, dtype=torch.float, device=sigma.device)[None], (radius, radius), mode="reflect")[0]
    source = where.long().unfold(0, len(taps), 1)  # [n, k]
    band = weight.new_zeros(len(weight), n, n)
    return band.scatter_add_(2, source.expand(len(weight), -1, -1), weight[:, None].expand(-1, n, -1))
