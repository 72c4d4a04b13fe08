"""The views of a CPU: per image all of augment.py's operations in a row, compiled (kernels.py), while the view stays in the cache.

The definition is the PyTorch of crop.py, color.py and augment.py, which draws all that is random and says what it means. The same to
rounding, 1e-5 of a normalised float (tests/views/test_fused.py).
Threads are Python's, started for each call: nothing is left that a fork could break, as OpenMP's threads are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfdistill.views import kernels


class Drawn(NamedTuple):
    """What has been drawn for one view of B images.

    box: int64 [B, 4], top, left, height and width of the crop. flip: bool [B]. order: int64 [B, n], which operation of the jitter comes
    first, second, ... factor: float32 [B, n], of each operation; 1, or no turn, where there is no jitter. grey: bool [B].
    sigma: float32 [B], of the blur in pixels, 0 for none. solarize: bool [B]. erased: int64 [B, 4], as box, height 0 for none.
    """

    box: Tensor
    flip: Tensor
    order: Tensor
    factor: Tensor
    grey: Tensor
    sigma: Tensor
    solarize: Tensor
    erased: Tensor


def fused(images: Tensor, v: int, drawn: Drawn, mean: tuple[float, ...], std: tuple[float, ...], out: Tensor) -> None:
    """Images [B, V, C, H, W], uint8, to `out` [B, C, S, S], float and normalised: of each image the one at `v` in the second dimension.

    By torch.get_num_threads() threads, whose number changes nothing.
    """
    centre, spread = (np.broadcast_to(of, images.shape[2]) for of in (mean, std))
    scale, shift = (1 / spread).astype(np.float32), (-centre / spread).astype(np.float32)
    parts = Drawn._make(part.contiguous().numpy() for part in drawn)
    arrays: Any = (images.contiguous().numpy(), v, parts, scale, shift, out.numpy())
    count = max(1, min(len(images), torch.get_num_threads()))
    cuts: Any = [len(images) * n // count for n in range(count + 1)]
    with ThreadPoolExecutor(max(1, count - 1)) as pool:  # a thread starts at its first task
        others = pool.map(lambda part: kernels.views(*arrays, *part), pairwise(cuts[1:]))
        kernels.views(*arrays, *cuts[:2])
        list(others)  # raises what they raised


def cut_crops(pixels: np.ndarray, boxes: np.ndarray, crops: Tensor) -> None:
    """The boxes [V, 4] of an RGB image [H, W, 3] into `crops` [V, 3, S, S], all uint8: torchvision's resized crop, antialiased bilinear,
    columns before rows."""
    kernels.cut(np.ascontiguousarray(pixels).reshape(len(pixels), -1), boxes, crops.numpy())
