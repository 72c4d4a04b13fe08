"""What one step says about collapse: the metrics of its projections, targets and distributions, and the verdict on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfdistill.diagnose import metrics, outputs
from selfdistill.diagnose.describe import spread_of
from selfdistill.diagnose.verdict import Verdict, judge
from selfdistill.parts.collective import alone
from selfdistill.parts.loss import OverOutputs, pairs_of
from selfdistill.parts.schedule import Progress
from selfdistill.siamese import Siamese, Step
from selfdistill.views.draw import evenly_spaced

SAMPLES = 2_048
"""projections that are looked at: a rank of 2,048 needs as many, and two SVDs cost 2.4 seconds at that"""
PATCHES = 512
"""masked patches that are looked at: a batch has thousands, of 65,536 outputs each"""


@torch.no_grad()
def collapse(made: Step, siamese: Siamese, now: Progress) -> tuple[dict[str, Any], Verdict]:
    """(collapse metrics of the student, of a teacher with weights of its own, and of both as distributions, those of masked patches as
    `patch_...`; the verdict, which is on whole views)."""
    z, p, t = (x.cls.detach().float() for x in (made.z, made.p, made.t))  # [V, B, D], [V, B, D], [G, B, D]
    flat = _some(z)
    found: dict[str, Any] = {
        **spread_of(flat),
        "alignment": metrics.alignment(z[0], z[1]) if len(t) > 1 else None,  # one-way: the student sees one global view
        "uniformity": metrics.uniformity(z[0]),
        "target_entropy": None,  # of targets that are distributions; cosine and MSE compare vectors
    }
    if siamese.recipe.teacher.own_weights:
        found |= {"teacher_output_std": metrics.output_std(_some(t)), "teacher_effective_rank": metrics.effective_rank(_some(t))}
    for name, term in siamese.recipe.terms.items():
        loss = siamese.get_submodule(f"terms.{name}.loss")
        if term.on == "patch":
            if isinstance(loss, OverOutputs) and made.p.patch is not None and made.t.patch is not None and len(made.p.patch):
                said, of = (_some(x[None], PATCHES)[None].float() for x in (made.p.patch, made.t.patch))  # [1, M, K] each
                found |= {f"patch_{key}": value for key, value in of_distributions(*_alone(loss, said, of, now), [0], [0]).items()}
            continue
        pairs = pairs_of(term.pairs, min(len(p), len(t)), len(t), siamese.recipe.split)  # of global views
        i, j = ([pair[side] for pair in pairs] for side in (0, 1))
        found["agreement"] = metrics.agreement(p[i], t[j])
        if isinstance(loss, OverOutputs):
            found |= of_distributions(*_alone(loss, p[: len(t)], t, now), i, j)
    return found, judge({"loss": float(made.loss.detach()), **found}, siamese.recipe)


def _alone(loss: OverOutputs, p: Tensor, t: Tensor, now: Progress) -> tuple[Tensor, Tensor]:
    """(targets, the student's log-probabilities), [G, B, K] each, of this process's share: the others do not probe."""
    with alone():
        return loss.distributions(p, t, now)


def of_distributions(q: Tensor, log_p: Tensor, i: list[int], j: list[int]) -> dict[str, float]:
    """DINO Fig. 7 and more, of targets q and the student's log-probabilities [G, B, K], whose views i predict the views j."""
    every, said, of = q.flatten(0, 1), log_p[i].flatten(0, 1), q[j].flatten(0, 1)
    return {
        "target_outputs": q.shape[-1],
        "target_entropy": outputs.entropy(every),
        "target_usage_entropy": outputs.usage_entropy(every),
        "target_usage": outputs.usage(every),
        "target_kl": outputs.kl(of, said),
        "student_entropy": outputs.entropy(log_p.flatten(0, 1).exp()),
        "same_output": outputs.same_output(of, said),
    }


def _some(z: Tensor, most: int = SAMPLES) -> Tensor:
    """At most so many rows of z [V, B, D], spread evenly."""
    flat = z.flatten(0, 1)
    return flat if len(flat) <= most else flat[evenly_spaced(len(flat), most).to(z.device)]
