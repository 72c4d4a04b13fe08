"""The nearest of many features, and pairs of them that are nearly the same. Exact, by cosine, a chunk at a time."""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.evaluate.knn import nearest_among

CHUNK = 1 << 21
"""cosines held at a time: 8 MB"""
ROUNDING = 1e-6
"""of a cosine in fp32: two features that are the same come out at 0.9999999 or 1.0000001"""


def nearest_to(query: Tensor, batches: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """(cosines [k], places [k] int64), the largest first, of the features most like `query` [F] among `batches` of [b, F] counted
    through; fewer where there are fewer than k. Features that are NaN are like nothing."""

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        seen = 0
        for h in batches:
            rows = h.isfinite().all(1).nonzero()[:, 0]
            if len(rows):
                yield seen + rows, h[rows]
            seen += len(h)

    cosine, place = (of[0] for of in nearest_among(counted(), query[None], k))
    return cosine[cosine.isfinite()], place[cosine.isfinite()]


def alike(features: Tensor, threshold: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(i [n], j [n], cosines [n]) of pairs i < j of `features` [N, F] whose cosine is at least `threshold` but for ROUNDING, chunk by
    chunk: every pair is looked at once, N^2 F / 2 products in all."""
    unit = F.normalize(features.float(), dim=1)
    start = 0
    while start < len(unit):
        rows = unit[start : start + max(1, CHUNK // (len(unit) - start))]
        cosine = rows @ unit[start:].T  # [r, N - start]
        i, j = ((cosine >= threshold - ROUNDING) & torch.ones_like(cosine, dtype=torch.bool).triu(1)).nonzero(as_tuple=True)
        yield start + i, start + j, cosine[i, j].clamp(-1, 1)
        start += len(rows)


def mean_cosine(features: Tensor) -> float:
    """Of two different images, over all pairs of `features` [N, F]: (|sum of the unit vectors|^2 - N) / (N (N - 1))."""
    unit = F.normalize(features.double(), dim=1)
    n = len(unit)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))
