"""A run's whole model, not its backbone alone: what the projections, predictions and targets of its images are."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from selfdistill.data.images import spread
from selfdistill.data.loader import in_memory
from selfdistill.diagnose.metrics import ExpectationGap, expectation_gap
from selfdistill.errors import Misuse
from selfdistill.siamese import Siamese
from selfdistill.train.run import Run, run_of
from selfdistill.train.weights import fill, read
from selfdistill.views.augment import views_of_pixels

SEED = 2**31 - 1
"""of the augmentations: no run's own"""


def siamese_of(run: Run, checkpoint: Path | None = None) -> Siamese:
    """Student, predictor and teacher as the run left them, or as they were at a checkpoint, in eval mode. Raises `Misuse` where there is
    none."""
    file = checkpoint or run.checkpoint
    if not file.exists():
        way = "the run has not come so far; --resume continues it"
        if checkpoint and run.checkpoint.exists():
            way = f"there are {', '.join(sorted(p.name for p in file.parent.glob('*.ckpt')))}; checkpoint.every=N keeps more"
        raise Misuse(f"{run.path}: no {file.name}: {way}")
    state = read(file, torch.device("cpu"))
    images = state.get("images") or len(run.source.train)
    siamese = Siamese(run.recipe, images, run.recipe.encoder.build(run.recipe.views.size, run.own_encoder))
    fill(siamese, state.get("model"), file)
    return siamese.eval()


def gap_of(run: Run, augmentations: int = 32) -> dict[str, float]:
    """`predictor_gap` by name, what is finite of it; empty where the recipe has nothing to measure."""
    if run.recipe.predictor is None or run.recipe.teacher.kind == "expectation":
        return {}
    gap = predictor_gap(run, augmentations)._asdict()
    return {name: value for name, value in gap.items() if math.isfinite(value)}


@torch.no_grad()
def predictor_gap(run: Run | str | Path, augmentations: int = 32, images: int = 512) -> ExpectationGap:
    """How near the run's predictor comes to the expectation, over `augmentations` of at most `images` held-out images (training
    images where none are held out). Raises `Misuse` where the recipe has no predictor."""
    run = run_of(run)
    recipe = run.recipe
    if recipe.predictor is None:
        raise Misuse(f"{run.path}: {recipe.method} has no predictor, whose distance to the expectation could be measured")
    if recipe.teacher.kind == "expectation":
        raise Misuse(f"{run.path}: teacher=expectation remembers the training images alone, and knows nothing of held-out ones")
    if augmentations < 2 or images < 2:
        raise Misuse(f"augmentations={augmentations}, images={images}: an expectation, and another image's, take two of each at least")
    siamese = siamese_of(run)
    pixels = in_memory(spread(run.source.looked_at, images), recipe.views, recipe.workers).pixels

    def outputs(ids: Tensor, draw: int) -> tuple[Tensor, Tensor, Tensor]:
        z, p, t = siamese.outputs(views_of_pixels(pixels[ids], ids, recipe.views, recipe.global_views, SEED, draw))
        return p.cls[: len(t.cls)], z.cls[: len(t.cls)], t.cls  # [A, b, D]

    def of_all(draw: int) -> list[Tensor]:
        found = [outputs(ids, draw) for ids in torch.arange(len(pixels)).split(64)]
        return [torch.cat(of, 1) for of in zip(*found, strict=True)]  # p, z, t: [A, N, D] each, A a draw's

    draws = -(-augmentations // (recipe.global_views // (2 if recipe.split else 1)))
    p, z, t = (torch.cat(of) for of in zip(*map(of_all, range(draws)), strict=True))  # [A, N, D], A all of them
    return expectation_gap(p, z, t)
