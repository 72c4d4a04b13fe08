"""uint8 images to the views of a step: everything batched, on the device, with a draw per image."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from selfdistill.views import color
from selfdistill.views.batch import Views
from selfdistill.views.crop import DRAWS as CROP
from selfdistill.views.crop import crop_and_resize, crop_boxes, rectangles
from selfdistill.views.draw import uniform
from selfdistill.views.masks import block_masks
from selfdistill.views.spec import Augment, Crops

# Where each operation finds its uniform numbers.
FLIP, JITTER, GREY, BLUR, SIGMA, SOLARIZE = range(CROP, CROP + 6)
STRENGTH, ORDER, ERASE = (slice(CROP + 6 + n, CROP + 6 + n + k) for n, k in ((0, 4), (4, 4), (8, 5)))
DRAWS = ERASE.stop
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def draws(seed: int, epoch: int, index: Tensor, view: int) -> Tensor:
    """[B, DRAWS]: all that is random in one view of the images `index`."""
    return uniform(seed, epoch, index, view, DRAWS)


def views_of_pixels(images: Tensor, ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int) -> Views:
    """uint8 images [B, C, H, W] of one size to `globals` global views each, and the local ones."""
    sizes = []
    for views in spec.of_each_size(globals):
        crops = []
        for v, size, how in views:
            u = draws(seed, epoch, ids, v)
            boxes = crop_boxes(u[:, :CROP], images.shape[2], images.shape[3], how)
            crops.append(finish(crop_and_resize(images, boxes, size), u, how, spec))
        sizes.append(torch.stack(crops))  # [V, B, C, S, S]
    return Views(tuple(sizes), ids, masks(ids, spec, globals, seed, epoch))


def views_of_crops(crops: Sequence[Tensor], ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int) -> Views:
    """uint8 crops that a worker has cut, [B, V, C, S, S] for each size: the rest of the augmentation."""
    sizes = []
    for cut, views in zip(crops, spec.of_each_size(globals), strict=True):
        done = [finish(cut[:, n].float() / 255, draws(seed, epoch, ids, v), how, spec) for n, (v, _, how) in enumerate(views)]
        sizes.append(torch.stack(done))  # [V, B, C, S, S]
    return Views(tuple(sizes), ids, masks(ids, spec, globals, seed, epoch))


def masks(ids: Tensor, spec: Crops, globals: int, seed: int, epoch: int) -> Tensor | None:
    """[G, B, h, w] for the global views, where the recipe masks."""
    if spec.masks is None:
        return None
    return torch.stack([block_masks(spec.masks, spec.size, ids, v, seed, epoch) for v in range(globals)])


def finish(x: Tensor, u: Tensor, how: Augment, spec: Crops) -> Tensor:
    """Float crops [B, C, S, S] in [0, 1]: flip, jitter, grey, blur, solarise, normalise, erase."""
    x = torch.where((u[:, FLIP] < how.flip)[:, None, None, None], x.flip(-1), x)
    x = _jitter(x, u, how)
    low, high = how.sigma
    if x.shape[1] == 3:
        x = _some(x, u[:, GREY] < how.grey, lambda x: color.grey(x).expand(-1, 3, -1, -1))
    x = _some(x, u[:, BLUR] < how.blur, color.blur, low + (high - low) * u[:, SIGMA])
    x = _some(x, u[:, SOLARIZE] < how.solarize, color.solarize)
    return _erase(normalize(x, spec), u[:, ERASE], how.erase)


def normalize(x: Tensor, spec: Crops) -> Tensor:
    """Float images [B, C, H, W] in [0, 1] to what the encoder sees."""
    return (x - x.new_tensor(spec.mean)[:, None, None]) / x.new_tensor(spec.std)[:, None, None]


def _some(x: Tensor, chosen: Tensor, f: Callable[..., Tensor], *per_image: Tensor) -> Tensor:
    """f on the chosen images [B] only."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        x[rows] = f(x[rows], *(p[rows] for p in per_image))
    return x


def _jitter(x: Tensor, u: Tensor, how: Augment) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of their own for each image. The first three are one blend with another
    image, black, the mean or the grey one, so each turn is one pass for all of them. On grey images saturation and hue change nothing."""
    strengths = [how.brightness, how.contrast, how.saturation, how.hue][: 4 if x.shape[1] == 3 else 2]
    if not how.jitter or not any(strengths):
        return x
    order = u[:, ORDER][:, : len(strengths)].argsort(1)  # [B, ops]: which operation comes first, second, ...
    chosen = u[:, JITTER] < how.jitter
    strength = u.new_tensor(strengths)
    centre = u.new_tensor([1.0, 1.0, 1.0, 0.0])[: len(strengths)]
    low = torch.where(centre > 0, (centre - strength).clamp(min=0), -strength)
    factors = low + (centre + strength - low) * u[:, STRENGTH][:, : len(strengths)]  # [B, ops]
    for op in order.unbind(1):  # [B]
        factor = torch.where(chosen & (op < HUE), factors.gather(1, op[:, None])[:, 0], 1.0)
        x = color.blend(x, factor, (op == CONTRAST).to(x.dtype), (op == SATURATION).to(x.dtype))
        if how.hue:
            x = _some(x, chosen & (op == HUE), color.hue, factors[:, -1])
    return x


def _erase(x: Tensor, u: Tensor, probability: float) -> Tensor:
    """Random erasing (Zhong et al. 2017): area 2 to 33 %, ratio 0.3 to 1/0.3, filled with the mean, which is 0 by now."""
    if not probability:
        return x
    H, W = x.shape[-2:]
    area = (0.02 + 0.31 * u[:, 1]) * H * W
    ratio = 0.3 ** (1 - 2 * u[:, 2])
    h, w = (area * ratio).sqrt().round().clamp(1, H), (area / ratio).sqrt().round().clamp(1, W)
    top, left = (u[:, 3] * (H - h + 1)).floor(), (u[:, 4] * (W - w + 1)).floor()
    inside = rectangles(top, left, h, w, H, W) & (u[:, 0] < probability)[:, None, None]
    return x.masked_fill_(inside[:, None], 0.0)


def plain(images: Tensor, spec: Crops) -> Tensor:
    """uint8 images [B, C, H, W] without augmentation, [B, C, S, S]: as they are, or resized with their ratio kept, and the centre."""
    H, W = images.shape[-2:]
    side = min(H, W)
    box = torch.tensor([(H - side) // 2, (W - side) // 2, side, side]).expand(len(images), 4)
    if H == W == spec.size:
        return normalize(images.float() / 255, spec)
    return normalize(crop_and_resize(images, box.to(images.device), spec.size), spec)
