"""The state of a run in one word, with the evidence and what to try."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from selfdistill.recipe import Recipe

State = Literal["healthy", "collapsed", "dimensional-collapse", "uniform-target", "dominated-target", "diverged"]

COLLAPSED_STD = 0.2
"""of output_std: a healthy run is near 1, SimSiam without stop-gradient goes to 0 (Fig. 2)"""
LOW_RANK = 0.02
"""effective rank over the output's dimension (or the number of samples, if smaller) below which dimensions are lost"""


UNIFORM, DOMINATED = 0.98, 0.1
"""of ln K: entropy of the targets above it is uniform, entropy of their mean below it is one output"""
VARIED_STD = 0.5
"""of output_std: outputs that differ this much are no uniform ones; a soft target (SimSiam Sec. 4.5, temperature 1) only looks it"""


@dataclass(frozen=True)
class Verdict:
    state: State
    evidence: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.evidence}" + (f" {self.advice}" if self.advice else "")


def judge(metrics: Mapping[str, float], recipe: Recipe) -> Verdict:
    """From a probe's `loss`, `output_std`, `effective_rank` and `rank_limit`, the most that rank could be; and of targets that are
    distributions over K outputs `target_entropy`, `target_usage_entropy` and `target_outputs`, which is K. Accuracy is no evidence:
    chance level alone is no collapse (SimSiam footnote 4)."""
    loss, std = metrics["loss"], metrics["output_std"]
    rank, limit = metrics["effective_rank"], metrics["rank_limit"]
    if not all(math.isfinite(v) for v in (loss, std, rank)):
        return Verdict("diverged", f"loss {loss}, output_std {std}.", "Lower lr, add a warm-up (lr.warmup=10) or clip=... gradients.")
    if metrics.get("target_entropy") is not None:
        most = math.log(metrics["target_outputs"])
        h, usage = metrics["target_entropy"], metrics["target_usage_entropy"]
        if h > UNIFORM * most and std < VARIED_STD:
            evidence = f"the targets' entropy is {h:.2f} of ln K = {most:.2f}, loss {loss:.2f}: every output is alike."
            return Verdict("uniform-target", evidence, "Sharpen: a lower target temperature than the student's (DINO Fig. 7).")
        collapsing = std < COLLAPSED_STD and usage < UNIFORM * most and recipe.stop_gradient  # on its way: the entropy falls for long
        if usage < DOMINATED * most or collapsing:
            few = f"{max(1, round(math.exp(usage)))} of {metrics['target_outputs']:.0f} outputs dominate"
            evidence = f"over the batch the targets' entropy is {usage:.2f} of ln K = {most:.2f}, output_std {std:.2f}: {few}."
            advice = "Centre the targets (target=centre with momentum=0.9) or use target=sinkhorn (DINO Fig. 7)."
            return Verdict("dominated-target", evidence, advice)
    if std < COLLAPSED_STD:
        return Verdict("collapsed", f"output_std {std:.3f} (1 is isotropic, 0 constant), loss {loss:.3f}.", _missing(recipe))
    if rank < max(2.0, LOW_RANK * limit):
        evidence = f"effective rank {rank:.1f} of at most {limit:.0f}, output_std {std:.2f}: the outputs span few dimensions."
        return Verdict("dimensional-collapse", evidence, _missing(recipe))
    return Verdict("healthy", f"output_std {std:.2f}, effective rank {rank:.0f} of at most {limit:.0f}.")


def _missing(recipe: Recipe) -> str:
    """Which ingredient is not there, in the order in which the papers found them to matter."""
    if not recipe.stop_gradient:
        return "Without stop-gradient both branches go to one constant (SimSiam Fig. 2): stop_gradient=true."
    vectors = all(term.loss.kind in ("cosine", "mse", "consistency") for term in recipe.terms.values())
    if vectors and recipe.predictor is None and recipe.teacher.kind != "expectation":
        return "Without predictor the stop-gradient does nothing but halve the gradient (SimSiam Table 1a, BYOL Table 5b): predictor=mlp."
    if recipe.predictor is not None and not recipe.predictor.trainable:
        return "A fixed random predictor cannot learn the expectation (SimSiam Table 1b): predictor.trainable=true."
    if recipe.optimizer.kind == "lars" and recipe.teacher.kind == "shared":
        return "BYOL without target network needs a near-optimal predictor (Table 21): predictor.lr_scale=10."
    return "All ingredients are there: lower lr, more weight decay, or BatchNorm in the heads (projector.bn=all)."
