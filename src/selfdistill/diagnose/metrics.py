"""What collapse looks like in numbers, on embeddings: pure functions of tensors [N, D] to a float.

Those of distributions over K outputs are in `outputs`.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.diagnose.outputs import entropy

FLOOR = 1e-6
"""of the largest magnitude: a root mean square below it is fp32's rounding"""
NOISE = 1e-10
"""of the largest eigenvalue: those below are fp32's rounding"""
LIVE = 0.5
"""of an isotropic output's std: what varies so much is alive"""


def _scaled(z: Tensor) -> tuple[Tensor, float]:
    """(z in fp32 with the largest magnitude 1, that magnitude): squares of 1e30 leave fp32, and those of 1e-30 vanish. nan stays nan."""
    largest = z.abs().max()
    return (z / largest if largest > 0 else z).float(), float(largest)


def directions(z: Tensor) -> Tensor:
    """Rows of z [..., D] l2-normalised in fp32, whatever their lengths; 0 stays 0."""
    largest = z.abs().amax(-1, keepdim=True)
    return F.normalize((z / torch.where(largest > 0, largest, 1)).float(), dim=-1)


def channel_stds(z: Tensor) -> Tensor:
    """[D] std over samples of each channel of l2-normalised z [N, D], times sqrt(D): 1 each for an isotropic output."""
    return directions(z).std(0, correction=0) * z.shape[-1] ** 0.5


def output_std(z: Tensor) -> float:
    """The mean of `channel_stds` (SimSiam Sec. 4.1, Fig. 2): 1 for an isotropic output, 0 for a collapsed one."""
    return float(channel_stds(z).mean())


def live_channels(z: Tensor) -> int:
    """How many channels of z [N, D] have at least half of an isotropic output's std: none when collapsed. Their mean, `output_std`,
    cannot tell a constant from one channel that lives among D - 1 dead ones: that is 1 / sqrt(D)."""
    return int((channel_stds(z) >= LIVE).sum())


def centre_norm(z: Tensor) -> float:
    """|E z| of l2-normalised z [N, D], in [0, 1]: 1 when all point one way, 0 when they cancel (Zhang et al. 2022, the centre vector).

    The std's other side: the channels' variances add up to 1 - centre_norm^2.
    """
    return float(directions(z).mean(0).norm())


def spectrum(z: Tensor) -> Tensor:
    """[min(N, D)] the eigenvalues of the covariance of z [N, D], largest first, in float64 (Jing et al. 2022, Fig. 2); nan where z is not
    finite."""
    if not torch.isfinite(z).all():
        return z.new_full((min(z.shape),), math.nan)
    unit, largest = _scaled(z)
    return (_singular(_centred(unit)).double() * largest).square() / len(z)


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred z [N, D], in 1..min(N - 1, D) (Roy & Vetterli 2007).

    0 when z is constant, nan when it is not finite.
    """
    return _rank(_centred(_scaled(z)[0]))


def rankme(z: Tensor) -> float:
    """The same of uncentred z [N, D] (RankMe: Garrido et al. 2023, eq. 1), of the encoder's features. It ranks runs of one method, and
    a shared mean counts as one direction; 0 when z is zero, nan when it is not finite."""
    return _rank(_scaled(z)[0])


def _centred(z: Tensor) -> Tensor:
    """z [N, D] less its mean, which is taken in float64: in fp32 a constant's is off by 1e-7, which looks like a direction."""
    return (z.double() - z.double().mean(0)).float()


def _singular(z: Tensor) -> Tensor:
    """[min(N, D)] of z [N, D] whose largest magnitude is 1 or was before it was centred; 0 where what is left is rounding."""
    return torch.linalg.svdvals(z) if z.norm() > FLOOR * z.numel() ** 0.5 else z.new_zeros(min(z.shape))


def _rank(z: Tensor) -> float:
    if not torch.isfinite(z).all():
        return math.nan
    singular = _singular(z)
    return _perplexity(singular) if singular.any() else 0.0


def participation_ratio(eigenvalues: Tensor) -> float:
    """(sum l)^2 / sum l^2 of a `spectrum`, in 1..D: D when all directions vary alike, 1 when one does (Gao et al. 2017). The few large
    ones decide it, so it is the lower of the two ranks. 0 when nothing varies."""
    total = eigenvalues.sum()
    return float((eigenvalues / total).square().sum().reciprocal()) if total != 0 else 0.0


def spanned(eigenvalues: Tensor) -> int:
    """How many directions of a `spectrum` vary at all: the others are dimensional collapse to the letter (Jing et al. 2022, Fig. 2)."""
    return int((eigenvalues > NOISE * eigenvalues.max()).sum())


def alpha_req(eigenvalues: Tensor, first: int = 4, last: int = 100) -> float:
    """alpha of the power law l_i ~ i^-alpha, fitted to a `spectrum` in logarithms (alpha-ReQ: Agrawal et al. 2022; near 1 is best there).

    The paper does not say over which i: its code takes ranks 4 to 100 with weights 1 / i, as here; all ranks where there are fewer
    than 10 of those. nan when fewer than 3 eigenvalues stand out of fp32's noise.
    """
    signal = eigenvalues[eigenvalues > NOISE * eigenvalues.max()].double()
    if len(signal) < 3:
        return math.nan
    start = first - 1 if min(last, len(signal)) - first >= 9 else 0
    i = torch.arange(start + 1, min(last, len(signal)) + 1, device=signal.device).double()
    x, y, w = i.log(), signal[start:last].log(), i.reciprocal() / i.reciprocal().sum()
    x, y = x - (w * x).sum(), y - (w * y).sum()
    return float(-(w * x * y).sum() / (w * x * x).sum())


def lidar(z: Tensor, delta: float = 1e-4) -> float:
    """The effective rank of what tells images apart: z [A, N, D] of A >= 2 augmentations of N images, in 1..min(D, N - 1), 0 where nothing
    does (LiDAR: Thilak et al. 2024, Sec. 3). Each image is a class: S_w^-1/2 S_b S_w^-1/2, S_b the covariance of the images' means, S_w
    within images plus `delta`. RankMe also counts directions that only the augmentation moves. Its absolute value depends on z's scale by
    `delta`.
    """
    z = z.double()
    A, N, D = z.shape
    if not torch.isfinite(z).all():
        return math.nan
    means = z.mean(0)  # [N, D]
    within = (z - means).flatten(0, 1)
    inside, vectors = torch.linalg.eigh(within.T @ within / (N * (A - 1)) + delta * torch.eye(D, dtype=z.dtype, device=z.device))
    between = (means - means.mean(0)) @ vectors / inside.sqrt() / (N - 1) ** 0.5  # whitened by S_w; S_b is its Gram matrix
    eigenvalues = torch.linalg.svdvals(between).square()
    return _perplexity(eigenvalues) if eigenvalues.sum() > 1e-8 else 0.0


def _perplexity(x: Tensor) -> float:
    """exp of the entropy of what shares x [K] has of its sum."""
    return math.exp(entropy((x / x.sum())[None]))


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> float:
    """E |x - y|^alpha over positive pairs, x and y [N, D] l2-normalised here; in [0, 4] at alpha 2 (Wang & Isola 2020, eq. 1)."""
    return float((directions(x) - directions(y)).norm(dim=-1).pow(alpha).mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """log E exp(-t |x - y|^2) over all pairs of x [N, D], l2-normalised here; 0 when collapsed, near -4 at t = 2 when uniform
    on a sphere of many dimensions (Wang & Isola 2020, eq. 2)."""
    return float(torch.pdist(directions(x)).square().mul(-t).exp().mean().log())


def agreement(p: Tensor, t: Tensor) -> float:
    """Mean cosine of the student's predictions p [..., D] and the teacher's targets t of the same images, in [-1, 1]."""
    return float((directions(p) * directions(t)).sum(-1).mean())


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
