"""How a prediction is compared with a target, and which views are compared."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfdistill.spec import Spec

Pairs = Literal["cross", "one-way", "one-way-doubled"]


def pairs_of(kind: Pairs, students: int, teachers: int) -> list[tuple[int, int]]:
    """(i, j): the student's view i predicts the teacher's view j.

    cross: every student view against every other global view, the symmetric loss. one-way: 0 predicts 1, and that is all
    (SimSiam Sec. 4.6, asymmetric). one-way-doubled: the same for two pairs of views (asymmetric 2x).
    """
    if kind == "cross":
        return [(i, j) for i in range(students) for j in range(teachers) if i != j]
    return [(i, i + 1) for i in range(0, global_views(kind), 2)]


def global_views(kind: Pairs) -> int:
    """How many global views of an image the pairs need."""
    return 4 if kind == "one-way-doubled" else 2


class Cosine(Spec):
    """D(p, z) = -cos(p, z), in [-1, 1] (SimSiam eq. 1)."""

    kind: Literal["cosine"] = "cosine"

    def __call__(self, p: Tensor, t: Tensor) -> Tensor:
        return -F.cosine_similarity(p, t, dim=-1).mean()


class MSE(Spec):
    """|p/|p| - t/|t||^2 = 2 - 2 cos(p, t), in [0, 4] (BYOL eq. 2); without l2, |p - t|^2 (BYOL Table 20: 67.4 for 72.5)."""

    kind: Literal["mse"] = "mse"
    l2: bool = True
    """compare directions, not vectors"""

    def __call__(self, p: Tensor, t: Tensor) -> Tensor:
        if self.l2:
            p, t = F.normalize(p, dim=-1), F.normalize(t, dim=-1)
        return (p - t).square().sum(-1).mean()


class CrossEntropy(Spec):
    """-softmax(t / tau_t) . log softmax(p / tau_s), softmax over channels (SimSiam Sec. 4.5, both temperatures 1)."""

    kind: Literal["cross-entropy"] = "cross-entropy"
    student_temperature: float = Field(1.0, gt=0)
    teacher_temperature: float = Field(1.0, gt=0)

    def __call__(self, p: Tensor, t: Tensor) -> Tensor:
        return -((t / self.teacher_temperature).softmax(-1) * (p / self.student_temperature).log_softmax(-1)).sum(-1).mean()


Loss = Annotated[Cosine | MSE | CrossEntropy, Field(discriminator="kind")]


class Term(Spec):
    """One term of the loss: weight x the mean over pairs and images of loss(p_i, t_j)."""

    loss: Loss = Cosine()
    pairs: Pairs = "cross"
    """cross (symmetric), one-way, or one-way-doubled (SimSiam Sec. 4.6)"""
    weight: float = 1.0

    def __call__(self, p: Tensor, t: Tensor) -> Tensor:
        """p: [V, B, D] predictions, t: [G, B, D] targets; a scalar, computed in fp32 or better."""
        p, t = (x if x.dtype.itemsize >= 4 else x.float() for x in (p, t))
        pairs = pairs_of(self.pairs, p.shape[0], t.shape[0])
        return self.weight * sum((self.loss(p[i], t[j]) for i, j in pairs), start=p.new_zeros(())) / len(pairs)
