"""The EM view (SimSiam Sec. 5.1): k-means and the SimSiam alternation, step by step, side by side.

Both minimise an objective in parameters theta and one latent eta_x for each image, in turns:

                            k-means                               SimSiam
    L(theta, eta)           E |x - theta[eta_x]|^2                E_x,T |F_theta(T(x)) - eta_x|^2
    theta, the parameters   the centres                           the encoder's weights
    eta_x, the latent       which centre the image belongs to     the image's representation
    E-step  eta <- argmin   the nearest centre                    E_T[F_theta(T(x))], the expectation over augmentation
    M-step  theta <- argmin the mean of a centre's images         SGD on theta towards the fixed eta: the stop-gradient

These are the standard names (Dempster, Laird & Rubin 1977): the E-step finds the latents given the parameters, the M-step the
parameters given the latents. The lecture swaps them: it calls the centres and theta E, and the assignment and eta M.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.data.images import spread
from selfdistill.data.loader import in_memory
from selfdistill.diagnose.metrics import effective_rank, output_std
from selfdistill.errors import Misuse
from selfdistill.methods import METHODS
from selfdistill.parts.schedule import Progress
from selfdistill.parts.seeded import drawn_from
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese
from selfdistill.spec import under
from selfdistill.train.loop import set_schedules
from selfdistill.train.resolve import resolve
from selfdistill.views.augment import views_of_pixels
from selfdistill.views.draw import permutation

ALTERNATION = ("predictor=none", "projector.bn=all", "projector.affine=false", "lr.warmup=0", "lr.base=0.1")
"""changes to SimSiam: the expectation is taken, not predicted; BatchNorm keeps the objective from falling by shrinking; at lr 0.7 an
M-step of 20 steps overshoots, and the effective rank falls to a few"""
NO_PART = (
    *("teacher", "predictor", "stop_gradient", "terms", "labels"),
    *("init_from", "init_partial", "accumulate", "clip", "views.second", "views.locals", "views.masks", "patch_projector", "keep"),
    *("epochs", "precision", "compile", "devices", "on_collapse", "max_bad_steps"),
    *("labelled_share", "checkpoint", "probe_every", "log", "log_every"),
)
"""what a recipe says that the alternation does not look at"""


class Round(NamedTuple):
    """The objective after each step of one round."""

    e_step: float
    m_step: float
    output_std: float | None = None
    effective_rank: float | None = None


def alternate(
    *changes: str, rounds: int = 10, steps: int = 20, augmentations: int = 8, images: int = 1000, clusters: int | None = None
) -> Iterator[tuple[Round, Round]]:
    """The EM view: (k-means, SimSiam alternation) after each of `rounds` rounds on the same images.

    changes: "key=value" of SimSiam's recipe, `data=` among them. steps: of SGD in an M-step. augmentations: draws of an E-step.
    clusters: of k-means, on raw pixels; as many as the data has classes, or 10. Raises `Misuse`, for slots that the alternation has not.
    """
    for word in changes:
        if word == "projector=none":
            raise Misuse(f"{word}: without BatchNorm at its output the objective falls by shrinking")
        if any(under(part, word.partition("=")[0]) for part in NO_PART) and word not in ALTERNATION:
            raise Misuse(f"{word}: the alternation has no such part: its target is E_T[F(T(x))], and its loss the squared distance to it")
    for name, value in {"rounds": rounds, "steps": steps, "augmentations": augmentations}.items():
        if value < 1:
            raise Misuse(f"{name}={value}: one at least")
    recipe, source, _ = resolve(METHODS["simsiam"], changes)
    recipe = recipe.edit([*ALTERNATION, *changes])
    pixels = in_memory(spread(source.train, images), recipe.views, recipe.workers)
    if source.left_out:
        warnings.warn(source.left_out, stacklevel=2)
    centres = (len(pixels.classes) or 10) if clusters is None else clusters
    return zip(
        kmeans(pixels.pixels.flatten(1).float() / 255, centres, rounds, recipe.seed),
        alternation(recipe, pixels.pixels, rounds, steps, augmentations),
        strict=True,
    )


def kmeans(x: Tensor, clusters: int, rounds: int, seed: int = 0) -> Iterator[Round]:
    """Lloyd's algorithm on x [N, F] from `clusters` distinct images as centres; the objective is the mean over images."""
    if not 1 <= clusters <= len(x):
        raise Misuse(f"clusters={clusters}: the data has {len(x)} images, so it must lie in 1..{len(x)}")
    centres = x[permutation(seed, 0, len(x))[:clusters]]
    for _ in range(rounds):
        assigned = torch.cdist(x, centres).argmin(1)  # E-step: [N]
        after_e = float((x - centres[assigned]).square().sum(1).mean())
        size = x.new_zeros(clusters).index_add(0, assigned, x.new_ones(len(x)))
        total = torch.zeros_like(centres).index_add(0, assigned, x)
        centres = torch.where(size[:, None] > 0, total / size[:, None].clamp(min=1), centres)  # M-step; an empty centre stays
        yield Round(after_e, float((x - centres[assigned]).square().sum(1).mean()))


def alternation(recipe: Recipe, pixels: Tensor, rounds: int, steps: int, augmentations: int) -> Iterator[Round]:
    """On uint8 pixels [N, C, H, W]: E_T[F(T(x))] of every image over the same `augmentations` draws, then `steps` SGD steps towards
    it on fresh draws.

    The objective is the mean over images and those draws, so that the E-step is its exact minimiser; an M-step may overshoot. F is
    l2-normalised and its BatchNorm normalises by the batch.
    """
    if len(pixels) < 2:
        raise Misuse(f"images={len(pixels)}: two at least: BatchNorm of one has no variance")
    batch = min(recipe.batch_size, len(pixels))
    with drawn_from(recipe.seed):
        siamese = Siamese(recipe, len(pixels))
    optimizer = recipe.optimizer.build(siamese.param_groups())

    def projections(ids: Tensor, draw: int) -> Tensor:
        views = views_of_pixels(pixels[ids], ids, recipe.views, 1, recipe.seed, draw)
        return F.normalize(siamese.student(views.crops).cls[0], dim=-1)  # [b, D]

    chunks = min(-(-len(pixels) // batch), len(pixels) // 2)  # of two images or more: BatchNorm

    @torch.no_grad()
    def same_draws() -> Tensor:
        z = []
        for a in range(augmentations):
            order = permutation(recipe.seed, a, len(pixels))  # in a folder's own, BatchNorm would see one class and take its mean away
            z.append(torch.cat([projections(ids, a) for ids in order.tensor_split(chunks)])[order.argsort()])
        return torch.stack(z)  # [A, N, D]

    z = same_draws()
    for step in range(rounds * steps):
        if step % steps == 0:
            eta = z.mean(0)  # E-step: [N, D]
            after_e = float(distance(z, eta))
        ids = permutation(recipe.seed, step, len(pixels))[:batch]  # M-step
        set_schedules(optimizer, recipe, Progress(step, steps, rounds))
        distance(projections(ids, augmentations + step), eta[ids]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % steps == 0:
            z = same_draws()
            yield Round(after_e, float(distance(z, eta)), output_std(z[0]), effective_rank(z[0]))


def distance(z: Tensor, eta: Tensor) -> Tensor:
    """Mean of |z - eta|^2 over all but the last dimension."""
    return (z - eta).square().sum(-1).mean()
