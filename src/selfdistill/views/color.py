"""Colour operations on float images [B, C, H, W] in [0, 1], one strength per image: torchvision's definitions, batched."""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)


def grey(x: Tensor) -> Tensor:
    """[B, 1, H, W] luma; an image of one channel is its own."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def blend(x: Tensor, factor: Tensor, contrast: Tensor | float = 0.0, saturation: Tensor | float = 0.0) -> Tensor:
    """factor x + (1 - factor) other, clamped, factor [B]: other is black (brightness), or with `contrast` 1 the mean of the grey image,
    or with `saturation` 1 the grey image; [B] or one for all."""
    f, c, s = (torch.as_tensor(w, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1) for w in (factor, contrast, saturation))
    g = grey(x)  # [B, 1, H, W]
    other = torch.addcmul(c * g.mean((2, 3), keepdim=True), g, s)
    return (x * f).add_(other.mul_(1 - f)).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    return blend(x, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    return blend(x, factor, contrast=1.0)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    return blend(x, factor, saturation=1.0)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` of the circle, in [-0.5, 0.5], through HSV."""
    r, g, b = x.unbind(1)  # [B, H, W]
    value = x.amax(1)
    chroma = value - x.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)
    sector = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    sector = sector + 6 * shift[:, None, None]
    # HSV to RGB in closed form: channel n is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + sector) mod 6
    k = (x.new_tensor([5.0, 3.0, 1.0])[:, None, None] + sector[:, None]).remainder(6)  # [B, 3, H, W]
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def solarize(x: Tensor) -> Tensor:
    return torch.where(x >= 128 / 255, 1 - x, x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with reflected borders, sigma [B] in pixels; the kernel spans a tenth of the image (SimCLR App. A), 23 of 224.

    Separable, so again two products with a matrix per image.
    """
    radius = max(1, x.shape[-1] // 20)
    taps = torch.arange(-radius, radius + 1, device=x.device)
    weight = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weight = weight / weight.sum(1, keepdim=True)  # [B, k]
    across = _band(weight, taps, x.shape[-1])
    down = across if x.shape[-2] == x.shape[-1] else _band(weight, taps, x.shape[-2])
    return down @ x @ across.mT


def _band(weight: Tensor, taps: Tensor, n: int) -> Tensor:
    """[B, 1, n, n]: the 1-d convolution with weight [B, k] as a matrix, borders reflected."""
    where = F.pad(torch.arange(n, dtype=weight.dtype)[None], (-int(taps[0]), int(taps[-1])), mode="reflect")[0]
    source = where.long().to(weight.device).unfold(0, len(taps), 1)  # [n, k]
    band = weight.new_zeros(len(weight), n, n)
    band.scatter_add_(2, source.expand(len(weight), -1, -1), weight[:, None].expand(-1, n, -1))
    return band[:, None]
