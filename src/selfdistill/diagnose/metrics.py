"""What collapse looks like in numbers: pure functions of tensors."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def output_std(z: Tensor) -> float:
    """Mean over channels of the std over samples of l2-normalised z [N, D], times sqrt(D) (SimSiam Sec. 4.1, Fig. 2).

    1 for an isotropic output, 0 for a collapsed one.
    """
    return float(F.normalize(z.float(), dim=-1).std(0, correction=0).mean() * z.shape[-1] ** 0.5)


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred z [N, D], in 1..min(N, D) (Roy & Vetterli 2007).

    RankMe (Garrido et al. 2023, eq. 1) is the same of uncentred z. 0 when z is constant, nan when it is not finite.
    """
    z = z.float()
    if not torch.isfinite(z).all():
        return math.nan
    singular = torch.linalg.svdvals(z - z.mean(0))
    if singular.sum() <= 1e-6 * (1 + z.abs().max()):
        return 0.0
    p = singular / singular.sum()
    return float(torch.exp(-(p * (p + 1e-12).log()).sum()))


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> float:
    """E |x - y|^alpha over positive pairs, x and y [N, D] l2-normalised here; in [0, 4] at alpha 2 (Wang & Isola 2020, eq. 1)."""
    return float((F.normalize(x.float(), dim=-1) - F.normalize(y.float(), dim=-1)).norm(dim=-1).pow(alpha).mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """log E exp(-t |x - y|^2) over all pairs of x [N, D], l2-normalised here; 0 when collapsed, near -4 at t = 2 when uniform
    on a sphere of many dimensions (Wang & Isola 2020, eq. 2)."""
    return float(torch.pdist(F.normalize(x.float(), dim=-1)).square().mul(-t).exp().mean().log())


def entropy(q: Tensor) -> float:
    """Mean entropy in nats of distributions q [N, K]: ln K when uniform, 0 when sure of one output (DINO Fig. 7)."""
    return float(-torch.special.xlogy(q.float(), q.float()).sum(-1).mean())


def usage_entropy(q: Tensor) -> float:
    """Entropy in nats of the mean of distributions q [N, K]: ln K when all outputs are used alike, 0 when one dominates."""
    return entropy(q.float().mean(0, keepdim=True))


class ExpectationGap(NamedTuple):
    """Mean squared distances to E[z2], of directions: all l2-normalised, the mean of which has a length below 1."""

    predictor: float
    """|h(z1) - E[z2]|^2"""
    projection: float
    """|z1 - E[z2]|^2: what the predictor must beat if it approximates the expectation"""
    other: float
    """|z1 - E[z2 of another image]|^2"""


def expectation_gap(p: Tensor, z: Tensor, t: Tensor) -> ExpectationGap:
    """Is the predictor an expectation over augmentation (SimSiam Sec. 5.2)? p: [A, N, D] predictions h(z1), z: [A, N, D] projections z1,
    t: [A, N, D] targets z2 of A >= 2 augmentations of N >= 2 images. The expectation leaves z1's own augmentation out."""
    p, z, t = (F.normalize(x.double(), dim=-1) for x in (p, z, t))
    rest = (t.sum(0) - t) / (len(t) - 1)  # [A, N, D]
    others = rest.roll(rest.shape[1] // 2, dims=1)  # half a set away: many sets are sorted by class
    return ExpectationGap(*(float((a - e).square().sum(-1).mean()) for a, e in ((p, rest), (z, rest), (z, others))))
