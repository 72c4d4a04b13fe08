"""Cross-entropy with soft targets over many outputs, without a tensor that is kept: what backward needs, it computes again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 22
"""logits that are looked at together: 16 MB in fp32, whatever the number of images and outputs"""


def soft_cross_entropy(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """[n]: -(q * log_softmax(p / temperature)).sum(-1) of logits p [n, K] and targets q [n, K], whose rows may sum to anything, as the
    sum of several teachers' does. In fp32 or better, also for p in bf16."""
    return _SoftCrossEntropy.apply(p, q, temperature)


class _SoftCrossEntropy(torch.autograd.Function):
    """loss = m lse(p / tau) - (q . p) / tau with m the row sum of q; d loss / d p = (m softmax(p / tau) - q) / tau."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, temperature: float) -> Tensor:
        dtype = torch.promote_types(p.dtype, torch.float32)
        rows = max(1, CHUNK // p.shape[1])
        lse, dot = zip(
            *(((x := part.to(dtype) / temperature).logsumexp(-1), (x * of).sum(-1)) for part, of in _chunks(rows, p, q)), strict=True
        )
        total, mass = torch.cat(lse), q.sum(-1, dtype=dtype)
        ctx.save_for_backward(p, q, total, mass)
        ctx.temperature, ctx.rows = temperature, rows
        return mass * total - torch.cat(dot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        p, q, lse, mass = ctx.saved_tensors
        of_p, of_q = (torch.empty_like(x) if needed else None for x, needed in zip((p, q), ctx.needs_input_grad, strict=False))
        for n, (part, of, total, m, g) in enumerate(_chunks(ctx.rows, p, q, lse[:, None], mass[:, None], grad[:, None])):
            log = part.to(lse.dtype).div(ctx.temperature).sub_(total)  # log softmax
            place = slice(n * ctx.rows, n * ctx.rows + len(part))
            if of_q is not None:  # a target that is not detached
                of_q[place] = -log * g
            if of_p is not None:
                of_p[place] = log.exp_().mul_(m).sub_(of).mul_(g / ctx.temperature)
        return of_p, of_q, None


def _chunks(rows: int, *tensors: Tensor) -> Any:
    return zip(*(x.split(rows) for x in tensors), strict=True)
