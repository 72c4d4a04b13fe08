"""Retrieval: each image asks for the others of its class, by cosine similarity, itself left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.errors import Misuse

CHUNK = 1 << 23
"""similarities that are sorted at a time: 32 MB, and 64 MB of places"""


class Retrieval(NamedTuple):
    """mean_average_precision: over the queries, of precision at the rank of each relevant image. recall[k]: share of queries with a
    relevant image among the first k (the metric-learning convention: Song et al. 2016)."""

    mean_average_precision: float
    recall: dict[int, float]
    queries: int


def retrieval(features: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5, 10)) -> Retrieval:
    """features [N, F], labels [N]. An image that is alone in its class is no query but may be found. Ties go to the earlier image.

    Raises `Misuse` where no class has two images, or a k is below 1.
    """
    if min(ks) < 1:
        raise Misuse(f"retrieval: k={min(ks)}: count from 1")
    asking = (labels.bincount()[labels] > 1).nonzero()[:, 0]
    if not len(asking):
        raise Misuse("retrieval: no class has two images")
    z = F.normalize(features.float(), dim=1)
    rank = torch.arange(1, len(z), device=z.device)
    precision, first = [], []
    for rows in asking.split(max(1, CHUNK // len(z))):
        similarity = z[rows] @ z.T  # [q, N]
        similarity.scatter_(1, rows[:, None], -torch.inf)
        order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :-1]  # itself is last
        hit = labels[order] == labels[rows][:, None]  # [q, N - 1]
        found = hit.cumsum(1)
        precision.append((hit * found / rank).sum(1) / found[:, -1])
        first.append(hit.to(torch.uint8).argmax(1) + 1)  # [q]: the rank of the first relevant image
    first_hit = torch.cat(first)
    return Retrieval(float(torch.cat(precision).double().mean()), {k: float((first_hit <= k).double().mean()) for k in ks}, len(asking))
