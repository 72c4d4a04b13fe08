"""A run's whole model, not its backbone alone: what the projections, predictions and targets of its images are."""

from __future__ import annotations

import torch

from selfdistill.data.images import spread
from selfdistill.data.loader import in_memory
from selfdistill.diagnose.metrics import ExpectationGap, expectation_gap
from selfdistill.errors import Misuse
from selfdistill.parts.schedule import Progress
from selfdistill.siamese import Siamese
from selfdistill.train.checkpoint import read
from selfdistill.train.run import Run
from selfdistill.views.augment import views_of_pixels

SEED = 2**31 - 1
"""of the augmentations: no run's own"""


def siamese_of(run: Run) -> Siamese:
    """Student, predictor and teacher as the run left them, in eval mode. Raises `Misuse` where there is no checkpoint."""
    if not run.checkpoint.exists():
        raise Misuse(f"{run.path}: no {run.checkpoint.name}: the run has not come so far; --resume continues it")
    siamese = Siamese(run.recipe, len(run.source.train), run.own_encoder)
    siamese.load_state_dict(read(run.checkpoint, torch.device("cpu"))["model"])
    return siamese.eval()


@torch.no_grad()
def predictor_gap(run: Run, augmentations: int = 32, images: int = 512) -> ExpectationGap:
    """How near the run's predictor comes to the expectation, over `augmentations` of at most `images` held-out images (training
    images where none are held out). Raises `Misuse` where the recipe has no predictor."""
    recipe = run.recipe
    if recipe.predictor is None:
        raise Misuse(f"{run.path}: {recipe.method} has no predictor, whose distance to the expectation could be measured")
    siamese, now = siamese_of(run), Progress(0, 1, 1)
    pixels = in_memory(spread(run.source.test or run.source.train, images)[0], recipe.views, recipe.workers).pixels
    ids = torch.arange(len(pixels))
    found = [
        siamese(views_of_pixels(pixels, ids, recipe.views, recipe.global_views, SEED, epoch), now)
        for epoch in range(-(-augmentations // recipe.global_views))
    ]
    globals = slice(recipe.global_views)
    p, z, t = (torch.cat([x.cls[globals] for x in of]) for of in ([s.p for s in found], [s.z for s in found], [s.t for s in found]))
    return expectation_gap(p, z, t)
