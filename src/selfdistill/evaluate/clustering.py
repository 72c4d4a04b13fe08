"""Clustering: does k-means on the features find the classes?"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Clustering(NamedTuple):
    """Agreement of clusters and classes. nmi: normalised mutual information (arithmetic mean of the entropies), in [0, 1]. ari: the
    Rand index adjusted for chance, 0 for a random assignment. Neither depends on the clusters' names."""

    nmi: float
    ari: float


def clustering(features: Tensor, labels: Tensor, starts: int = 10, seed: int = 0) -> Clustering:
    """scikit-learn's k-means, the best of `starts`, on l2-normalised features [N, F]; as many clusters as classes."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    found = KMeans(len(labels.unique()), n_init=starts, random_state=seed).fit_predict(F.normalize(features.float(), dim=1).numpy())
    truth = labels.numpy()
    return Clustering(float(normalized_mutual_info_score(truth, found)), float(adjusted_rand_score(truth, found)))
