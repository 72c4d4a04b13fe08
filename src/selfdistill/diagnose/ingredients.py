"""What a recipe lacks, or has with a value that disarms it: the questions that the table of causes asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from selfdistill.methods import METHODS
from selfdistill.recipe import Recipe

VECTORS = ("cosine", "mse", "consistency")
"""losses that have nothing but the asymmetry of the two branches against a constant output"""
BLUNT = 0.75
"""of the student's temperature: beside 0.1 a teacher's of 0.07 works after a warm-up, 0.08 goes to ln K (DINO App. D)"""
SLOW_CENTRE = 0.999
"""momentum of the centre that is too slow (DINO App. D: kNN 69.4 at 0.99, 0.1 at 0.999)"""
HASTY = 0.9
"""tau below which a teacher is nearly the student itself: the least that has been seen to work (BYOL Table 5a)"""
FAST = {
    kind: 10 * max(r.lr.base * r.lr_factor for r in METHODS.values() if r.optimizer.kind == kind)
    for kind in {r.optimizer.kind for r in METHODS.values()}
}
"""peak learning rates by optimiser: ten times the largest of the papers that use it; none is known of a user's own"""


def losses(recipe: Recipe) -> Iterator[Any]:
    """The losses that count."""
    return (term.loss for term in recipe.terms.values() if term.weight.base)


def idle(recipe: Recipe) -> bool:
    """Whether no loss that counts is on whole views."""
    return all(term.on == "patch" or not term.weight.base for term in recipe.terms.values())


def cross_entropies(recipe: Recipe) -> Iterator[Any]:
    """The losses that have a target distribution made of the teacher's output."""
    return (loss for loss in losses(recipe) if loss.kind == "cross-entropy")


def tau(recipe: Recipe) -> float:
    """The decay of a teacher that is an average, 1 of any other."""
    return recipe.teacher.tau.base if recipe.teacher.kind == "ema" else 1.0


def every_step(recipe: Recipe) -> bool:
    """Whether the teacher is a copy of the last step's student."""
    return recipe.teacher.kind == "snapshot" and recipe.teacher.every == 1


def over_classes(recipe: Recipe) -> bool:
    """Whether what is compared are a classifier's distributions, and no embedding."""
    return any(term.loss.kind == "consistency" for term in recipe.terms.values())


def blunt(recipe: Recipe) -> bool:
    """Whether a target is hardly sharper than what is to predict it."""
    return any(loss.target.temperature.base >= BLUNT * loss.temperature for loss in cross_entropies(recipe))


def blunt_codes(recipe: Recipe) -> bool:
    """The same of SwAV's codes."""
    return any(loss.kind == "swapped" and loss.epsilon >= BLUNT * loss.temperature for loss in losses(recipe))


def uncentred(recipe: Recipe) -> bool:
    """Whether nothing takes the mean out of the targets."""
    return any(loss.target.kind == "softmax" for loss in cross_entropies(recipe))


def centre(recipe: Recipe) -> float:
    """The slowest centre's momentum, 0 where there is none."""
    return max((loss.target.momentum for loss in cross_entropies(recipe) if loss.target.kind == "centre"), default=0.0)


def of_vectors(recipe: Recipe) -> bool:
    """Whether all losses compare vectors, and no distributions."""
    return all(loss.kind in VECTORS for loss in losses(recipe))


def unlabelled(recipe: Recipe) -> bool:
    """Whether a classifier learns without labels."""
    return over_classes(recipe) and all(loss.kind != "labels" for loss in losses(recipe))


def is_own_teacher(recipe: Recipe) -> bool:
    """Whether the teacher is the student, of a method that has one with weights of its own."""
    return recipe.method in METHODS and METHODS[recipe.method].teacher.own_weights and recipe.teacher.kind == "shared"


def fast(recipe: Recipe) -> bool:
    """Whether the learning rate is out of the range of all papers."""
    return recipe.lr.base * recipe.lr_factor > FAST.get(recipe.optimizer.kind, math.inf)


def still(recipe: Recipe) -> bool:
    """Whether the teacher never moves from its random start."""
    teacher = recipe.teacher
    return (teacher.kind == "ema" and teacher.tau.base == 1) or (teacher.kind == "expectation" and teacher.momentum == 1)


def lacks_predictor(recipe: Recipe) -> bool:
    """Whether there is none, and nothing in its place: negatives, DINO's targets in a method that is made for them, an expectation."""
    made_for_one = recipe.method in METHODS and METHODS[recipe.method].predictor is not None
    need_one = (*VECTORS, "cross-entropy") if made_for_one else VECTORS
    return recipe.predictor is None and recipe.teacher.kind != "expectation" and all(loss.kind in need_one for loss in losses(recipe))


def mlp(recipe: Recipe) -> Any:
    """The predictor, where it is one that learns by gradients."""
    return recipe.predictor if recipe.predictor is not None and recipe.predictor.kind == "mlp" else None
