"""Weighted k-nearest-neighbour classification (Wu et al. 2018, InstDisc), with DINO's settings as defaults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.errors import Misuse

BANK, QUERIES = 16_384, 128
"""similarities held at a time: 8 MB in fp32, whatever the size of bank and queries; 64 MB were 1.4 times slower on a CPU"""
BLOCK = 8
"""similarities of which only the largest is looked at first"""
KS, K = (10, 20, 100, 200), 20
"""DINO App. F.1, best at K"""
TEMPERATURE = 0.07
"""of the votes (Wu et al. 2018)"""


def usual_k(bank: int) -> int:
    """DINO's best, or all where the bank has fewer images."""
    return min(K, bank)


def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(cosine similarity [Q, k], place in the bank [Q, k]) of the k nearest of `bank` [N, F] to each of `queries` [Q, F], the
    nearest first.

    Exact: every query meets the whole bank, a chunk of each at a time. Beside bank, queries and answer it holds the queries again,
    l2-normalised, and some 100 MB at F = 384. Of neighbours exactly as similar as the k-th, any may be given.
    Raises `Misuse` when k is out of 1..N.
    """
    if not 1 <= k <= len(bank):
        raise Misuse(f"k={k}: the bank has {len(bank)} images, so k must lie in 1..{len(bank)}")
    chunks = -(-len(bank) // BANK)
    # A chunk is spread over the bank: banks come sorted by class, and then each would bring some query k new neighbours.
    return nearest_among(((torch.arange(c, len(bank), chunks, device=bank.device), bank[c::chunks]) for c in range(chunks)), queries, k)


def nearest_among(chunks: Iterable[tuple[Tensor, Tensor]], queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same of a bank that comes in chunks: (places [n], features [n, F]) each. Where it has fewer than k, the similarity of what is
    missing is -inf."""
    queries = F.normalize(queries.float(), dim=1)
    best = queries.new_full((len(queries), k), -torch.inf)
    place = torch.zeros_like(best, dtype=torch.long)
    for places, features in chunks:
        part = F.normalize(features.float(), dim=1).T  # [F, n]
        for i in range(0, len(queries), QUERIES):
            rows = slice(i, i + QUERIES)
            similarity, where = _candidates(queries[rows] @ part, best[rows, -1:], k)
            best[rows], kept = torch.cat([best[rows], similarity], 1).topk(k)
            where = where.clamp(max=len(places) - 1)  # a block may end in what is no column, at -inf
            place[rows] = torch.cat([place[rows], places[where]], 1).gather(1, kept)
    return best, place


def _candidates(similarity: Tensor, bound: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """At most k values and columns of each row of [q, n], among them the row's k largest that exceed its `bound` [q, 1].

    A column enters a row's k best only if it exceeds `bound`, the k-th best so far, and then its block's largest does too. After the first
    chunks few blocks do; of the others only the largest is looked at. A full topk at k = 200 would cost more than the product.
    """
    spare = -similarity.shape[1] % BLOCK
    if spare:
        similarity = F.pad(similarity, (0, spare), value=-torch.inf)
    blocks = similarity.unflatten(1, (BLOCK, -1))  # [q, BLOCK, m]: block b holds the columns b, b + m, b + 2 m, ...
    largest = blocks.amax(1)  # [q, m]
    m = largest.shape[1]
    n = min(k, int((largest > bound).sum(1).max()))
    block = largest.topk(n, sorted=False).indices  # [q, n]
    values, i = blocks.gather(2, block[:, None].expand(-1, BLOCK, -1)).flatten(1).topk(min(k, BLOCK * n), sorted=False)
    return values, i // max(n, 1) * m + block.gather(1, i % max(n, 1))


def vote(similarity: Tensor, labels: Tensor, classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """[Q, classes], the votes for each class: a neighbour at `similarity` [Q, k] with `labels` [Q, k] has exp(cos / temperature),
    up to a factor for each query. Raises `Misuse` unless temperature is above 0."""
    if not temperature > 0:
        raise Misuse(f"temperature={temperature}: votes are exp(cos / temperature), and it is above 0")
    # exp((cos - max) / T): the same order as exp(cos / T), which overflows fp32 below T = 0.0113
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    return weight.new_zeros(len(weight), classes).scatter_add_(1, labels, weight)


def knn_predict(bank: Tensor, labels: Tensor, queries: Tensor, k: int = K, temperature: float = TEMPERATURE) -> Tensor:
    """[Q] int64, the predicted labels of `queries` [Q, F] from a labelled `bank` [N, F], labels [N].

    Features are l2-normalised here; each of the k most similar votes exp(cos / temperature); of classes with equal votes the first
    wins. Raises `Misuse` when k is out of 1..N.
    """
    return _predicted(*nearest(bank, queries, k), labels, temperature)


def knn_accuracy(bank: Tensor, labels: Tensor, queries: Tensor, targets: Tensor, k: int = K, temperature: float = TEMPERATURE) -> float:
    """Share of `queries` whose predicted label is the target, in [0, 1]."""
    return knn_accuracies(bank, labels, queries, targets, (k,), temperature)[k]


def knn_accuracies(
    bank: Tensor, labels: Tensor, queries: Tensor, targets: Tensor, ks: Sequence[int] = KS, temperature: float = TEMPERATURE
) -> dict[int, float]:
    """`knn_accuracy` for each of `ks`, from one search for neighbours."""
    similarity, place = nearest(bank, queries, max(ks))
    predicted = {k: _predicted(similarity[:, :k], place[:, :k], labels, temperature) for k in ks}
    return {k: float((found == targets).float().mean()) for k, found in predicted.items()}


def _predicted(similarity: Tensor, place: Tensor, labels: Tensor, temperature: float) -> Tensor:
    classes = int(labels.max()) + 1
    chunks = zip(similarity.split(QUERIES), labels[place].split(QUERIES), strict=True)
    return torch.cat([vote(s, of, classes, temperature).argmax(1) for s, of in chunks])
