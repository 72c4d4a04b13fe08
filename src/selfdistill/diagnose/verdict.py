"""The state of a run in one word, with the evidence, its cause and what to try."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from selfdistill.diagnose.causes import State, cause_of
from selfdistill.diagnose.ingredients import over_classes
from selfdistill.diagnose.metrics import LIVE
from selfdistill.recipe import Recipe

COLLAPSED_STD = 0.2
"""of output_std: a healthy run is near 1, SimSiam without stop-gradient goes to 0 (Fig. 2)"""
LOW_RANK = 1 / 3
"""of ln(rank_limit): the entropy of the singular values, which is ln(effective rank), below it has lost dimensions. 0 is one direction,
1 all of them alike"""
SPANNED = 1 / 2
"""of ln(rank_limit): ln of the directions that vary at all. Stricter than LOW_RANK: a direction that does not vary is beyond doubt"""
ONE_LINE = 1.05
"""of direction_rank: below it 97 % of what the directions vary is along one line, as of two points, whatever noise adds to the rank;
healthy runs of the papers' recipes have 2 and more"""
ABSURD = 1e6
"""a loss beyond it has diverged, though finite: those of the methods start at ln K, some 10, or below"""
UNIFORM, DOMINATED = 0.98, 0.1
"""of ln K: entropy of the targets above it is uniform, entropy of their mean below it is one output"""
FALLING = 0.75
"""of ln K: targets whose entropy is below it, while outputs vary little, are on their way to one output; above it they may as well become
uniform (DINO without BatchNorm in its head, digits: 0.82 after an epoch, 0.98 after two)"""
TOLD_APART = 0.2
"""of ln K: H(mean q) - H(q, p), what the student says of a view's target from another view, at most their mutual information (Barber &
Agakov 2003). Above it images are told apart, however small output_std is: a mean that all outputs share may grow long, and centring
takes it away"""
VARIED_STD = 0.7
"""of output_std: outputs that differ this much are no uniform ones; a soft target (SimSiam Sec. 4.5, temperature 1) only looks it"""

SHARED_MEAN = (
    "subtract the mean that they share, most of their length, as of an untrained network's features, before cosines are taken; see in "
    "effective_rank and ridge_top1 whether the rest tells images apart."
)


@dataclass(frozen=True)
class Verdict:
    """evidence: the numbers. cause: the ingredient that the recipe lacks, or the knob. advice: what to try."""

    state: State
    evidence: str
    cause: str = ""
    advice: str = ""

    @property
    def because(self) -> str:
        """All but the state."""
        parts = [self.evidence, self.cause and f"Why: {self.cause}", self.advice and f"Try: {self.advice}"]
        return " ".join(part for part in parts if part)

    def __str__(self) -> str:
        return f"{self.state}: {self.because}"


def judge(metrics: Mapping[str, Any], recipe: Recipe | None = None) -> Verdict:
    """From `describe.spread_of`: `output_std`, `effective_rank` and `rank_limit`, the most that rank could be, and where they are there
    `live_channels`, `spanned`, and `direction_rank`, for lengths of a heavy tail, which hide the rank; `loss` where there is one; and of
    targets that are distributions over K outputs `target_entropy`, `target_usage_entropy`, `target_outputs`, which is K, and `target_kl` if
    it is known. Without `recipe` there is no cause. Accuracy is no evidence: chance level alone is no collapse (SimSiam footnote 4)."""
    state, evidence = _state(metrics, recipe)
    if recipe is None:
        return Verdict(state, evidence, advice=SHARED_MEAN if state == "collapsed" else "")
    if state == "healthy":
        return Verdict(state, evidence)
    cause = cause_of(state, recipe)
    return Verdict(state, evidence, cause.why, cause.remedy)


def _state(metrics: Mapping[str, Any], recipe: Recipe | None) -> tuple[State, str]:
    loss, std = metrics.get("loss"), metrics["output_std"]
    rank, limit = max(metrics["effective_rank"], metrics.get("direction_rank", 0.0)), metrics["rank_limit"]
    beside = "" if loss is None else f", loss {loss:.3f}"
    if not all(math.isfinite(v) for v in (loss or 0.0, std, rank)) or abs(loss or 0.0) > ABSURD:
        return "diverged", f"output_std {std:.3g}" + ("." if loss is None else f", loss {loss:.3g}.")
    told = _told(metrics)
    if metrics.get("target_entropy") is not None:
        if recipe is not None and over_classes(recipe):
            return _of_classes(metrics, beside)
        if (found := _of_targets(metrics, beside, recipe, told)) is not None:
            return found
    of_rank = f"effective rank {rank:.1f} of at most {limit:.0f}"
    if std < COLLAPSED_STD and not told:
        live = metrics.get("live_channels", 0)
        if not live:
            return "collapsed", f"output_std {std:.3f} (1 is isotropic, 0 constant){beside}."
        return "dimensional-collapse", f"output_std {std:.3f}, {of_rank}: {live} channels vary, the others are constant."
    along = metrics.get("direction_rank", limit)
    if limit > 1 and along < ONE_LINE:
        return "dimensional-collapse", f"direction rank {along:.2f}, output_std {std:.2f}: the outputs lie along one line."
    spanned = metrics.get("spanned", limit)
    if limit > 1 and (rank < limit**LOW_RANK or spanned <= limit**SPANNED):
        few = "the outputs span few dimensions" if rank < limit**LOW_RANK else f"{spanned} directions vary, the others are constant"
        return "dimensional-collapse", f"{of_rank}, output_std {std:.2f}: {few}."
    return "healthy", f"output_std {std:.2f}, {of_rank}" + (f"; {told}." if std < COLLAPSED_STD else ".")


def _told(metrics: Mapping[str, Any]) -> str:
    """How far targets tell images apart, where it is far; nothing where it is not, or where there are no distributions."""
    if metrics.get("target_entropy") is None or metrics.get("target_kl") is None:
        return ""
    most = math.log(metrics["target_outputs"])
    told = metrics["target_usage_entropy"] - metrics["target_entropy"] - metrics["target_kl"]
    return f"of a target another view tells {told:.2f} nats of ln K = {most:.2f}" if told > TOLD_APART * most else ""


def _of_targets(metrics: Mapping[str, Any], beside: str, recipe: Recipe | None, told: str) -> tuple[State, str] | None:
    """Of a cross-entropy, which has two ways to collapse (DINO Sec. 5.3); None where neither is taken."""
    std, outputs, h, usage = (metrics[k] for k in ("output_std", "target_outputs", "target_entropy", "target_usage_entropy"))
    most = math.log(outputs)
    if h > UNIFORM * most and std < VARIED_STD:
        return "uniform-target", f"the targets' entropy is {h:.2f} of ln K = {most:.2f}{beside}: every output is alike."
    stopped = recipe is None or recipe.stop_gradient
    falling = h < FALLING * most and usage < UNIFORM * most
    on_its_way = std < COLLAPSED_STD and falling and stopped and not told  # the entropy falls for long
    if usage < DOMINATED * most or on_its_way:
        few = f"{max(1, round(math.exp(usage)))} of {outputs:.0f} outputs dominate"
        evidence = f"over the batch the targets' entropy is {usage:.2f} of ln K = {most:.2f}, output_std {std:.2f}: {few}."
        return "dominated-target", evidence
    return None


def _of_classes(metrics: Mapping[str, Any], beside: str) -> tuple[State, str]:
    """Of a consistency loss, which any constant brings to 0, uniform or not: what distributions over classes say of their image is the
    mutual information of the two, H(mean q) - mean H(q). Soft ones say little, and are none the worse while their logits vary."""
    most, h, usage = math.log(metrics["target_outputs"]), metrics["target_entropy"], metrics["target_usage_entropy"]
    std = metrics["output_std"]
    evidence = f"the targets' entropy is {h:.2f}, of their mean {usage:.2f}, ln K = {most:.2f}, output_std {std:.2f}{beside}"
    if usage - h < (1 - UNIFORM) * most and std < LIVE:
        return "collapsed", f"{evidence}: every image gets the same."
    return "healthy", f"{evidence}."


def probes(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of a metrics.jsonl that a probe wrote."""
    return [row for row in rows if row.get("verdict")]


def since(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of the lines of a metrics.jsonl, the first probe since which the last verdict holds without a break; None before any probe."""
    found = probes(rows)
    held = list(takewhile(lambda row: row["verdict"] == found[-1]["verdict"], reversed(found)))
    return held[-1] if held else None


def before(rows: Iterable[Mapping[str, Any]]) -> str:
    """What else the probes of a metrics.jsonl have said, healthy left out: a sentence, or nothing. A probe looks at one step, and a run
    that does not settle, as DINO without its momentum teacher, may look healthy in the last."""
    said = [row["verdict"] for row in probes(rows)]
    others = Counter(state for state in said if state not in ("healthy", *said[-1:]))
    return f" Of {len(said)} probes {', '.join(f'{n} said {state}' for state, n in others.items())}." if others else ""


def below_start(summary: Mapping[str, Any]) -> str:
    """Of a summary.json whose kNN is below that of the encoder before its first step: a sentence that says so, else nothing. No verdict
    does: outputs may be spread out and say nothing of the classes (DINO without its momentum teacher, digits: kNN 0.37 for 0.55)."""
    knn, start = summary.get("knn_top1"), summary.get("knn_random_init")
    if "knn_at_start" in summary:  # of the probes' share of the images, as is the last probe's
        knn, start = summary.get("knn_at_end", knn), summary["knn_at_start"]
    if knn is None or start is None or knn >= start or summary.get("verdict") == "diverged":
        return ""
    return (
        f"kNN {knn:.3f} is below the {start:.3f} before the first step: what the outputs learned to differ by is not what the labels name."
    )
