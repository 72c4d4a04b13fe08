"""Why a run is not healthy: which ingredient its recipe lacks or which knob points the wrong way, and what to try.

A table, in the order in which the papers found the ingredients to matter: the first row that fits the state and the recipe is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from selfdistill.recipe import Recipe

State = Literal["healthy", "collapsed", "dimensional-collapse", "uniform-target", "dominated-target", "diverged"]


@dataclass(frozen=True)
class Cause:
    """why: what is missing or wrong, with its source. remedy: what to try, as settings. of: the states it explains. fits: whether the
    recipe has it."""

    of: tuple[State, ...]
    fits: Callable[[Recipe], bool]
    why: str
    remedy: str


CONSTANT: tuple[State, ...] = ("collapsed", "dimensional-collapse")
TARGETS: tuple[State, ...] = ("uniform-target", "dominated-target")
VECTORS = ("cosine", "mse", "consistency")
"""losses that have nothing but the asymmetry of the two branches against a constant output"""


def cross_entropies(recipe: Recipe) -> Iterator[Any]:
    """The losses that have a target distribution made of the teacher's output."""
    return (term.loss for term in recipe.terms.values() if term.loss.kind == "cross-entropy")


def _blunt(recipe: Recipe) -> bool:
    return any(loss.target.temperature.base >= loss.temperature for loss in cross_entropies(recipe) if loss.target.kind != "sinkhorn")


def _uncentred(recipe: Recipe) -> bool:
    return any(loss.target.kind == "softmax" or getattr(loss.target, "momentum", 0) == 1 for loss in cross_entropies(recipe))


def _of_vectors(recipe: Recipe) -> bool:
    return all(term.loss.kind in VECTORS for term in recipe.terms.values() if term.weight.base)


CAUSES = (
    Cause(
        ("diverged",),
        lambda r: r.clip is None,
        "the numbers left the range of floats: steps too large, and clip=none lets every gradient through.",
        "Lower lr, add a warm-up (lr.warmup=10) or clip gradients (clip={norm: 3}).",
    ),
    Cause(("diverged",), lambda r: True, "the numbers left the range of floats.", "Lower lr, or add a warm-up (lr.warmup=10)."),
    Cause(
        ("uniform-target",),
        _blunt,
        "the target is no sharper than the student's prediction, and cross-entropy then draws both to the uniform one (DINO Fig. 7).",
        "Sharpen: a target temperature below the student's (terms.views.loss.target.temperature=0.04).",
    ),
    Cause(
        ("dominated-target",),
        _uncentred,
        "nothing takes the mean out of the targets, and one output wins (DINO Fig. 7, without centring).",
        "Centre the targets (terms.views.loss.target=centre with momentum=0.9), or terms.views.loss.target=sinkhorn.",
    ),
    Cause(
        (*CONSTANT, *TARGETS),
        lambda r: not r.stop_gradient and _of_vectors(r),
        "stop_gradient=false: without stop-gradient both branches go to one constant (SimSiam Fig. 2).",
        "stop_gradient=true.",
    ),
    Cause(
        CONSTANT,
        lambda r: _of_vectors(r) and r.predictor is None and r.teacher.kind != "expectation",
        "predictor=none: without predictor the stop-gradient does nothing but halve the gradient (SimSiam Table 1a, BYOL Table 5b).",
        "predictor=mlp.",
    ),
    Cause(
        CONSTANT,
        lambda r: r.predictor is not None and r.predictor.kind == "mlp" and not r.predictor.trainable,
        "predictor.trainable=false: a fixed random predictor cannot learn the expectation (SimSiam Table 1b).",
        "predictor.trainable=true.",
    ),
    Cause(
        (*CONSTANT, *TARGETS),
        lambda r: r.teacher.kind == "ema" and r.teacher.tau.base == 1,
        "teacher.tau.base=1: the teacher stays at random, and there is little to learn from it (BYOL Table 5a: 18.8 %).",
        "teacher.tau.base=0.99.",
    ),
    Cause(
        CONSTANT,
        lambda r: r.optimizer.kind == "lars" and r.teacher.kind == "shared" and r.predictor is not None,
        "teacher=shared: BYOL without target network needs a near-optimal predictor (Table 21).",
        "predictor.lr_scale=10.",
    ),
    Cause(
        TARGETS,
        lambda r: r.projector is not None and r.projector.kind == "dino" and r.projector.bn == "none",
        "the ingredients are there; a network whose features are nearly one at first, as a small ViT's, never leaves them.",
        "projector.bn=hidden, lower lr, or a longer lr.warmup.",
    ),
    Cause(
        ("dominated-target",),
        lambda r: True,
        "centring is there, and does not keep up with the outputs.",
        "A smaller terms.views.loss.target.momentum, a higher target temperature, or lower lr.",
    ),
    Cause(
        ("uniform-target",),
        lambda r: True,
        "sharpening is there, and every image still gets the same target; SwAV leaves this by itself after 17 of 60 epochs on digits.",
        "Wait where the loss has begun to fall below ln K. Else lower lr or a longer lr.warmup, frozen prototypes for longer, a smaller "
        "epsilon or target temperature (SwAV's README: 0.03).",
    ),
    Cause(
        CONSTANT,
        lambda r: not r.stop_gradient,
        "stop_gradient=false: gradients flow into the targets.",
        "stop_gradient=true, or more negatives (batch_size).",
    ),
    Cause(
        CONSTANT,
        lambda r: True,
        "all ingredients are there.",
        "Lower lr, more weight decay, or BatchNorm in the heads (projector.bn=all).",
    ),
)


def cause_of(state: State, recipe: Recipe) -> Cause:
    """The first cause that fits. Raises `StopIteration` for a healthy run, which has none."""
    return next(cause for cause in CAUSES if state in cause.of and cause.fits(recipe))
