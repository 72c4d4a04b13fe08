"""Block-wise random masks over the patches of a view (BEiT Alg. 1, as iBOT's code draws them), a whole batch at once."""

import math

import torch
from torch import Tensor

from selfdistill.views.crop import rectangles
from selfdistill.views.draw import uniform
from selfdistill.views.spec import BlockMasks

PROPOSALS = 48
"""blocks proposed at most; a mask of 0.5 of 14 x 14 takes some 8"""
TRIES = 10
"""proposals in a row that may fail before a mask is left as it is"""


def block_masks(spec: BlockMasks, size: int, ids: Tensor, view: int, seed: int, epoch: int | Tensor) -> Tensor:
    """[B, n, n] bool, n = size / patch, true where a patch is hidden: none with probability 1 - `spec.probability`, else a share drawn
    from `spec.ratio`, filled by blocks of random area and shape."""
    n = size // spec.patch
    # The view's number is shifted, so that masks share no draw with crops.
    u = uniform(seed, epoch, ids, view + 1000, 2 + 4 * PROPOSALS)
    low, high = spec.ratio
    goal = ((low + (high - low) * u[:, 0]) * n * n).floor() * (u[:, 1] < spec.probability)  # [B] patches to hide
    mask = torch.zeros(len(ids), n, n, dtype=torch.bool, device=ids.device)
    failed = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    least, narrow = float((n // 3) ** 2), math.log(spec.aspect)
    for area, shape, top, left in u[:, 2:].unflatten(1, (PROPOSALS, 4)).permute(1, 2, 0):
        room = goal - mask.sum((1, 2))
        if mask.device.type == "cpu" and not ((room > 0) & (failed < TRIES)).any():
            break  # on a GPU to ask would cost more than to go on
        area = least + (room - least) * area
        shape = torch.exp(narrow * (2 * shape - 1))
        h, w = (area.clamp(min=0) * shape).sqrt().round(), (area.clamp(min=0) / shape).sqrt().round()
        top, left = (top * (n - h + 1)).floor(), (left * (n - w + 1)).floor()
        block = rectangles(top, left, h, w, n, n)
        new = (block & ~mask).sum((1, 2))
        fits = (h < n) & (w < n) & (new > 0) & (new <= room) & (failed < TRIES)
        mask |= block & fits[:, None, None]
        failed = torch.where(fits, 0, failed + 1)
    return mask
