"""uint8 images to the views of a step: everything batched, on the device, with a draw per image."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from selfdistill.views import color
from selfdistill.views.batch import Views
from selfdistill.views.crop import DRAWS as CROP
from selfdistill.views.crop import central_square, crop_and_resize, crop_boxes, rectangles
from selfdistill.views.draw import uniform
from selfdistill.views.fused import Drawn, fused
from selfdistill.views.masks import block_masks
from selfdistill.views.spec import Augment, Crops

# Where each operation finds its uniform numbers.
FLIP, JITTER, GREY, BLUR, SIGMA, SOLARIZE = range(CROP, CROP + 6)
STRENGTH, ORDER, ERASE = (slice(CROP + 6 + n, CROP + 6 + n + k) for n, k in ((0, 4), (4, 4), (8, 5)))
DRAWS = ERASE.stop
FUSED = True
"""whether a CPU takes the compiled kernel; False: the PyTorch of this file, its definition"""
_, CONTRAST, SATURATION, HUE = range(4)


def draws(seed: int, epoch: int | Tensor, index: Tensor, view: int | Tensor) -> Tensor:
    """[B, DRAWS]: all that is random in one view of the images `index`; [N, B, DRAWS] of views [N, 1]."""
    return uniform(seed, epoch, index, view, DRAWS)


def views_of_pixels(images: Tensor, ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int | Tensor) -> Views:
    """uint8 images [B, C, H, W] of one size to `globals` global views each, and the local ones, on their device. ids [B], and epoch where
    it is [B], are on the CPU or there."""
    return _views([images[:, None]] * len(spec.of_each_size(globals)), True, ids, spec, globals, seed, epoch)


def views_of_crops(crops: Sequence[Tensor], ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int | Tensor) -> Views:
    """uint8 crops that a worker has cut, [B, V, C, S, S] for each size: the rest of the augmentation. ids and epoch as above."""
    return _views(crops, False, ids, spec, globals, seed, epoch)


def _views(images: Sequence[Tensor], whole: bool, ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int | Tensor) -> Views:
    """images: for each size [B, V, C, H, W], whole or cut already; V is 1 where all views are of one image."""
    ids, epoch, hidden = _sent(images[0].device, ids, epoch, masks(ids, spec, globals, seed, epoch))
    sizes = []
    for of, views in zip(images, spec.of_each_size(globals), strict=True):
        first, size, _ = views[0]
        done = torch.empty(len(views), len(ids), of.shape[2], size, size, device=of.device)  # [V, B, C, S, S]
        for how, group in groupby(views, key=lambda view: view[2]):
            alike = [v for v, _, _ in group]
            u = draws(seed, epoch, ids, color.constant(tuple(alike), ids)[:, None])
            _augment(of, alike[0] - first, whole, u, how, spec, done[alike[0] - first :][: len(alike)])
        sizes.append(done)
    return Views(tuple(sizes), ids, hidden)


def masks(ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int | Tensor) -> Tensor | None:
    """[G, B, h, w] for the global views, on the CPU, where the recipe masks."""
    if spec.masks is None:
        return None
    ids, epoch = ids.cpu(), epoch.cpu() if isinstance(epoch, Tensor) else epoch
    return torch.stack([block_masks(spec.masks, spec.size, ids, v, seed, epoch) for v in range(globals)])


def _sent(device: torch.device, *values: Any) -> Iterator[Any]:
    return (value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for value in values)


def _augment(images: Tensor, first: int, whole: bool, u: Tensor, how: Augment, spec: Crops, out: Tensor) -> None:
    """The views from `first` on that are made in one way, of [B, V, C, H, W] by draws [N, B, DRAWS], into `out` [N, B, C, S, S]: on a GPU
    all at once, in a third of the calls for DINO's ten."""
    (N, B), V, (H, W), size = u.shape[:2], images.shape[1], images.shape[3:], out.shape[-1]
    if FUSED and out.device.type == "cpu":
        for n in range(N):
            boxes = crop_boxes(u[n, :, :CROP], H, W, how) if whole else torch.tensor([0, 0, size, size]).expand(B, 4)
            fused(images, (first + n) % V, _drawn(boxes, u[n], how, images.shape[2], size), spec.mean, spec.std, out[n])
        return
    x = (images.expand(-1, N, -1, -1, -1) if V == 1 else images[:, first : first + N]).transpose(0, 1).flatten(0, 1)  # [N B, C, H, W]
    u, out = u.flatten(0, 1), out.flatten(0, 1)
    flip = u[:, FLIP] < how.flip
    if whole:
        x = crop_and_resize(x, crop_boxes(u[:, :CROP], H, W, how), size, flip)
    else:
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    finish(x, u, how, spec, out)


def _drawn(boxes: Tensor, u: Tensor, how: Augment, channels: int, size: int) -> Drawn:
    return Drawn(
        boxes,
        u[:, FLIP] < how.flip,
        *_jitters(u, how, channels),
        u[:, GREY] < how.grey,
        torch.where(u[:, BLUR] < how.blur, _sigma(u, how), 0.0),
        u[:, SOLARIZE] < how.solarize,
        _erased(u[:, ERASE], how.erase, size, size),
    )


def finish(crops: Tensor, u: Tensor, how: Augment, spec: Crops, out: Tensor) -> None:
    """Crops [B, C, S, S], uint8 or float in [0, 1], into `out`: jitter, grey, blur, solarise, normalise, erase."""
    x = crops.contiguous() if crops.is_floating_point() else crops.float() / 255
    x = _jitter(x, u, how)
    if how.grey and x.shape[1] == 3:
        x = _some(x, u[:, GREY] < how.grey, lambda x: color.grey(x).expand(-1, 3, -1, -1))
    if how.blur:
        x = _some(x, u[:, BLUR] < how.blur, color.blur, _sigma(u, how))
    if how.solarize:
        x = _some(x, u[:, SOLARIZE] < how.solarize, color.solarize)
    out.copy_(_erase(normalize(x, spec), u[:, ERASE], how.erase))


def _sigma(u: Tensor, how: Augment) -> Tensor:
    low, high = how.sigma
    return low + (high - low) * u[:, SIGMA]


def normalize(x: Tensor, spec: Crops) -> Tensor:
    """Float images [B, C, H, W] in [0, 1] to what the encoder sees."""
    mean, std = (color.constant(of, x)[:, None, None] for of in (spec.mean, spec.std))
    return torch.addcmul(-mean / std, x, 1 / std)


def _some(x: Tensor, chosen: Tensor, f: Callable[..., Tensor], *per_image: Tensor) -> Tensor:
    """f on the chosen images [B] only."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        x[rows] = f(x[rows], *(p[rows] for p in per_image))
    return x


def _jitters(u: Tensor, how: Augment, channels: int) -> tuple[Tensor, Tensor]:
    """(which operation comes first, second, ... [B, n], the factor of each operation [B, n], 1 or no turn where there is no jitter);
    on grey images saturation and hue change nothing, and n is 2."""
    n = 4 if channels == 3 else 2
    strength = color.constant((how.brightness, how.contrast, how.saturation, how.hue), u)[:n]
    centre = color.constant((1.0, 1.0, 1.0, 0.0), u)[:n]
    low = torch.where(centre > 0, (centre - strength).clamp(min=0), -strength)
    factors = low + (centre + strength - low) * u[:, STRENGTH][:, :n]
    return u[:, ORDER][:, :n].argsort(1), torch.where((u[:, JITTER] < how.jitter)[:, None], factors, centre)


def _jitter(x: Tensor, u: Tensor, how: Augment) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of their own for each image. The first three are one blend with another
    image, black, the mean or the grey one, so each turn is one pass for all of them."""
    if not how.jitter or not any((how.brightness, how.contrast, how.saturation, how.hue)):
        return x
    order, factors = _jitters(u, how, x.shape[1])
    for op in order.unbind(1):  # [B]
        factor = torch.where(op < HUE, factors.gather(1, op[:, None])[:, 0], 1.0)
        x = color.blend(x, factor, (op == CONTRAST).to(x.dtype), (op == SATURATION).to(x.dtype))
        if how.hue and x.shape[1] == 3:
            x = _some(x, (op == HUE) & (factors[:, HUE] != 0), color.hue, factors[:, HUE])
    return x


def _erase(x: Tensor, u: Tensor, probability: float) -> Tensor:
    """Random erasing (Zhong et al. 2017), filled with the mean, which is 0 by now."""
    if not probability:
        return x
    H, W = x.shape[-2:]
    top, left, h, w = _erased(u, probability, H, W).unbind(1)
    return x.masked_fill_(rectangles(top, left, h, w, H, W)[:, None], 0.0)


def _erased(u: Tensor, probability: float, H: int, W: int) -> Tensor:
    """[B, 4] int64 (top, left, height, width): area 2 to 33 %, ratio 0.3 to 1/0.3; height 0 where nothing is erased."""
    area = (0.02 + 0.31 * u[:, 1]) * H * W
    ratio = 0.3 ** (1 - 2 * u[:, 2])
    h, w = (area * ratio).sqrt().round().clamp(1, H), (area / ratio).sqrt().round().clamp(1, W)
    top, left = (u[:, 3] * (H - h + 1)).floor(), (u[:, 4] * (W - w + 1)).floor()
    return torch.stack([top, left, h * (u[:, 0] < probability), w], 1).long()


def plain(images: Tensor, spec: Crops) -> Tensor:
    """uint8 images [B, C, H, W] without augmentation, [B, C, S, S]: as they are, or resized with their ratio kept, and the centre."""
    H, W = images.shape[-2:]
    if H == W == spec.size:
        return normalize(images.float() / 255, spec)
    boxes = torch.tensor(central_square(H, W), device=images.device).expand(len(images), 4)
    return normalize(crop_and_resize(images, boxes, spec.size), spec)
