"""All metrics of a set of embeddings at once, and how to read each."""

import math

import torch
from torch import Tensor

from selfdistill.diagnose import metrics

READING = {
    "images": "embeddings looked at",
    "dimensions": "of an embedding",
    "output_std": "1 isotropic, 0 collapsed",
    "centre_norm": "0 centred, 1 all point one way",
    "effective_rank": "of at most min(images, dimensions)",
    "rankme": "the same, uncentred",
    "participation_ratio": "the same, by the large directions",
    "alpha_req": "slope of the spectrum; near 1 is best there",
    "lidar": "rank of what tells images apart",
    "alignment": "two views of an image: 0 equal, 2 unrelated",
    "uniformity": "0 collapsed, near -4 uniform",
    "knn_top1": "accuracy, 20 neighbours",
    "ridge_top1": "accuracy of a linear probe",
}
"""what each metric says, in the order in which they are told"""
SAMPLES = 4_096
"""embeddings that are looked at: 8 million pairs, and an SVD of seconds at 2,048 dimensions"""


@torch.no_grad()
def describe(z: Tensor) -> dict[str, float]:
    """Of z [N, D], or of A augmentations of each image, [A, N, D], with which there are `alignment` and `lidar` as well. Of more than
    SAMPLES embeddings as many, spread evenly. nan where z is not finite."""
    flat = z.flatten(0, -2).float()
    flat = flat[torch.linspace(0, len(flat) - 1, min(len(flat), SAMPLES)).long()]
    eigenvalues = metrics.spectrum(flat)
    found: dict[str, float] = {
        "images": z.shape[-2],
        "dimensions": z.shape[-1],
        "output_std": metrics.output_std(flat),
        "centre_norm": metrics.centre_norm(flat),
        "effective_rank": metrics.effective_rank(flat),
        "rankme": metrics.rankme(flat),
        "participation_ratio": metrics.participation_ratio(eigenvalues),
        "alpha_req": metrics.alpha_req(eigenvalues),
        "uniformity": metrics.uniformity(flat),
        "rank_limit": min(flat.shape),
    }
    if z.ndim == 3:
        found |= {"alignment": metrics.alignment(z[0], z[1]), "lidar": metrics.lidar(z)}
    return found


def ordered(found: dict[str, float]) -> dict[str, float | None]:
    """Those metrics that a person reads, in READING's order; None for what is not finite, as JSON wants it."""
    return {name: found[name] if math.isfinite(found[name]) else None for name in READING if name in found}
