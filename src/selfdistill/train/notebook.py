"""A run as a notebook shows it: what it was, what it came to, how it went there."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfdistill.train.run import Run

CURVES = {"loss": "loss", "output_std": "output_std", "knn_top1": "kNN top-1"}
WIDTH, HEIGHT = 220, 90
"""pixels of a curve"""


def html(run: Run) -> str:
    """A table, and a curve for each of CURVES that was measured: SVG, so that it needs nothing beside it."""
    r, rows, last = run.recipe, run.metrics, run.last
    facts = {
        "run": str(run.path),
        "method": f"{r.method} on {r.data}, {r.encoder.name}, {r.epochs} epochs, batch {r.batch_size}, seed {r.seed}",
        "verdict": last.get("because") if run.ended else "the run has not ended",
        "kNN top-1": last.get("knn_top1"),
        "random init": last.get("knn_random_init"),
        "linear top-1": last.get("linear_top1"),
    }
    table = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>"
        f"{escape(f'{value:.4f}' if isinstance(value, float) else str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    curves = "".join(_curve([(row["step"], row[key]) for row in rows if row.get(key) is not None], name) for key, name in CURVES.items())
    return f"<table>{table}</table><div>{curves}</div>"


def _curve(points: list[tuple[int, float]], name: str) -> str:
    """A line over steps, with its first and last value; nothing for less than two points."""
    if len(points) < 2:
        return ""
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    path = " ".join(
        f"{(s - steps[0]) / (steps[-1] - steps[0]) * WIDTH:.1f},{HEIGHT - (v - low) / ((high - low) or 1) * HEIGHT:.1f}" for s, v in points
    )
    return (
        f"<svg width='{WIDTH + 20}' height='{HEIGHT + 30}' viewBox='-5 -22 {WIDTH + 20} {HEIGHT + 30}' "
        "font-family='sans-serif' font-size='12'>"
        f"<rect x='-5' y='-22' width='100%' height='100%' fill='white'/><text y='-8'>{name}: {values[0]:.3g} to {values[-1]:.3g}</text>"
        f"<polyline points='{path}' fill='none' stroke='#0a58ca' stroke-width='1.5'/></svg>"
    )
