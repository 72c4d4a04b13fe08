"""What a finished run is worth, in the few numbers that the papers' tables compare."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

METRICS = {
    "knn": "kNN top-1 on held-out images",
    "linear": "linear probe top-1 on held-out images",
    "output_std": "1 is isotropic, 0 constant (SimSiam Sec. 4.1)",
    "rank": "effective rank of the outputs",
    "verdict": "healthy, or the collapse's name",
    "seconds": "wall time of the training, probes included",
    "loss": "of the last step",
    "alignment": "Wang & Isola eq. 1: lower is closer",
    "uniformity": "Wang & Isola eq. 2: lower is more uniform",
    "entropy": "of the targets, as a share of ln K",
    "error": "of the classifier, on held-out images (Mean Teacher): the teacher's where there is one",
    "random": "kNN top-1 of the encoder before training",
    "pixels": "kNN top-1 of raw pixels",
    "ahead": "kNN of the teacher less its student's, the mean over the probes (DINO Fig. 6)",
    "gap_predictor": "|h(z1) - E[z2]|^2 (SimSiam Sec. 5.2)",
    "gap_projection": "|z1 - E[z2]|^2, what the predictor must beat",
}
"""what a claim may name"""

Figures = dict[str, Any]
"""a run's value of each metric; None where it has none"""
Results = Mapping[str, Mapping[int, Figures]]
"""row to seed to figures; a run that did not end is not there"""


def figures_of(summary: Mapping[str, Any]) -> Figures:
    """A run's summary.json by the names that tables use."""
    entropy, outputs = summary.get("target_entropy"), summary.get("target_outputs")
    return {
        **{name: summary.get(name) for name in METRICS},
        "knn": summary.get("knn_top1"),
        "linear": summary.get("linear_top1"),
        "rank": summary.get("effective_rank"),
        "seconds": summary.get("wall_seconds"),
        "entropy": entropy / math.log(outputs) if entropy is not None and outputs else None,
        "ahead": summary.get("teacher_ahead"),
        "error": summary.get("error_teacher", summary.get("error_student")),
        "random": summary.get("knn_random_init"),
        "pixels": summary.get("knn_raw_pixels"),
    }


def mean_and_sd(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Over seeds, of those that have a value; None where none has. The sd of one is 0."""
    known = [v for v in values if v is not None]
    return (statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else 0.0) if known else None


def verdicts(values: Iterable[str | None]) -> str:
    """`healthy`, or how often each where seeds differ."""
    counts = Counter(v for v in values if v is not None)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {v}" for v, n in counts.most_common())
