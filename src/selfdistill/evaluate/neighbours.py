"""The nearest of many features, and pairs of them that are nearly the same. Exact, by cosine, a chunk at a time."""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 21
"""cosines held at a time: 8 MB"""


def nearest(query: Tensor, batches: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """(cosines [k], places [k] int64), the largest first, of the features most like `query` [F] among `batches` of [b, F] counted
    through; fewer where there are fewer than k. Features that are NaN are like nothing."""
    query = F.normalize(query, dim=0)
    cosine, place, seen = query.new_zeros(0), torch.zeros(0, dtype=torch.int64), 0
    for h in batches:
        here = (F.normalize(h, dim=1) @ query).nan_to_num(-torch.inf)  # [b]
        cosine, place = torch.cat([cosine, here]), torch.cat([place, torch.arange(seen, seen + len(h))])
        cosine, kept = cosine.topk(min(k, len(cosine)))
        place, seen = place[kept], seen + len(h)
    return cosine[cosine.isfinite()], place[cosine.isfinite()]


def alike(features: Tensor, threshold: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(i [n], j [n], cosines [n]) of pairs i < j of `features` [N, F] whose cosine is at least `threshold`, chunk by chunk: every pair is
    looked at once, N^2 F / 2 products in all."""
    unit = F.normalize(features.float(), dim=1)
    start = 0
    while start < len(unit):
        rows = unit[start : start + max(1, CHUNK // (len(unit) - start))]
        cosine = rows @ unit[start:].T  # [r, N - start]
        i, j = ((cosine >= threshold) & torch.ones_like(cosine, dtype=torch.bool).triu(1)).nonzero(as_tuple=True)
        yield start + i, start + j, cosine[i, j]
        start += len(rows)


def mean_cosine(features: Tensor) -> float:
    """Of two different images, over all pairs of `features` [N, F]: (|sum of the unit vectors|^2 - N) / (N (N - 1))."""
    unit = F.normalize(features.double(), dim=1)
    n = len(unit)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))
