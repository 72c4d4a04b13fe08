"""uint8 images to the views of a step: drawn on the host, a draw per image and view, and made on the device, batched."""

from collections.abc import Callable, Sequence
from itertools import groupby

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


def draws(seed: int, epoch: int | Tensor, index: Tensor, view: int) -> Tensor:
    """[B, DRAWS]: all that is random in one view of the images `index`."""
    return uniform(seed, epoch, index, view, DRAWS)


def views_of_pixels(images: Tensor, ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int | Tensor) -> Views:
    """uint8 images [B, C, H, W] of one size to `globals` global views each, and the local ones, on their device. ids [B], and epoch where
    it is [B], are on the CPU, where all is drawn: which rows an operation changes is known there, and a GPU need not be asked."""
    return _views([images[:, None]] * len(spec.of_each_size(globals)), True, ids, spec, globals, seed, epoch)


def views_of_crops(crops: Sequence[Tensor], ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int | Tensor) -> Views:
    """uint8 crops that a worker has cut, [B, V, C, S, S] for each size: the rest of the augmentation. ids and epoch as above."""
    return _views(crops, False, ids, spec, globals, seed, epoch)


def masks(ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int | Tensor) -> Tensor | None:
    """[G, B, h, w] for the global views, where the recipe masks."""
    if spec.masks is None:
        return None
    return torch.stack([block_masks(spec.masks, spec.size, ids, v, seed, epoch) for v in range(globals)])


def _views(images: Sequence[Tensor], whole: bool, ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int | Tensor) -> Views:
    """images: for each size [B, V, C, H, W], whole or cut already; V is 1 where all views are of one image."""
    sizes = []
    for of, views in zip(images, spec.of_each_size(globals), strict=True):
        size, n = views[0][1], 0
        done = torch.empty(len(views), len(ids), of.shape[2], size, size, device=of.device)  # [V, B, C, S, S]
        for how, group in groupby(views, key=lambda view: view[2]):
            drawn = [_drawn(draws(seed, epoch, ids, v), how, of, size, whole) for v, _, _ in group]
            _augment(of, whole, n, drawn, spec, done[n : n + len(drawn)])
            n += len(drawn)
        sizes.append(done)
    hidden = masks(ids, spec, globals, seed, epoch)
    return Views(tuple(sizes), _sent(ids, sizes[0]), None if hidden is None else _sent(hidden, sizes[0]))


def _drawn(u: Tensor, how: Augment, images: Tensor, size: int, whole: bool) -> Drawn:
    C, H, W = images.shape[2:]
    low, high = how.sigma
    return Drawn(
        crop_boxes(u[:, :CROP], H, W, how) if whole else torch.tensor([0, 0, size, size]).expand(len(u), 4),
        u[:, FLIP] < how.flip,
        *_jitters(u, how, C),
        u[:, GREY] < how.grey,
        torch.where(u[:, BLUR] < how.blur, low + (high - low) * u[:, SIGMA], 0.0),
        u[:, SOLARIZE] < how.solarize,
        _erased(u[:, ERASE], how.erase, size, size),
    )


def _jitters(u: Tensor, how: Augment, channels: int) -> tuple[Tensor, Tensor]:
    """(which operation comes first, second, ... [B, n], the factor of each operation [B, n], 1 or no turn where there is no jitter);
    on grey images saturation and hue change nothing, and n is 2."""
    n = 4 if channels == 3 else 2
    strength = u.new_tensor([how.brightness, how.contrast, how.saturation, how.hue])[:n]
    centre = u.new_tensor([1.0, 1.0, 1.0, 0.0])[:n]
    low = torch.where(centre > 0, (centre - strength).clamp(min=0), -strength)
    factors = low + (centre + strength - low) * u[:, STRENGTH][:, :n]
    return u[:, ORDER][:, :n].argsort(1), torch.where((u[:, JITTER] < how.jitter)[:, None], factors, centre)


def _erased(u: Tensor, probability: float, H: int, W: int) -> Tensor:
    """[B, 4] int64 (top, left, height, width): area 2 to 33 %, ratio 0.3 to 1/0.3; height 0 where nothing is erased."""
    area = (0.02 + 0.31 * u[:, 1]) * H * W
    ratio = 0.3 ** (1 - 2 * u[:, 2])
    h, w = (area * ratio).sqrt().round().clamp(1, H), (area / ratio).sqrt().round().clamp(1, W)
    top, left = (u[:, 3] * (H - h + 1)).floor(), (u[:, 4] * (W - w + 1)).floor()
    return torch.stack([top, left, h * (u[:, 0] < probability), w], 1).long()


def _augment(images: Tensor, whole: bool, first: int, drawn: list[Drawn], spec: Crops, out: Tensor) -> None:
    """The views from `first` on that are made in one way, of [B, V, C, H, W] into `out` [N, B, C, S, S], by N draws. On a GPU all at once,
    in a fifth of the calls for DINO's ten."""
    (N, B), V = out.shape[:2], images.shape[1]
    if FUSED and out.device.type == "cpu":
        for n in range(N):
            fused(images, (first + n) % V, drawn[n], spec.mean, spec.std, out[n])
        return
    x = (images.expand(-1, N, -1, -1, -1) if V == 1 else images[:, first : first + N]).transpose(0, 1).flatten(0, 1)  # [N B, C, H, W]
    every = Drawn(*map(torch.cat, zip(*drawn, strict=True)))
    flip = _sent(every.flip, x)
    if whole:
        x = crop_and_resize(x, _sent(every.box, x), out.shape[-1], flip)
    else:
        x = torch.where(flip[:, None, None, None], x.flip(-1), x).float() / 255
    out.copy_(_finished(x, every, spec).unflatten(0, (N, B)))


def _finished(x: Tensor, drawn: Drawn, spec: Crops) -> Tensor:
    """Crops [B, C, S, S] in [0, 1] after jitter, grey, blur, solarisation, normalisation and erasing, each where it was drawn."""
    x = _jittered(x.contiguous(), drawn.order, drawn.factor)
    if x.shape[1] == 3:
        x = _some(x, drawn.grey, lambda x: color.grey(x).expand(-1, 3, -1, -1))
    x = _some(x, drawn.sigma > 0, color.blur, drawn.sigma)
    x = normalize(_some(x, drawn.solarize, color.solarize), spec)
    if not drawn.erased[:, 2].any():
        return x
    top, left, h, w = _sent(drawn.erased, x).unbind(1)
    return x.masked_fill_(rectangles(top, left, h, w, *x.shape[2:])[:, None], 0.0)  # Zhong et al. 2017, with the mean, which is 0 by now


def _jittered(x: Tensor, order: Tensor, factor: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of their own for each image. The first three are one blend with another
    image, black, the mean or the grey one, so each turn is one pass for all of them."""
    turns = order.T  # [n, B]
    strength = torch.where(turns < HUE, factor.T.gather(0, turns), 1.0)
    blends = _sent(torch.stack([strength, turns == CONTRAST, turns == SATURATION], 1), x)  # [n, 3, B]
    for turn, changes, blend in zip(turns, (strength != 1).any(1).tolist(), blends, strict=True):
        if changes:
            x = color.blend(x, *blend)
        if x.shape[1] == 3:
            x = _some(x, (turn == HUE) & (factor[:, HUE] != 0), color.hue, factor[:, HUE])
    return x


def _some(x: Tensor, chosen: Tensor, f: Callable[..., Tensor], *per_image: Tensor) -> Tensor:
    """f on the chosen images [B] only."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        there = _sent(rows, x)
        x[there] = f(x[there], *(_sent(p[rows], x) for p in per_image))
    return x


def _sent(drawn: Tensor, x: Tensor) -> Tensor:
    """From the host to where x is, which need not be waited for."""
    return drawn.to(x.device, non_blocking=True)


def normalize(x: Tensor, spec: Crops) -> Tensor:
    """Float images [B, C, H, W] in [0, 1] to what the encoder sees."""
    mean, std = (color.constant(of, x)[:, None, None] for of in (spec.mean, spec.std))
    return torch.addcmul(-mean / std, x, 1 / std)


def plain(images: Tensor, spec: Crops) -> Tensor:
    """uint8 images [B, C, H, W] without augmentation, [B, C, S, S]: as they are, or resized with their ratio kept, and the centre."""
    H, W = images.shape[-2:]
    if H == W == spec.size:
        return normalize(images.float() / 255, spec)
    boxes = torch.tensor(central_square(H, W), device=images.device).expand(len(images), 4)
    return normalize(crop_and_resize(images, boxes, spec.size), spec)
