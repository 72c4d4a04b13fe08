"""Cross-entropy with soft targets over many outputs, which keeps no further tensor of p's size: backward computes the softmax again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 17}
"""logits that are looked at together: 512 KB in fp32 stay in a core's cache over eight passes (1.75 times faster than 16 MB)"""
LARGEST = 1 << 24
"""of a GPU: 64 MB, whatever the number of images and outputs"""


def soft_cross_entropy(p: Tensor, q: Sequence[Tensor], temperature: float) -> Tensor:
    """[V, n]: -(q_v * log_softmax(p_v / temperature)).sum(-1) of logits p [V, n, K] and a target [n, K] for each of the V views, whose
    rows may sum to anything, as the sum of several teachers' does. Views may share a target. In fp32 or better, also for p in bf16."""
    return _SoftCrossEntropy.apply(p, temperature, *q)


class _SoftCrossEntropy(torch.autograd.Function):
    """loss = m lse(p / tau) - (q . p) / tau with m the row sum of q; d loss / d p = (m softmax(p / tau) - q) / tau. One gradient for all
    views: a slice for each would be as large, and added up."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, temperature: float, *q: Tensor) -> Tensor:
        dtype = torch.promote_types(p.dtype, torch.float32)
        total, dot = (p.new_empty(p.shape[:2], dtype=dtype) for _ in range(2))
        for v, rows in _chunks(p):
            x = p[v, rows].to(dtype) / temperature
            total[v, rows], dot[v, rows] = x.logsumexp(-1), x.mul_(q[v][rows]).sum(-1)
        mass = torch.stack([of.sum(-1, dtype=dtype) for of in q])
        ctx.save_for_backward(p, total, mass, *q)
        ctx.temperature = temperature
        return mass * total - dot

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, total, mass, *q = ctx.saved_tensors
        to_p, _, *to_q = ctx.needs_input_grad
        of_p = torch.empty_like(p) if to_p else None
        of_q = [torch.empty_like(of) if needed else None for of, needed in zip(q, to_q, strict=True)]
        for v, rows in _chunks(p):
            lse, m, g = (x[v, rows, None] for x in (total, mass, grad))
            log = p[v, rows].to(lse.dtype).div(ctx.temperature).sub_(lse)  # log softmax
            target = of_q[v]
            if target is not None:  # one that is not detached
                target[rows] = -log * g
            if of_p is not None:
                of_p[v, rows] = log.exp_().mul_(m).sub_(q[v][rows]).mul_(g / ctx.temperature)
        return of_p, None, *of_q


def _chunks(p: Tensor) -> Iterator[tuple[int, slice]]:
    """(view, rows)"""
    n = max(1, CHUNK.get(p.device.type, LARGEST) // p.shape[2])
    return ((v, slice(start, start + n)) for v in range(len(p)) for start in range(0, p.shape[1], n))
