"""A run as a notebook shows it: while it trains, and what it was, what it came to, how it went there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.train.run import Run

CURVES = {"loss": "loss", "output_std": "output_std", "knn_top1": "kNN top-1"}
WIDTH, HEIGHT = 220, 90
"""pixels of a curve"""
EVERY = 1.0
"""seconds between two pictures of a run that trains: a browser has to draw each"""


class Live:
    """A bar, the latest numbers and the curves so far, in one output of a cell that is drawn anew."""

    def __init__(self, step: int, total: int, rows: Sequence[Mapping[str, Any]]):
        """rows: of metrics.jsonl up to `step`, from which the run goes on."""
        from IPython.display import HTML, display

        self.total, self.rows, self.made = total, list(rows), HTML
        self.first, self.started, self.drawn = step, time.monotonic(), 0.0
        self.handle = display(HTML("starting"), display_id=True)

    def show(self, row: Mapping[str, Any] | None, said: str) -> None:
        """A new row, drawn if the last picture is old enough; or none, at the end, which is always drawn. said: the numbers, in words."""
        self.rows += [row] if row else []
        now = time.monotonic()
        if row and now - self.drawn < EVERY:
            return
        self.drawn, step = now, self.rows[-1]["step"] if self.rows else self.first
        left = (now - self.started) / max(1, step - self.first) * (self.total - step)
        bar = f"<progress max='{self.total}' value='{step}' style='width:{WIDTH}px'></progress> step {step} of {self.total}"
        words = [bar, *([f"{left:.0f} s left"] if self.first < step < self.total and row else []), escape(said)]
        self.handle.update(self.made(f"<div>{', '.join(words)}</div><div>{curves(self.rows)}</div>"))


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
    return f"<table>{table}</table><div>{curves(rows)}</div>"


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(_curve([(row["step"], row[key]) for row in rows if row.get(key) is not None], name) for key, name in CURVES.items())


def _curve(points: list[tuple[int, float]], name: str) -> str:
    """A line over steps, with its first and last value, of at most two points a pixel; nothing for less than two points."""
    if len(points) < 2:
        return ""
    points = [*points[: -1 : 1 + len(points) // (2 * WIDTH)], points[-1]]
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
