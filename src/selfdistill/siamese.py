"""The algorithm, once.

    for x in loader:                          # B images
        z = student(views(x))                 # some views of each
        t = teacher(views(x), z)              # what the teacher says of other views of the same images
        p = predictor(z)                      # identity where there is none
        loss = sum of D(p_i, stopgrad(t_j))   # the student's sample is pulled towards an estimate of an expectation
        loss.backward(); optimizer.step()
        teacher.update(student)

A method fills the slots: see `recipe.py` for what they are and `methods/` for how each paper fills them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfdistill.errors import Misuse
from selfdistill.parts.backbone import Backbone, has_batchnorm, why
from selfdistill.parts.collective import ranks
from selfdistill.parts.head import FrozenAtFirst, prototypes_shared
from selfdistill.parts.loss import Output
from selfdistill.parts.noted import Noted
from selfdistill.parts.predictor import Learned, Predictor
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.views.batch import Views


class Step(NamedTuple):
    """What one forward pass leaves: the student's projections z, its predictions p, the teacher's targets t."""

    loss: Tensor
    losses: dict[str, Tensor]
    z: Output
    p: Output
    t: Output


class Student(nn.Module):
    """Encoder and projector: crops to projections."""

    def __init__(self, backbone: Backbone, projector: nn.Module, patch_projector: nn.Module | None, masked: bool, bn_joint: bool):
        super().__init__()
        self.backbone, self.projector, self.bn_joint = backbone, projector, bn_joint
        self.patch_projector = patch_projector  # none: patches go through the projector too
        self.mask_token = nn.Parameter(torch.zeros(backbone.dim)) if masked else None

    def forward(self, crops: tuple[Tensor, ...], masks: Tensor | None = None, hide: bool = True) -> Output:
        """masks: [G, B, h, w], the patches of the global views whose projections are asked for; hidden from the encoder if `hide`."""
        if masks is None:
            whole, hidden = self.each(self.backbone, crops[0]), None  # [G, B, F]
        else:
            flat = masks.flatten(0, 1)
            cls, patches = self.backbone.tokens(crops[0].flatten(0, 1), flat if hide else None, self.mask_token, read=flat)
            whole, hidden = cls.unflatten(0, crops[0].shape[:2]), patches[flat.flatten(1)]  # [G, B, F]; [M, F], masked patches only
        h = torch.cat([whole, *(self.each(self.backbone, x) for x in crops[1:])])  # [V, B, F]
        with prototypes_shared(self.projector):
            return Output(self.each(self.projector, h), None if hidden is None else self.of_patches(hidden))  # [V, B, D]; [M, D]

    def of_patches(self, hidden: Tensor) -> Tensor:
        project = self.patch_projector or self.projector
        pair = hidden.repeat(2, 1) if len(hidden) == 1 else hidden  # BatchNorm refuses one row; two equal ones have its statistics
        return project(pair)[: len(hidden)]

    def each(self, part: nn.Module, x: Tensor) -> Tensor:
        """What a part makes of x [V, B, ...]: of each view alone where it has a BatchNorm that is to see them so, else of all at once."""
        f = part.features if isinstance(part, Backbone) else part
        if self.bn_joint or not has_batchnorm(part):
            return f(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return torch.stack([f(view) for view in x])


class Siamese(nn.Module):
    """Student, predictor, teacher and loss of a recipe. The loop calls forward, after_step and param_groups, `forget` for a step that
    is not made, and reads `networks`, `backbone` and `changed_by_forward`; probes also read `terms`, diagnoses `outputs`."""

    def __init__(self, recipe: Recipe, images: int, backbone: Backbone | None = None):
        """`images`: how many the data set has. `backbone`: in place of the recipe's, randomly initialised."""
        super().__init__()
        size, channels = recipe.views.size, recipe.encoder.channels
        backbone = recipe.encoder.build(size) if backbone is None else backbone
        if recipe.views.locals:
            local = recipe.views.locals.size
            try:
                backbone.width(channels, local)
            except (AssertionError, RuntimeError) as e:
                raise Misuse(f"views.locals.size={local}: the encoder does not take {local} x {local} crops: {why(e)}") from e
        projector = recipe.projector.build(backbone.dim) if recipe.projector else nn.Identity()
        patch_projector = recipe.patch_projector.build(backbone.dim) if recipe.patch_projector else None
        dim = recipe.projector.out if recipe.projector else backbone.dim
        masked = recipe.views.masks is not None
        if recipe.views.masks:
            backbone.check_patches(size // recipe.views.masks.patch, channels, size)
        self.student = Student(backbone, projector, patch_projector, masked, recipe.bn_joint)
        self.predictor: Any = recipe.predictor.build(dim) if recipe.predictor else Learned()
        self.teacher: Any = recipe.teacher.build(self.student, dim, images)
        self.terms = nn.ModuleDict(
            {name: term.build(dim, views=recipe.global_views, split=recipe.split) for name, term in recipe.terms.items()}
        )
        self.recipe = recipe
        if recipe.micro_batch(ranks()[1]) == 1 and has_batchnorm(self):
            raise Misuse(
                f"batch_size={recipe.batch_size} is one image for each of {ranks()[1]} devices and accumulate={recipe.accumulate} "
                "micro-batches, and BatchNorm of one image has no variance: raise batch_size or lower accumulate"
            )

    def forward(self, views: Views, progress: Progress) -> Step:
        z, p, t = self.outputs(views)
        losses = {name: term(p, t, progress, views.masks, views.labels) for name, term in self.terms.items()}
        return Step(sum(losses.values(), z.cls.new_zeros(())), losses, z, p, t)

    def outputs(self, views: Views) -> tuple[Output, Output, Output]:
        """(z, p, t): the student's projections, its predictions, the teacher's targets."""
        seen, predicted = (views.crops[0][0::2], views.crops[0][1::2]) if self.recipe.split else (views.crops[0], views.crops[0])
        z = self.student((seen, *views.crops[1:]), views.masks)  # cls [V, B, D]; patch [M, D], masked patches only
        t = self.teacher(predicted, views.ids, views.masks, z)  # cls [G, B, D]; patch [M, D]
        if self.recipe.stop_gradient:
            t = t.detach()  # the only stop-gradient in the package
        self.predictor.solve(z.cls, t.cls)  # in closed form, where it is not learned
        return z, Output(self.student.each(self.predictor, z.cls), z.patch), t

    def after_step(self, progress: Progress) -> None:
        """Once per optimiser step, never per micro-batch. `progress` counts that step."""
        self.teacher.update(self.student, progress)
        self.predictor.update(progress)
        for term in self.terms.children():
            term.update()  # type: ignore[operator]

    def forget(self, progress: Progress) -> None:
        """In place of `after_step`, for a step that is not made: drops what its forward passes noted. What is `timed`, moved by the number
        of steps and not by a step, moves all the same: a snapshot that is due would else come an epoch later."""
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Noted):
                    value.clear()
        if getattr(self.teacher, "timed", False):
            self.teacher.update(self.student, progress)
        if getattr(self.predictor, "timed", False):
            self.predictor.update(progress)

    def changed_by_forward(self) -> list[Tensor]:
        """Statistics of BatchNorm, and a predictor that is solved on each batch; everything else moves in `after_step`."""
        return [buffer for part in (*self.networks.values(), self.predictor) for buffer in part.buffers()]

    @property
    def networks(self) -> dict[str, Student]:
        """The student, and the teacher where it has weights of its own."""
        return {"student": self.student, **({"teacher": self.teacher.net} if self.recipe.teacher.own_weights else {})}

    @property
    def backbone(self) -> Backbone:
        """The encoder that the paper evaluates."""
        return self.networks[self.recipe.kept].backbone

    def param_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters by what becomes of them: `lr_scale`, `lr_decay`, `weight_decayed`, `frozen_epochs`."""
        h = self.recipe.predictor
        kept = {id(m.weight): m.epochs for m in self.modules() if isinstance(m, FrozenAtFirst)}
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for part in ("student", "predictor", "terms"):
            scale, decay = (h.lr_scale, h.lr_decay) if part == "predictor" and isinstance(h, Predictor) else (1.0, True)
            for p in self.get_submodule(part).parameters():
                decayed = p.ndim > 1 or self.recipe.decay_norm_and_bias
                fate = {"lr_scale": scale, "lr_decay": decay, "weight_decayed": decayed, "frozen_epochs": kept.get(id(p), 0.0)}
                if p.requires_grad:
                    groups.setdefault((part, *fate.values()), {"params": [], **fate})["params"].append(p)
        return list(groups.values())
