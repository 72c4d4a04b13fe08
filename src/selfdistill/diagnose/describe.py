"""All metrics of a set of embeddings at once, and how to read each."""

import math

import torch
from torch import Tensor

from selfdistill.diagnose import metrics
from selfdistill.errors import Misuse
from selfdistill.views.draw import evenly_spaced

READING = {
    "images": "embeddings looked at",
    "dimensions": "of an embedding",
    "output_std": "1 isotropic, 0 collapsed",
    "live_channels": "with half of an isotropic output's std or more",
    "centre_norm": "0 centred, 1 all point one way",
    "effective_rank": "of at most min(images - 1, dimensions)",
    "direction_rank": "participation ratio, every length made 1",
    "spanned": "directions that vary at all, of as many",
    "rankme": "effective_rank, uncentred",
    "participation_ratio": "effective_rank by the large directions",
    "alpha_req": "slope of the spectrum; near 1 is best there",
    "lidar": "rank of what tells images apart",
    "alignment": "two views of an image: 0 equal, 2 unrelated",
    "uniformity": "0 collapsed, near -4 uniform",
    "knn_top1": "accuracy, 20 neighbours: of a half of these images among the other",
    "ridge_top1": "accuracy of a linear probe on the same halves",
}
"""what each metric says, in the order in which they are told"""
SAMPLES = 4_096
"""embeddings that are looked at: 8 million pairs, and an SVD of seconds at 2,048 dimensions"""


def spread_of(z: Tensor) -> dict[str, float]:
    """What the verdict asks of z [N, D]: does it vary, in how many channels, and along how many directions of the `rank_limit` that N
    centred embeddings of D dimensions can span."""
    of_directions = metrics.spectrum(metrics.directions(z))
    return {
        "output_std": metrics.output_std(z),
        "live_channels": metrics.live_channels(z),
        "centre_norm": metrics.centre_norm(z),
        "effective_rank": metrics.effective_rank(z),
        "direction_rank": metrics.participation_ratio(of_directions),
        "spanned": metrics.spanned(of_directions),
        "rank_limit": min(len(z) - 1, z.shape[-1]),
    }


@torch.no_grad()
def describe(z: Tensor) -> dict[str, float]:
    """Of z [N, D], or of A augmentations of each image, [A, N, D], with which there are `alignment` and `lidar` as well; all else is of the
    first of them, since two of one image are no two images. Of more than SAMPLES embeddings as many, spread evenly. nan where z is not
    finite. Raises `Misuse` for one image, which differs from nothing."""
    if z.shape[-2] < 2:
        raise Misuse(f"embeddings of shape {list(z.shape)}: a collapse shows between images, so it takes 2 at least")
    flat = z if z.ndim == 2 else z[0]
    flat = flat[evenly_spaced(len(flat), SAMPLES)]
    eigenvalues = metrics.spectrum(flat)
    found: dict[str, float] = {
        "images": z.shape[-2],
        "dimensions": z.shape[-1],
        **spread_of(flat),
        "rankme": metrics.rankme(flat),
        "participation_ratio": metrics.participation_ratio(eigenvalues),
        "alpha_req": metrics.alpha_req(eigenvalues),
        "uniformity": metrics.uniformity(flat),
    }
    if z.ndim == 3:
        found |= {"alignment": metrics.alignment(z[0], z[1]), "lidar": metrics.lidar(z)}
    return found


def ordered(found: dict[str, float]) -> dict[str, float | None]:
    """Those metrics that a person reads, in READING's order; None for what is not finite, as JSON wants it."""
    return {name: found[name] if math.isfinite(found[name]) else None for name in READING if name in found}
