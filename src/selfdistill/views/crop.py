"""Random resized crop: torchvision's distribution, a whole batch at once.

A crop with an antialiased bilinear resize is linear in the pixels and separable: out = Wy @ image @ Wx^T with two small
matrices per image. Two batched products then do what is otherwise a loop over images.
"""

import math

import torch
from torch import Tensor

from selfdistill.views.spec import Augment

TRIES = 10
DRAWS = 2 * TRIES + 2
"""uniform numbers that a crop takes"""


def crop_boxes(u: Tensor, height: Tensor | int, width: Tensor | int, spec: Augment) -> Tensor:
    """[B, 4] int64 (top, left, height, width), by torchvision's RandomResizedCrop.get_params.

    u: [B, DRAWS] uniform numbers. height, width: of the images, in pixels, one for all or [B]. Ten tries for a box that lies
    inside; if none does, the central box of the nearest allowed ratio.
    """
    H, W = (torch.as_tensor(n, device=u.device).expand(len(u)) for n in (height, width))
    u = u.double()
    low, high = spec.ratio
    area = (H * W)[:, None] * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * u[:, :TRIES])  # [B, TRIES]
    ratio = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * u[:, TRIES : 2 * TRIES])
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (w > 0) & (h > 0) & (w <= W[:, None]) & (h <= H[:, None])
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]  # [B]
    top, left = ((n + 1) * u[:, i] for n, i in ((H - h, -2), (W - w, -1)))
    box = torch.stack([top.floor().long(), left.floor().long(), h, w], 1)

    w = torch.minimum(W, (H * high).round().long())
    h = torch.minimum(H, (W / low).round().long())
    centre = torch.stack([(H - h) // 2, (W - w) // 2, h, w], 1)
    return torch.where(fits.any(1, keepdim=True), box, centre)


def central_square(height: int, width: int) -> list[int]:
    """(top, left, height, width)."""
    side = min(height, width)
    return [(height - side) // 2, (width - side) // 2, side, side]


def resize_weights(start: Tensor, length: Tensor, n_in: int, n_out: int) -> Tensor:
    """[B, n_out, n_in]: row i weighs the pixels of [start, start + length) that make output pixel i; rows sum to 1.

    The triangle filter of Pillow and of torchvision's antialias=True: as wide as one output pixel, at least one input pixel.
    """
    scale = (length.float() / n_out)[:, None, None]
    start, end = start[:, None, None], (start + length)[:, None, None]
    i, j = torch.arange(n_out, device=start.device)[None, :, None], torch.arange(n_in, device=start.device)[None, None, :]
    inside = ((j >= start) & (j < end)).float()  # [B, 1, n_in]
    centre = start - 0.5 + (i + 0.5) * scale  # [B, n_out, 1]
    weight = (j - centre).abs_().div_(scale.clamp(min=1)).neg_().add_(1).clamp_(min=0).mul_(inside)  # [B, n_out, n_in]
    return weight.div_(weight.sum(-1, keepdim=True))


def crop_and_resize(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """uint8 images [B, C, H, W] and boxes [B, 4] to float crops [B, C, size, size] in [0, 1].

    flip: [B], which are mirrored, at no cost.
    """
    B, C, H, W = images.shape
    top, left, height, width = boxes.unbind(1)
    rows, columns = resize_weights(top, height, H, size), resize_weights(left, width, W, size)  # [B, S, H], [B, S, W]
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    x = images.transpose(1, 2).reshape(B, H, C * W).float()  # one product for all channels
    x = (rows / 255) @ x  # [B, S, C W]
    return (x.view(B, size * C, W) @ columns.mT).view(B, size, C, size).transpose(1, 2)  # [B, C, S, S]


def rectangles(top: Tensor, left: Tensor, height: Tensor, width: Tensor, rows: int, columns: int) -> Tensor:
    """[B, rows, columns] bool: what lies inside the rectangle of each image."""

    def between(start: Tensor, length: Tensor, n: int) -> Tensor:
        place = torch.arange(n, device=start.device)
        return (place >= start[:, None]) & (place < (start + length)[:, None])

    return between(top, height, rows)[:, :, None] & between(left, width, columns)[:, None, :]
