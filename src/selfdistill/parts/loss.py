"""How a prediction is compared with a target, and which views are compared.

A spec builds, for projections of `dim` and `targets` global views that the teacher sees, a module called as
`loss(p, t, pairs, progress)`, p: [V, B, D], t: [G, B, D], pairs: (student view, teacher view); `labels` alone is called as
`loss(p, labels)`. It gives the mean over pairs and images. What it remembers (a centre, a queue)
is a buffer and moves in `update`, once per optimiser step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from selfdistill.errors import Misuse, did_you_mean
from selfdistill.own import Slot
from selfdistill.parts.contrast import InfoNCE, NTXent, PairList, Swapped
from selfdistill.parts.schedule import Progress, Schedule
from selfdistill.parts.soft_cross_entropy import soft_cross_entropy
from selfdistill.parts.target import Softmax, Target
from selfdistill.spec import Positive, Spec

Pairs = Literal["cross", "one-way", "one-way-doubled"]


def pairs_of(kind: Pairs, students: int, teachers: int, split: bool = False) -> PairList:
    """(i, j): the student's view i predicts the teacher's view j.

    cross: every student view against every other global view, the symmetric loss. one-way: 0 predicts 1, not the reverse
    (SimSiam Sec. 4.6, asymmetric). one-way-doubled: the same for two pairs of views (asymmetric 2x). Local views, which come last,
    predict whatever is predicted. split: the student was given the even global views only and the teacher the odd ones.
    """
    if kind == "cross":
        return [(i, j) for i in range(students) for j in range(teachers) if i != j]
    pairs = [(n, n) if split else (2 * n, 2 * n + 1) for n in range(global_views(kind) // 2)]
    return pairs + [(local, j) for local in range(teachers, students) for _, j in pairs]


def global_views(kind: Pairs) -> int:
    """How many global views of an image the pairs need."""
    return 4 if kind == "one-way-doubled" else 2


@runtime_checkable
class OverOutputs(Protocol):
    """A loss that compares distributions over K outputs, and can say which."""

    def distributions(self, p: Tensor, t: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """(targets q [G, B, K], the student's log-probabilities [V, B, K]) of p [V, B, D] and t [G, B, D]."""
        ...


class Pairwise(nn.Module):
    """The mean over pairs of a distance between two views."""

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.distance = distance

    def forward(self, p: Tensor, t: Tensor, pairs: PairList, progress: Progress) -> Tensor:
        return torch.stack([self.distance(p[i], t[j]) for i, j in pairs]).mean()

    def update(self) -> None:
        pass


class Cosine(Spec):
    """D(p, z) = -cos(p, z), in [-1, 1] (SimSiam eq. 1)."""

    kind: Literal["cosine"] = "cosine"

    def __call__(self, p: Tensor, t: Tensor) -> Tensor:
        return -F.cosine_similarity(p, t, dim=-1).mean()

    def build(self, dim: int, targets: int = 2) -> nn.Module:
        return Pairwise(self)


class MSE(Spec):
    """|p/|p| - t/|t||^2 = 2 - 2 cos(p, t), in [0, 4] (BYOL eq. 2); without l2, |p - t|^2 (BYOL Table 20: 67.4 for 72.5)."""

    kind: Literal["mse"] = "mse"
    l2: bool = True
    """compare directions, not vectors"""

    def __call__(self, p: Tensor, t: Tensor) -> Tensor:
        if self.l2:
            p, t = F.normalize(p, dim=-1), F.normalize(t, dim=-1)
        return (p - t).square().sum(-1).mean()

    def build(self, dim: int, targets: int = 2) -> nn.Module:
        return Pairwise(self)


class CrossEntropy(Spec):
    """H(q, softmax(p / tau_s)), q what the target makes of the teacher's output (DINO eq. 1 and 3; SimSiam Sec. 4.5, both
    temperatures 1)."""

    kind: Literal["cross-entropy"] = "cross-entropy"
    temperature: Positive = 1.0
    """tau_s, the student's"""
    target: Target = Softmax()
    """how the teacher's output becomes a distribution"""

    def build(self, dim: int, targets: int = 2) -> nn.Module:
        return CrossEntropyLoss(self, dim)


class CrossEntropyLoss(nn.Module):
    """For j, i in pairs: loss += -(q_j . log softmax(p_i / tau_s)).sum(-1).mean(), with the targets of one student view added
    first: one product for each student view, not for each pair, and one target for all local views."""

    def __init__(self, spec: CrossEntropy, dim: int):
        super().__init__()
        self.temperature = spec.temperature
        self.target: Any = spec.target.build(dim)

    def forward(self, p: Tensor, t: Tensor, pairs: PairList, progress: Progress) -> Tensor:
        q = self.target(t, progress)  # [G, B, K]
        teachers = {i: tuple(j for k, j in pairs if k == i) for i in sorted({i for i, _ in pairs})}
        sums = {of: sum((q[j] for j in of[1:]), start=q[of[0]]) for of in teachers.values()}  # [B, K] each
        p = p if len(teachers) == len(p) else torch.stack([p[i] for i in teachers])
        losses = soft_cross_entropy(p, [sums[of] for of in teachers.values()], self.temperature)  # [V, B]
        return losses.sum() / (len(pairs) * p.shape[1])

    def distributions(self, p: Tensor, t: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        return self.target(t, progress), (p / self.temperature).log_softmax(-1)

    def patches(self, p: Tensor, t: Tensor, masks: Tensor, progress: Progress) -> Tensor:
        """Masked patches [M, K]: the mean over a view's masked patches, then over all views, one without masks counting 0 (iBOT
        eq. 2 as its code has it)."""
        q = self.target(t, progress)  # [M, K]
        share = masks.to(q.dtype) / masks.sum((2, 3), keepdim=True).clamp(min=1)  # [G, B, h, w]
        return (share[masks] * soft_cross_entropy(p[None], [q], self.temperature)[0]).sum() / masks.shape[:2].numel()

    def update(self) -> None:
        self.target.update()


class Consistency(Spec):
    """Mean over classes of the squared difference of softmaxes (Mean Teacher Sec. 2, its code divides by the classes)."""

    kind: Literal["consistency"] = "consistency"

    def __call__(self, p: Tensor, t: Tensor) -> Tensor:
        return (p.softmax(-1) - t.softmax(-1)).square().mean()

    def build(self, dim: int, targets: int = 2) -> nn.Module:
        return ConsistencyLoss(self)


class ConsistencyLoss(Pairwise):
    def distributions(self, p: Tensor, t: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        return t.softmax(-1), p.log_softmax(-1)


class Labels(Spec):
    """Cross-entropy of the student's logits with the labels that the run may see, the mean over all images of the batch as in
    Mean Teacher's code: an image without one counts 0."""

    kind: Literal["labels"] = "labels"

    def build(self, dim: int, targets: int = 2) -> nn.Module:
        return LabelsLoss()


class LabelsLoss(nn.Module):
    def forward(self, p: Tensor, labels: Tensor) -> Tensor:
        """p: [V, B, C], labels: [B], -1 where there is none."""
        losses = [F.cross_entropy(view, labels, ignore_index=-1, reduction="sum") for view in p]
        return torch.stack(losses).mean() / len(labels)

    def update(self) -> None:
        pass


LOSSES: dict[str, Callable[..., Tensor]] = {}
"""distances of the user's own by name: f(p [B, D], t [B, D], **options) to a scalar, the mean over the batch"""


class Own(Spec):
    """A distance of the user's own, from LOSSES. A recipe's YAML holds its name and options, never code."""

    kind: Literal["own"] = "own"
    name: str = ""
    options: dict[str, Any] = {}
    """keywords of the function"""

    def build(self, dim: int, targets: int = 2) -> nn.Module:
        if self.name not in LOSSES:
            raise Misuse(
                f"loss.name={self.name}: no loss of your own has that name.{did_you_mean(self.name, LOSSES)} Register it, "
                f'selfdistill.losses["{self.name}"] = f, in Python or in a .py file: --use FILE'
            )
        return Pairwise(partial(LOSSES[self.name], **self.options))


Loss = Annotated[Cosine | MSE | CrossEntropy | NTXent | InfoNCE | Swapped | Consistency | Labels | Own, Slot("loss")]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype.itemsize >= 4 else x.float()


class Output(NamedTuple):
    """What a network says. cls: [V, B, D], of whole views; patch: [M, D], of the masked patches of the global views."""

    cls: Tensor
    patch: Tensor | None = None

    def detach(self) -> Output:
        return Output(self.cls.detach(), None if self.patch is None else self.patch.detach())

    def wide(self) -> Output:
        """In fp32 or better."""
        return Output(_wide(self.cls), None if self.patch is None else _wide(self.patch))


class Term(Spec):
    """One term of the loss: weight x the mean over pairs and images of loss(p_i, t_j)."""

    loss: Loss = Cosine()
    on: Literal["cls", "patch"] = "cls"
    """what is compared: whole views across views, or masked patches within one (iBOT's L_MIM)"""
    pairs: Pairs = "cross"
    """cross (symmetric), one-way, or one-way-doubled (SimSiam Sec. 4.6)"""
    weight: Schedule = Schedule(base=1.0)

    @model_validator(mode="after")
    def _patches_are_distributions(self) -> Term:
        if self.on == "patch" and self.loss.kind != "cross-entropy":
            raise ValueError(f"on=patch with loss={self.loss.kind}: masked patches are compared by cross-entropy")
        return self

    def build(self, dim: int, *, views: int, split: bool = False) -> TermLoss:
        """`views`: global views of each image, more than the pairs need where another term needs them; `split` as in `pairs_of`."""
        return TermLoss(self, dim, views, split)


class TermLoss(nn.Module):
    def __init__(self, spec: Term, dim: int, views: int, split: bool):
        super().__init__()
        self.spec, self.split = spec, split
        self.loss: Any = spec.loss.build(dim, views // (2 if split else 1))

    def forward(self, p: Output, t: Output, progress: Progress, masks: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """A scalar, in fp32 or better. masks: [G, B, h, w], labels: [B], for the terms that look at them."""
        # soft_cross_entropy widens a chunk at a time: 65,536 logits of each masked patch in fp32 would be the step's largest tensor.
        p, t = p if self.spec.loss.kind == "cross-entropy" else p.wide(), t.wide()
        with torch.autocast(p.cls.device.type, enabled=False):  # or products with a queue or prototypes would be in bf16 again
            if self.spec.loss.kind == "labels":
                loss = self.loss(p.cls, labels)
            elif self.spec.on == "patch":
                loss = self.loss.patches(p.patch, t.patch, masks, progress)
            else:
                loss = self.loss(p.cls, t.cls, pairs_of(self.spec.pairs, len(p.cls), len(t.cls), self.split), progress)
        return self.spec.weight.at(progress) * loss

    def update(self) -> None:
        self.loss.update()
