"""Why a run is not healthy: which ingredient its recipe lacks or which knob points the wrong way, and what to try.

A table, in the order in which the papers found the ingredients to matter: the first row that fits the state and the recipe is said.
An ingredient may be missing (predictor=none), or there and disarmed by its value (predictor.lr_scale=0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from selfdistill.diagnose.ingredients import (
    HASTY,
    SLOW_CENTRE,
    blunt,
    blunt_codes,
    centre,
    every_step,
    fast,
    idle,
    is_own_teacher,
    lacks_predictor,
    losses,
    mlp,
    of_vectors,
    still,
    tau,
    uncentred,
    unlabelled,
)
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


def _and_targets_alone(fits: Callable[[Recipe], bool]) -> Callable[[Recipe], bool]:
    """Of recipes whose outputs nothing but their targets holds apart, as DINO's and SwAV's, which may go to a constant too."""
    return lambda r: r.predictor is None and fits(r)


CENTRED = "Centre the targets (terms.views.loss.target=centre, whose momentum is 0.9), or terms.views.loss.target=sinkhorn."

OF_TARGETS = (
    Cause(
        ("uniform-target",),
        blunt,
        "the target is no sharper than the student's prediction, and cross-entropy draws both to the uniform one (DINO Fig. 7, App. D).",
        "Sharpen: a target temperature below the student's (terms.views.loss.target.temperature=0.04).",
    ),
    Cause(
        ("uniform-target",),
        blunt_codes,
        "the codes are no sharper than the student's prediction: Sinkhorn's epsilon is not below the temperature (SwAV has 0.05 and 0.1).",
        "terms.views.loss.epsilon=0.05.",
    ),
    Cause(
        ("dominated-target",),
        uncentred,
        "nothing takes the mean out of the targets, and one output wins (DINO Fig. 7, without centring).",
        CENTRED,
    ),
    Cause(
        ("dominated-target",),
        lambda r: centre(r) == 1,
        "the centre is there and stays at 0 (momentum=1), so one output wins (DINO Fig. 7, without centring).",
        CENTRED,
    ),
)
"""what a target distribution lacks"""

CAUSES = (
    Cause(
        ("diverged",),
        fast,
        "the numbers left the range of floats: lr is more than ten times that of any paper here with this optimiser.",
        "Lower lr (selfdistill show METHOD has the paper's).",
    ),
    Cause(
        ("diverged",),
        lambda r: r.clip is None,
        "the numbers left the range of floats: steps too large, and clip=none lets every gradient through.",
        "Lower lr, add a warm-up (lr.warmup=10) or clip gradients (clip={norm: 3}).",
    ),
    Cause(("diverged",), lambda r: True, "the numbers left the range of floats.", "Lower lr, or add a warm-up (lr.warmup=10)."),
    Cause(
        (*CONSTANT, *TARGETS),
        unlabelled,
        "nothing learns from labels, and consistency alone is met by one answer for all images (BYOL Table 5b, row 7).",
        "terms.labels.weight=1.",
    ),
    Cause(
        (*CONSTANT, *TARGETS),
        idle,
        "no loss with a weight compares whole views: their terms have weight 0, and the outputs go where the other terms take them.",
        "terms.views.weight=1.",
    ),
    *OF_TARGETS,
    Cause(
        TARGETS,
        lambda r: centre(r) >= SLOW_CENTRE,
        "the centre moves slower than the outputs (DINO App. D: kNN 69.4 at momentum 0.99, 0.1 at 0.999).",
        "terms.views.loss.target.momentum=0.9.",
    ),
    Cause(
        (*CONSTANT, *TARGETS),
        lambda r: centre(r) > 0 and (r.teacher.kind == "shared" or tau(r) < HASTY or every_step(r)),
        "the teacher is the student of a moment ago, and centring does not hold without a slow one (DINO Table 7 row 2: 0.1 %).",
        "teacher=ema tau.base=0.99, or terms.views.loss.target=sinkhorn (Table 15).",
    ),
    Cause(
        CONSTANT,
        lambda r: not r.stop_gradient and lacks_predictor(r),
        "stop_gradient=false and predictor=none: a plain Siamese network, which either of the two alone does not save (SimSiam Sec. 4.2).",
        "stop_gradient=true predictor=mlp.",
    ),
    Cause(
        (*CONSTANT, *TARGETS),
        lambda r: not r.stop_gradient and of_vectors(r),
        "stop_gradient=false: without stop-gradient both branches go to one constant (SimSiam Fig. 2).",
        "stop_gradient=true.",
    ),
    Cause(
        CONSTANT,
        lambda r: lacks_predictor(r) and of_vectors(r) and r.teacher.kind == "shared",
        "predictor=none: without predictor the stop-gradient does nothing but halve the gradient (SimSiam Sec. 4.2, Table 1a).",
        "predictor=mlp.",
    ),
    Cause(
        CONSTANT,
        lacks_predictor,
        "predictor=none: a target that lags is all that sets the two branches apart, and a constant meets it (BYOL Table 5b: 0.2 %).",
        "predictor=mlp.",
    ),
    Cause(
        CONSTANT,
        lambda r: mlp(r) is not None and not (mlp(r).trainable and mlp(r).lr_scale),
        "the predictor never learns (predictor.trainable=false or lr_scale=0) and cannot know the expectation (BYOL Table 21: 0.01 %; in "
        "SimSiam's Table 1b the loss stays high instead).",
        "predictor.trainable=true predictor.lr_scale=1.",
    ),
    *(replace(cause, of=CONSTANT, fits=_and_targets_alone(cause.fits)) for cause in OF_TARGETS),
    Cause(
        (*CONSTANT, *TARGETS),
        still,
        "the teacher stays at random (teacher.tau.base=1, or momentum=1), and there is little to learn from it (BYOL Table 5a: 18.8 %).",
        "teacher.tau.base=0.99.",
    ),
    Cause(
        (*CONSTANT, *TARGETS),
        lambda r: tau(r) < HASTY,
        "the teacher is hasty: teacher.tau.base below 0.9 is the student of a few steps ago (BYOL Table 5a: 68.4 % at 0.9, 0.3 % at 0).",
        "teacher.tau.base=0.99.",
    ),
    Cause(
        CONSTANT,
        lambda r: is_own_teacher(r) and mlp(r) is not None and of_vectors(r),
        "the student is its own teacher, and without a target network the predictor must be near its optimum (BYOL Table 21).",
        "teacher=ema, or predictor.lr_scale=10.",
    ),
    Cause(
        CONSTANT,
        lambda r: is_own_teacher(r) and r.predictor is not None and of_vectors(r),
        "the student is its own teacher, and a predictor that is solved for its outputs follows them as they shrink (BYOL Sec. 5 has "
        "52.5 % for it, Tian et al. Table 1 half of an SGD one's).",
        "teacher=ema, or predictor=mlp with predictor.lr_scale=10.",
    ),
    Cause(
        (*CONSTANT, *TARGETS),
        fast,
        "lr is more than ten times that of any paper here with this optimiser.",
        "Lower lr (selfdistill show METHOD has the paper's).",
    ),
    Cause(
        TARGETS,
        lambda r: r.projector is not None and r.projector.kind == "dino" and r.projector.bn == "none",
        "the ingredients are there; a network whose features are nearly one at first, as a small ViT's, never leaves them.",
        "projector.bn=hidden, lower lr, or a longer lr.warmup.",
    ),
    Cause(
        ("dominated-target",),
        lambda r: centre(r) > 0,
        "centring is there, and does not keep up with the outputs.",
        "A smaller terms.views.loss.target.momentum, a higher target temperature, or lower lr.",
    ),
    Cause(
        ("dominated-target",),
        lambda r: True,
        "the targets are shared out, and few outputs take all images.",
        "Lower lr, a longer lr.warmup, or a higher target temperature (epsilon).",
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
        lambda r: any(loss.kind in ("nt-xent", "info-nce") for loss in losses(r)),
        "negatives are there, and do not hold the outputs apart.",
        "More of them (batch_size, or a longer queue), a lower loss.temperature, or lower lr.",
    ),
    Cause(
        CONSTANT,
        lambda r: not r.stop_gradient,
        "stop_gradient=false: gradients flow into the targets.",
        "stop_gradient=true.",
    ),
    Cause(
        CONSTANT,
        lambda r: getattr(r.projector, "bn", "") == "none" and of_vectors(r),
        "projector.bn=none: without BatchNorm in the heads SimSiam learns little (Table 3a: 34.6 % for 68.1 %).",
        "projector.bn=all, or lower lr.",
    ),
    Cause(
        CONSTANT,
        lambda r: True,
        "none of the causes known here is in its recipe.",
        "Lower lr, more weight decay, or BatchNorm in the heads (projector.bn=all). What is not the paper's: selfdistill diff METHOD RUN.",
    ),
)


def cause_of(state: State, recipe: Recipe) -> Cause:
    """The first cause that fits. Raises `StopIteration` for a healthy run, which has none."""
    return next(cause for cause in CAUSES if state in cause.of and cause.fits(recipe))
