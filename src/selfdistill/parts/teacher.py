"""The four teachers: what the student is asked to predict, and how that moves.

A teacher is called as `teacher(crops, ids, masks, z)`: the G global views [G, B, C, S, S], the images' places in the data set
[B], the student's masks, and the student's own output z. It answers with targets for the global views, [G, B, D], and for the
masked patches, which it sees; and it moves once per optimiser step, in `update`.
Copies run in train mode, as in BYOL's and DINO's code: their BatchNorm normalises by the batch.
"""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from timm.layers.drop import DropBlock2d, DropPath
from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth
from torchvision.ops.drop_block import DropBlock2d as DropBlock

from selfdistill.parts.collective import gather
from selfdistill.parts.loss import Output
from selfdistill.parts.noted import Noted
from selfdistill.parts.schedule import Progress, Schedule
from selfdistill.spec import Count, Spec

DROPS: dict[type[nn.Module], str] = {
    DropPath: "drop_prob",
    DropBlock2d: "drop_prob",
    PatchDropout: "prob",
    PatchDropoutWithIndices: "prob",
    StochasticDepth: "p",
    DropBlock: "p",  # torchvision's
    _DropoutNd: "p",
    nn.MultiheadAttention: "dropout",
    nn.Module: "drop_rate",  # of timm's networks, in their heads
}
"""what drops parts of a network, and the field that says how much"""


class Shared(Spec):
    """The student itself (SimSiam, SimCLR, SwAV): no second pass."""

    kind: Literal["shared"] = "shared"
    own_weights: ClassVar[bool] = False

    def build(self, student: nn.Module, dim: int, images: int) -> nn.Module:
        return SharedTeacher(student)


class EMA(Spec):
    """xi <- tau xi + (1 - tau) theta after every step (BYOL eq. 1, Mean Teacher, DINO, MoCo)."""

    kind: Literal["ema"] = "ema"
    tau: Annotated[Schedule, AfterValidator(lambda tau: tau.within(0.0, 1.0))] = Schedule(base=0.996, end=1.0)
    """the decay rate; 0 copies the student, 1 never moves (BYOL Table 5a)"""
    own_weights: ClassVar[bool] = True

    def build(self, student: nn.Module, dim: int, images: int) -> nn.Module:
        return EMATeacher(student, self)


class Snapshot(Spec):
    """The student as it was: copied every k steps (the k-step alternation of SimSiam Sec. 5.2) or every epoch (DINO Fig. 6)."""

    kind: Literal["snapshot"] = "snapshot"
    every: Count | Literal["epoch"] = 1
    """steps between copies, or epoch"""
    lag: Literal[0, 1] = 0
    """0: the last copy teaches, which with every=1 is the student itself; 1: the one before it, the previous iteration of DINO Fig. 6"""
    own_weights: ClassVar[bool] = True

    def build(self, student: nn.Module, dim: int, images: int) -> nn.Module:
        return SnapshotTeacher(student, self)


class Expectation(Spec):
    """A memory eta_x per image: the expectation over augmentation, without a predictor (SimSiam Sec. 5.2)."""

    kind: Literal["expectation"] = "expectation"
    momentum: float = Field(0.8, ge=0, le=1)
    """m in eta_x <- m eta_x + (1 - m) z(T'(x))"""
    own_weights: ClassVar[bool] = False

    def build(self, student: nn.Module, dim: int, images: int) -> nn.Module:
        return ExpectationTeacher(self, images, dim)


class SharedTeacher(nn.Module):
    """A second pass only where the student does not see all that it is to predict: under masks."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self._student = (student,)  # not a part of this one: its weights are listed, saved and moved once

    def forward(self, crops: Tensor, ids: Tensor, masks: Tensor | None, z: Output) -> Output:
        if masks is not None:
            return self._student[0]((crops,), masks, hide=False)  # cls [G, B, D], patch [M, D]
        return Output(z.cls[: len(crops)])  # [G, B, D]

    def update(self, student: nn.Module, progress: Progress) -> None:
        pass


class Copy(nn.Module):
    """A student of its own weights that no gradient reaches."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.net = copy.deepcopy(student).requires_grad_(False)
        for module in self.net.modules():  # a target is drawn from augmentation, not from dropping parts of the network
            for of, rate in DROPS.items():
                if isinstance(module, of) and isinstance(vars(module).get(rate), int | float):
                    setattr(module, rate, 0.0)

    @torch.no_grad()
    def forward(self, crops: Tensor, ids: Tensor, masks: Tensor | None, z: Output) -> Output:
        return self.net((crops,), masks, hide=False)  # cls [G, B, D], patch [M, D]

    @torch.no_grad()
    def follow(self, student: nn.Module, tau: float) -> None:
        """Parameters move by lerp, integer buffers are copied; float buffers (BatchNorm statistics) are the teacher's own."""
        torch._foreach_lerp_(list(self.net.parameters()), list(student.parameters()), 1 - tau)
        for mine, theirs in zip(self.net.buffers(), student.buffers(), strict=True):
            if not mine.is_floating_point():
                mine.copy_(theirs)


class EMATeacher(Copy):
    def __init__(self, student: nn.Module, spec: EMA):
        super().__init__(student)
        self.tau = spec.tau

    def update(self, student: nn.Module, progress: Progress) -> None:
        self.follow(student, self.tau.at(progress))


class SnapshotTeacher(Copy):
    """A copy of all that the student is, BatchNorm's statistics too: they are those of its weights."""

    timed = True

    def __init__(self, student: nn.Module, spec: Snapshot):
        super().__init__(student)
        self.every = spec.every
        self.next = copy.deepcopy(self.net) if spec.lag else None

    def update(self, student: nn.Module, progress: Progress) -> None:
        """`progress` counts the step just made."""
        if progress.at_epoch_end if self.every == "epoch" else progress.step % self.every == 0:
            if self.next is None:
                self.net.load_state_dict(student.state_dict())
            else:
                self.net.load_state_dict(self.next.state_dict())
                self.next.load_state_dict(student.state_dict())


class ExpectationTeacher(nn.Module):
    """eta [N, D] of l2-normalised projections, 4 N D bytes; an image not seen yet has eta_x = z."""

    eta: Tensor
    seen: Tensor

    def __init__(self, spec: Expectation, images: int, dim: int):
        super().__init__()
        self.m = spec.momentum
        self.register_buffer("eta", torch.zeros(images, dim))
        self.register_buffer("seen", torch.zeros(images, dtype=torch.bool))
        self._new: Noted[tuple[Tensor, Tensor]] = Noted()

    def forward(self, crops: Tensor, ids: Tensor, masks: Tensor | None, z: Output) -> Output:
        now = F.normalize(z.cls[: len(crops)].to(self.eta.dtype), dim=-1)
        m = self.m * self.seen[ids].to(now.dtype)[:, None]  # [B, 1]
        t = m * self.eta[ids] + (1 - m) * now  # [G, B, D]
        if torch.is_grad_enabled():  # a step of training, which an update will follow
            self._new.append((gather(ids), gather(t.mean(0).detach())))
        return Output(t)

    def update(self, student: nn.Module, progress: Progress) -> None:
        for ids, eta in self._new:
            self.eta[ids] = eta
            self.seen[ids] = True
        self._new.clear()
