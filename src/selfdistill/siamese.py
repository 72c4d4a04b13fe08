"""The algorithm, once.

    for x in loader:                          # B images
        z = student(views(x))                 # some views of each
        p = predictor(z)                      # identity where there is none
        t = teacher(views(x), z)              # what the teacher says of other views of the same images
        loss = sum of D(p_i, stopgrad(t_j))   # the student's sample is pulled towards an estimate of an expectation
        loss.backward(); optimizer.step()
        teacher.update(student)

A method fills the slots: see `recipe.py` for what they are and `methods/` for how each paper fills them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfdistill.parts.encoder import Backbone
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.views.batch import Views


class Step(NamedTuple):
    """What one forward pass leaves. z, p: [V, B, D]; t: [G, B, D]."""

    loss: Tensor
    losses: dict[str, Tensor]
    z: Tensor
    p: Tensor
    t: Tensor


class Student(nn.Module):
    """Encoder and projector: crops to projections. BatchNorm sees each view alone, or all views of one size together."""

    def __init__(self, backbone: Backbone, projector: nn.Module, bn_joint: bool):
        super().__init__()
        self.backbone, self.projector, self.bn_joint = backbone, projector, bn_joint

    def forward(self, crops: tuple[Tensor, ...]) -> Tensor:
        h = torch.cat([self.each(self.backbone, x) for x in crops])  # [V, B, F]
        return self.each(self.projector, h)  # [V, B, D]

    def each(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.bn_joint:
            return f(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return torch.stack([f(view) for view in x])


class Siamese(nn.Module):
    """Student, predictor, teacher and loss of a recipe. `train/` calls forward, after_step and param_groups, nothing else."""

    def __init__(self, recipe: Recipe, images: int, encoder: nn.Module | None = None):
        """`images`: how many the data set has. `encoder`: a module of the user's own in place of the recipe's."""
        super().__init__()
        size, channels = recipe.views.size, recipe.encoder.channels
        backbone = recipe.encoder.build(size) if encoder is None else Backbone(encoder, channels, size)
        projector = recipe.projector.build(backbone.dim) if recipe.projector else nn.Identity()
        dim = recipe.projector.out if recipe.projector else backbone.dim
        self.student = Student(backbone, projector, recipe.bn_joint)
        self.predictor: nn.Module = recipe.predictor.build(dim) if recipe.predictor else nn.Identity()
        self.teacher: Any = recipe.teacher.build(self.student, dim, images)
        self.recipe = recipe

    def forward(self, views: Views) -> Step:
        z = self.student(views.crops)  # [V, B, D]
        p = self.student.each(self.predictor, z)  # [V, B, D]
        t = self.teacher(views.crops[0], views.ids, z)  # [G, B, D]
        if self.recipe.stop_gradient:
            t = t.detach()  # the only stop-gradient in the package
        losses = {name: term(p, t) for name, term in self.recipe.terms.items()}
        return Step(sum(losses.values(), z.new_zeros(())), losses, z, p, t)

    def after_step(self, progress: Progress) -> None:
        """Once per optimiser step, never per micro-batch. `progress` counts that step."""
        self.teacher.update(self.student, progress)

    @property
    def backbone(self) -> Backbone:
        """The encoder that the paper evaluates."""
        return (self.teacher.net if self.recipe.keep == "teacher" else self.student).backbone

    def param_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters by what their learning rate and weight decay do: `lr_scale`, `lr_decay`, `weight_decayed`."""
        h = self.recipe.predictor
        parts = [(self.student, 1.0, True), (self.predictor, h.lr_scale if h else 1.0, h.lr_decay if h else True)]
        groups = []
        for module, scale, decay in parts:
            for matrices in (True, False):
                params = [p for p in module.parameters() if p.requires_grad and (p.ndim > 1) == matrices]
                weight_decayed = matrices or self.recipe.decay_norm_and_bias
                if params:
                    groups.append({"params": params, "lr_scale": scale, "lr_decay": decay, "weight_decayed": weight_decayed})
        return groups
