"""What metrics.jsonl looks like: loss, std and kNN as in SimSiam Fig. 2, entropy and KL as in DINO Fig. 7."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfdistill.diagnose.verdict import since
from selfdistill.errors import Misuse
from selfdistill.report.style import COLOURS, DASHES, GREY, LIGHT, MARKERS, label_ends, panels, titled

Rows = Sequence[Mapping[str, Any]]
"""the lines of a metrics.jsonl"""


def training_curves(runs: Mapping[str, Rows]) -> Figure:
    """Loss, output_std and kNN over epochs, one line a run; a cross where an unhealthy verdict begins to hold."""
    figure, axes = panels(1, 3)
    labelled = [name for name, rows in runs.items() if any(row.get("knn_top1") is not None for row in rows)]
    others = [name for name in runs if name not in labelled]
    _lines(axes[0, 0], runs, "loss", "Loss")
    _lines(axes[0, 1], runs, "output_std", "Std of l2-normalised outputs, x sqrt(d)", floor=0.0, named=others)
    axes[0, 1].axhline(1, color=LIGHT, lw=0.8, zorder=0)
    _lines(axes[0, 2], runs, "knn_top1", "kNN accuracy, held-out images", named=labelled)
    for colour, rows in zip(_cycle(runs), runs.values(), strict=True):
        began = since(rows)
        if began and began["verdict"] != "healthy" and began.get("output_std") is not None:
            x, y = began["epoch"], began["output_std"]
            axes[0, 1].plot([x], [y], "X", ms=7, color=colour)
            axes[0, 1].annotate(began["verdict"], (x, y), xytext=(6, 7), textcoords="offset points", fontsize=7, color=colour)
    return figure


def teacher_curves(runs: Mapping[str, Rows]) -> Figure:
    """Entropy of the targets, of their mean, and KL from student to teacher over epochs. Raises `Misuse` where no run has such targets."""
    having = {name: rows for name, rows in runs.items() if any(row.get("target_kl") is not None for row in rows)}
    if not having:
        raise Misuse(f"{', '.join(runs)}: no targets that are distributions, as DINO's, iBOT's and SwAV's are: entropy and KL are of those")
    figure, axes = panels(1, 3)
    _lines(axes[0, 0], having, "target_entropy", "Mean entropy of the targets, nats", floor=0.0)
    _lines(axes[0, 1], having, "target_usage_entropy", "Entropy of their mean, nats", floor=0.0)
    for ax in axes[0, :2]:
        for k in {row["target_outputs"] for rows in having.values() for row in rows if row.get("target_outputs")}:
            ax.axhline(math.log(k), color=LIGHT, lw=0.8, zorder=0)
            ax.set_ylim(top=max(ax.get_ylim()[1], 1.08 * math.log(k)))
            ax.text(1, math.log(k), f"uniform: ln {k}", fontsize=7, color=GREY, ha="right", va="bottom", transform=ax.get_yaxis_transform())
    _lines(axes[0, 2], having, "target_kl", "KL(teacher || student), nats", floor=0.0, named=list(having))
    return figure


def _cycle(runs: Mapping[str, Rows]) -> list[str]:
    return [COLOURS[n % len(COLOURS)] for n in range(len(runs))]


def _lines(ax: Axes, runs: Mapping[str, Rows], key: str, title: str, floor: float | None = None, named: Sequence[str] = ()) -> None:
    """named: the runs whose names stand where their lines end."""
    ends = []
    for n, ((name, rows), colour) in enumerate(zip(runs.items(), _cycle(runs), strict=True)):
        points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            x, y = zip(*points, strict=True)
            style: dict[str, Any] = {"marker": MARKERS[n % len(MARKERS)], "ms": 3.5} if len(points) <= 30 else {}
            ax.plot(x, y, color=colour, lw=1.4, ls=DASHES[n // len(COLOURS) % len(DASHES)], **style)
            ends.append((name, colour, x[-1], y[-1]))
    if floor is not None:
        highest = max((row[key] for rows in runs.values() for row in rows if row.get(key) is not None), default=floor)
        ax.set_ylim(bottom=floor, top=floor + max(1.08 * (highest - floor), 0.05))
    titled(ax, title, "epoch")
    if not ends:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", fontsize=8, color=GREY)
    label_ends(ax, [end for end in ends if end[0] in named])
