"""What is wrong with a run, with embeddings, or with a backbone: the verdict, since when it holds, and the metrics it rests on."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.data.images import Images, spread
from selfdistill.data.loader import in_memory
from selfdistill.diagnose.causes import cause_of
from selfdistill.diagnose.describe import describe, ordered
from selfdistill.diagnose.metrics import ExpectationGap
from selfdistill.diagnose.verdict import Verdict, before, judge, probes, since
from selfdistill.disk import write_whole
from selfdistill.errors import Failure, Misuse
from selfdistill.evaluate.knn import knn_accuracy
from selfdistill.evaluate.ridge import ridge_accuracy
from selfdistill.recipe import Recipe
from selfdistill.train.run import DIAGNOSIS, Run, features_of
from selfdistill.train.trained import SEED, gap_of, siamese_of
from selfdistill.views.augment import views_of_pixels
from selfdistill.views.draw import permutation

IMAGES = 1_000
"""images that are looked at, of which AUGMENTATIONS are drawn for alignment and LiDAR (its paper: 1,000 and 50)"""
AUGMENTATIONS = 8


@dataclass(frozen=True)
class Diagnosis:
    """because: the verdict with evidence, cause and advice. since: step and epoch of the first probe since which it holds. of: the
    metrics of features, and of a run's projections. expectation: how near a predictor comes to it (`metrics.ExpectationGap`)."""

    verdict: str
    because: str
    of: dict[str, dict[str, float | None]]
    since: dict[str, float] | None = None
    expectation: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        found: dict[str, Any] = {"verdict": self.verdict, "because": self.because, "since": self.since, **self.of}
        if self.expectation:
            found["expectation"] = self.expectation
        return json.dumps(found, indent=2) + "\n"


def of_embeddings(z: Tensor, labels: Tensor | None = None) -> Diagnosis:
    """Of embeddings z [N, D], labels [N] or None. Without a recipe the verdict has no cause. Raises `Misuse` for another shape."""
    if z.ndim != 2:
        raise Misuse(f"{list(z.shape)} are no embeddings: [N, D] are, N images of D dimensions")
    found = describe(z)
    verdict = judge(found)
    return Diagnosis(verdict.state, str(verdict), {"features": ordered({**found, **_accuracy(z, labels)})})


def of_backbone(backbone: nn.Module, images: Images, recipe: Recipe) -> Diagnosis:
    """Of a network's features of at most 4 IMAGES images as they are."""
    images = spread(images, 4 * IMAGES)
    return of_embeddings(features_of(backbone.eval(), images, recipe), images.labels)


def of_run(run: Run, augmentations: int = 32) -> Diagnosis:
    """Of a run, from its probes, its backbone and its checkpoint; written to its diagnosis.json. augmentations: of each image, for the
    predictor. Raises `Misuse` where there is no probe yet."""
    if (verdict := given_up(run)) is not None:
        bad = next((row for row in run.metrics if row["step"] and row.get("loss") is None), None)
        found = Diagnosis(verdict.state, str(verdict), {}, bad and {key: bad[key] for key in ("step", "epoch")})
        return _written(found, run)
    began = since(run.metrics)
    if began is None:
        raise Misuse(f"{run.path}: no probe in metrics.jsonl yet (probe_every={run.recipe.probe_every}). --resume continues the run")
    last = probes(run.metrics)[-1]
    images = spread(run.source.looked_at, IMAGES)
    backbone = run.backbone if (run.path / "backbone.safetensors").exists() else siamese_of(run).backbone  # of a run that goes on
    features = of_backbone(backbone, images, run.recipe).of["features"]
    gap = gap_of(run, augmentations)
    found = Diagnosis(
        last["verdict"],
        last["because"] + before(run.metrics),
        {"features": features, "projections": ordered(describe(projections(run, images)))},
        {key: began[key] for key in ("step", "epoch")},
        gap if len(gap) == len(ExpectationGap._fields) else {},  # of a run that diverged
    )
    return _written(found, run)


def _written(found: Diagnosis, run: Run) -> Diagnosis:
    """Warns where a disk fails: what was found is found."""
    try:
        write_whole(run.path / DIAGNOSIS, found.to_json())
    except Failure as e:
        warnings.warn(str(e), stacklevel=2)
    return found


def given_up(run: Run) -> Verdict | None:
    """The verdict on a run that stopped at one step too many that was not finite, which no probe has seen; None on any other."""
    bad = [int(file.stem) for file in (run.path / "bad_steps").glob("*.json")]
    made = max((row["step"] for row in run.metrics), default=0)
    if run.ended or len(bad) <= run.recipe.max_bad_steps or max(bad) <= made:  # the run went on after it
        return None
    cause = cause_of("diverged", run.recipe)
    return Verdict("diverged", f"{len(bad)} steps were not finite, and max_bad_steps={run.recipe.max_bad_steps}.", cause.why, cause.remedy)


@torch.no_grad()
def projections(run: Run, images: Images, augmentations: int = AUGMENTATIONS) -> Tensor:
    """[A, N, D]: the student's projections, in eval mode, of as many augmentations of each image. Raises `Misuse` without a checkpoint."""
    student, recipe = siamese_of(run).student, run.recipe
    pixels = in_memory(images, recipe.views, recipe.workers).pixels
    crops = recipe.views.model_copy(update={"masks": None, "locals": None})

    def drawn(draw: int) -> Tensor:
        ids = torch.arange(len(pixels)).split(64)
        return torch.cat([student(views_of_pixels(pixels[i], i, crops, 2, SEED, draw).crops).cls for i in ids], 1)

    return torch.cat([drawn(draw) for draw in range(-(-augmentations // 2))])[:augmentations]


def _accuracy(z: Tensor, labels: Tensor | None) -> dict[str, float]:
    """Of a half of the labelled embeddings, drawn at random; the other is the bank. Nothing where a half has fewer than 20."""
    known = torch.arange(0) if labels is None else (labels >= 0).nonzero()[:, 0]
    if labels is None or len(known) < 40:
        return {}
    bank, test = known[permutation(0, 0, len(known))].tensor_split(2)
    of = z[bank], labels[bank], z[test], labels[test]
    return {"knn_top1": knn_accuracy(*of), "ridge_top1": ridge_accuracy(*of)}
