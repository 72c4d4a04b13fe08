"""What a run is told of before it starts: recipes that are taken, and do not mean what they look like."""

from __future__ import annotations

from selfdistill.parts.backbone import has_batchnorm
from selfdistill.parts.contrast import NTXent, Swapped
from selfdistill.parts.encoder import RESNETS, Encoder
from selfdistill.parts.predictor import LeastSquares
from selfdistill.parts.target import Sinkhorn
from selfdistill.parts.teacher import Snapshot
from selfdistill.recipe import Recipe
from selfdistill.spec import leaves


def cautions(recipe: Recipe, images: int) -> list[str]:
    """A sentence for each setting without effect in so few steps, and for each that sees micro-batches where the paper has the batch."""
    found = []
    steps = recipe.epochs * (images // recipe.batch_size)
    teacher, micro = recipe.teacher, f"micro-batches of {recipe.batch_size // recipe.accumulate} images"
    if isinstance(teacher, Snapshot):
        every = images // recipe.batch_size if teacher.every == "epoch" else teacher.every
        if every * (1 + teacher.lag) >= steps:
            found.append(f"teacher.every={teacher.every} and {steps} steps in all: the teacher stays what it was before the first")
    for name, term in recipe.terms.items():
        if isinstance(term.loss, Swapped) and term.loss.queue > 0 and term.loss.queue_from >= recipe.epochs:
            found.append(f"terms.{name}.loss.queue_from={term.loss.queue_from:g} and epochs={recipe.epochs}: the queue is never used")
        compares = isinstance(term.loss, NTXent | Swapped) or isinstance(getattr(term.loss, "target", None), Sinkhorn)
        if recipe.accumulate > 1 and compares:
            what = "negatives" if isinstance(term.loss, NTXent) else "codes"
            found.append(
                f"accumulate={recipe.accumulate}: the {what} of terms.{name} are of {micro}, not of the batch of {recipe.batch_size}"
            )
    if recipe.accumulate > 1:
        heads = (recipe.projector, recipe.patch_projector, recipe.predictor)
        if _has_batchnorm(recipe.encoder, recipe.views.size) or any(getattr(head, "bn", "none") != "none" for head in heads):
            found.append(f"accumulate={recipe.accumulate}: BatchNorm's statistics are of {micro}")
        if isinstance(recipe.predictor, LeastSquares):
            found.append(f"accumulate={recipe.accumulate}: the predictor is solved on {micro}")
    if (masks := recipe.views.masks) and masks.probability:  # 0 is what --without masks says
        patches = (recipe.views.size // masks.patch) ** 2
        if masks.ratio[1] * patches < 1:
            found.append(f"views.masks.ratio={list(masks.ratio)} of {patches} patches is none: the terms on patches are 0. Raise it")
    for path, value in leaves(recipe):
        if path.endswith("warmup") and value >= recipe.epochs:
            of = path.removesuffix(".warmup")
            found.append(
                f"{path}={value:g} lasts all the epochs={recipe.epochs}: {of} never comes to its base. A tenth of the run is "
                f"{path}={recipe.epochs / 10:g}"
            )
        if path.endswith("frozen_epochs") and value >= recipe.epochs:
            found.append(f"{path}={value:g} and epochs={recipe.epochs}: the prototypes never learn. {path}=0 lets them from the start")
    return found


def _has_batchnorm(encoder: Encoder, size: int) -> bool:
    """False for a module of the user's own, which is not at hand here."""
    if encoder.name.startswith("timm:"):
        return has_batchnorm(encoder.build(size))
    return encoder.name in (*RESNETS, "resnet-small")
