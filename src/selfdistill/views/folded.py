"""Brightness, contrast, saturation, hue and grey as one affine map of the colours of an image: `views.colour=folded`.

All but hue are affine, but for the clamp to [0, 1] after each; hue is turned in YIQ, where a turn is a rotation, instead of HSV. So
a whole chain in any order is a matrix and an offset per image, one pass over the pixels, clamped once.
How far it is off the exact chain, on photographs, at SimSiam's strengths: see docs/performance.md; tests/views/test_folded.py holds it.
"""

import math

import torch
from torch import Tensor

from selfdistill.views.color import LUMA

YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=torch.float64)
STAY, COS, SIN = (
    (YIQ.inverse() @ torch.tensor(part, dtype=torch.float64) @ YIQ).float()
    for part in ([[1, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 1], [0, -1, 0]])
)
"""a turn of the hue by an angle a, from red to yellow, is STAY + cos(a) COS + sin(a) SIN"""


def colour_map(mean: Tensor, ops: Tensor, factors: Tensor, greyed: Tensor) -> tuple[Tensor, Tensor]:
    """(matrix [B, C, C], offset [B, C, 1]) of a chain of operations on images whose mean colour is `mean` [B, C].

    ops: [B, n], which comes when: 0 brightness, 1 contrast, 2 saturation, 3 hue. factors: [B, n], by operation, the factor, or the turn
    as a share of the circle. greyed: [B], whether the image ends grey.
    """
    B, C = mean.shape
    luma = mean.new_tensor(LUMA if C == 3 else (1.0,))
    one, to_grey = torch.eye(C, device=mean.device), luma.expand(C, C)  # each channel becomes the luma
    stay, cos, sin = (part.to(mean.device) for part in (STAY, COS, SIN))
    A, b = one.expand(B, C, C), mean.new_zeros(B, C)
    for op in ops.unbind(1):  # [B]
        f = factors.gather(1, op[:, None])[:, :, None]  # [B, 1, 1]
        kind = op[:, None, None]
        M = torch.where(kind == 2, torch.lerp(to_grey, one, f), f * one)
        if C == 3:
            angle = 2 * math.pi * f
            M = torch.where(kind == 3, stay + angle.cos() * cos + angle.sin() * sin, M)
        level = ((A @ mean[:, :, None])[:, :, 0] + b) @ luma  # the mean luma so far, [B]
        A, b = M @ A, (M @ b[:, :, None])[:, :, 0] + torch.where(op == 1, (1 - f[:, 0, 0]) * level, 0)[:, None]
    end = torch.where(greyed[:, None, None], to_grey, one) if C == 3 else one.expand(B, C, C)
    return end @ A, end @ b[:, :, None]
