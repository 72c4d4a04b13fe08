"""Block-wise random masks over the patches of a view: BEiT Alg. 1, as iBOT's code draws them."""

# mypy: disallow-untyped-defs=False, check-untyped-defs=False
from __future__ import annotations

import math

import torch
from torch import Tensor

from selfdistill.views.draw import uniform
from selfdistill.views.kernels import exactly
from selfdistill.views.spec import BlockMasks

PROPOSALS = 48
"""blocks proposed at most; a mask of 0.5 of 14 x 14 takes some 8"""
TRIES = 10
"""proposals in a row that may fail before a mask is left as it is"""


def block_masks(spec: BlockMasks, size: int, ids: Tensor, view: int, seed: int, epoch: int | Tensor) -> Tensor:
    """[B, n, n] bool, n = size / patch, true where a patch is hidden: none with probability 1 - `spec.probability`, else a share drawn
    from `spec.ratio`, filled by blocks of random area and shape. Of `ids` on a CPU: a GPU would make 2,600 calls of it."""
    n = size // spec.patch
    # The view's number is shifted, so that masks share no draw with crops.
    u = uniform(seed, epoch, ids, view + 1000, 2 + 4 * PROPOSALS)
    low, high = spec.ratio
    goal = ((low + (high - low) * u[:, 0]) * n * n).floor() * (u[:, 1] < spec.probability)  # [B] patches to hide
    masks = torch.zeros(len(ids), n, n, dtype=torch.bool)
    for mask, room, proposals in zip(masks.numpy(), goal.long().tolist(), u[:, 2:].unflatten(1, (PROPOSALS, 4)).numpy(), strict=True):
        _hide(mask, room, proposals, math.log(spec.aspect))
    return masks


@exactly
def _hide(mask, room, proposals, narrow):
    """Up to `room` patches of a mask [n, n]. proposals [PROPOSALS, 4] in [0, 1): a block's area, shape, top and left."""
    n, failed = len(mask), 0
    least = (n // 3) ** 2
    for area, shape, top, left in proposals:
        if room <= 0 or failed == TRIES:
            return
        failed += 1
        area = max(least + (room - least) * area, 0)
        shape = math.exp(narrow * (2 * shape - 1))
        h, w = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if h < n and w < n:
            y, x = int(top * (n - h + 1)), int(left * (n - w + 1))
            block = mask[y : y + h, x : x + w]
            new = h * w - block.sum()
            if 0 < new <= room:
                block[:] = True
                room, failed = room - new, 0
