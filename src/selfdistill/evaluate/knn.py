"""Weighted k-nearest-neighbour classification (Wu et al. 2018, InstDisc), with DINO's settings as defaults."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.errors import Misuse

CHUNK = 1 << 24
"""similarities held at a time: 64 MB in fp32, whatever the size of bank and queries"""


def knn_predict(bank: Tensor, labels: Tensor, queries: Tensor, k: int = 20, temperature: float = 0.07) -> Tensor:
    """[Q] int64, the predicted labels of `queries` [Q, F] from a labelled `bank` [N, F], labels [N].

    Features are l2-normalised here; each of the k most similar votes exp(cos / temperature). Exact: every query meets the
    whole bank. Raises `Misuse` when k is out of 1..N.
    """
    if not 1 <= k <= len(bank):
        raise Misuse(f"k={k}: the bank has {len(bank)} images, so k must lie in 1..{len(bank)}")
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    classes = int(labels.max()) + 1
    predicted = []
    for q in queries.split(max(1, CHUNK // len(bank))):
        similarity, neighbour = (q @ bank.T).topk(k, dim=1)  # [q, k]
        votes = q.new_zeros(len(q), classes)
        # exp((cos - 1) / T): the same order as exp(cos / T), which overflows fp32 below T = 0.0113
        votes.scatter_add_(1, labels[neighbour], ((similarity - 1) / temperature).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def knn_accuracy(bank: Tensor, labels: Tensor, queries: Tensor, targets: Tensor, k: int = 20, temperature: float = 0.07) -> float:
    """Share of `queries` whose predicted label is the target, in [0, 1]."""
    return float((knn_predict(bank, labels, queries, k, temperature) == targets).float().mean())
