"""A table's results as one picture, and its curves over the epochs as another."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

SHORT = 44
"""characters of a row's label"""


def picture(found: dict[str, Any]) -> bytes:
    """PNG: for each row of a record kNN and linear accuracy, output_std, effective rank and seconds; a dot a seed, a bar their mean."""
    rows = found["rows"]
    figure = Figure(figsize=(13, 1.3 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True, width_ratios=(2, 1, 1, 1))
    places = range(len(rows))
    for panel, metrics, label in (
        (panels[0], ("knn", "linear"), "accuracy (kNN: dots, linear: rings)"),
        (panels[1], ("output_std",), "output_std"),
        (panels[2], ("rank",), "effective rank"),
        (panels[3], ("seconds",), "seconds"),
    ):
        for place, row in zip(places, rows.values(), strict=True):
            for metric in metrics:
                values = [run[metric] for run in row["runs"].values() if run[metric] is not None]
                colour = "tab:blue" if row["verdict"] == "healthy" else "tab:red"
                face = "none" if metric == "linear" else colour
                panel.scatter(values, [place + (0.18 if metric == "linear" else 0)] * len(values), s=22, facecolors=face, edgecolors=colour)
                if metric in row["mean"]:
                    panel.plot([row["mean"][metric]] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=1.2)
        panel.set_xlabel(label)
        panel.grid(axis="both", alpha=0.3)
    for metric, style in (("random", ":"), ("pixels", "--")):
        values = [row["mean"][metric] for row in rows.values() if metric in row["mean"]]
        if values:
            panels[0].axvline(
                values[0], color="grey", linestyle=style, linewidth=1, label="random init" if metric == "random" else "raw pixels"
            )
    if panels[0].get_legend_handles_labels()[0]:
        figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, loc="outside lower left", ncols=2)
    panels[1].set_xlim(-0.03, 1.12)
    for panel in panels[2:]:
        panel.margins(x=0.1)
        panel.set_xlim(left=0)
    for place, row in zip(places, rows.values(), strict=True):
        panels[3].annotate(
            row["verdict"], (1.03, place), xycoords=("axes fraction", "data"), fontsize=8, va="center", annotation_clip=False
        )
    panels[0].set_yticks(list(places), [_short(f"{name}: {row['says']}") for name, row in rows.items()], fontsize=8, parse_math=False)
    panels[0].invert_yaxis()
    figure.suptitle(f"{found['table']}: {found['says']} ({found['source']})\n{' '.join(found['settings'])}", fontsize=9, parse_math=False)
    return _png(figure)


def curves(found: dict[str, Any], runs: Mapping[str, Sequence[list[dict[str, Any]]]], keys: Sequence[str]) -> bytes:
    """PNG: a panel a key of metrics.jsonl, a colour a row, a line a seed (SimSiam Fig. 2). runs: the lines of metrics.jsonl, by row."""
    figure = Figure(figsize=(4.2 * len(keys), 3.2), layout="constrained")
    for panel, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for n, (name, logs) in enumerate(runs.items()):
            for seed, log in enumerate(logs):
                lines = [row for row in log if row.get(key) is not None]
                x, y = [row["epoch"] for row in lines], [row[key] for row in lines]
                panel.plot(x, y, color=f"C{n}", alpha=0.8, linewidth=1.1, label=name if seed == 0 else None)
        panel.set_xlabel("epoch")
        panel.set_title(key, fontsize=9)
        panel.grid(alpha=0.3)
    panel.legend(fontsize=7)
    figure.suptitle(f"{found['table']}: {found['source']}", fontsize=9, parse_math=False)
    return _png(figure)


def _short(label: str) -> str:
    return label if len(label) <= SHORT else label[: SHORT - 1] + "…"


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=80)
    return out.getvalue()
