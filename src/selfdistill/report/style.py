"""How the figures look: one palette that colour-blind people and grey printers can tell apart, lines labelled where they end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfdistill.disk import check_place, write_whole

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000", "#8C8C8C")
"""Okabe and Ito's (2008), a grey for their yellow, which is too pale on white"""
MARKERS = "osD^vPX*<>"
DASHES = ("-", "--", "-.", ":")
FORMATS = (".png", ".svg", ".pdf")
DPI = 200
LIGHT, GREY = "#B0B0B0", "#606060"


def panels(rows: int, columns: int, side: tuple[float, float] = (3.4, 2.6), **options: Any) -> tuple[Figure, Any]:
    """(figure, axes [rows, columns]) with panels of `side` inches; no pyplot, so that no global state is left behind."""
    figure = Figure(figsize=(columns * side[0], rows * side[1]), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes


def titled(ax: Axes, title: str, x: str = "", y: str = "") -> None:
    ax.set_title(title, fontsize=9, loc="left", parse_math=False)  # a name may have $ in it
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)


def label_ends(ax: Axes, lines: list[tuple[str, str, float, float]]) -> None:
    """Writes (label, colour, x, y) to the right of where each line ends; labels that would overlap are pushed apart."""
    ax.get_xlim(), ax.get_ylim()  # settles the limits, which transData needs
    gap = 0.062  # of the panel's height: a line of 7 points
    placed = sorted((ax.transAxes.inverted().transform(ax.transData.transform((x, y)))[1], name, colour) for name, colour, x, y in lines)
    places = [place for place, _, _ in placed]
    for n in range(1, len(places)):
        places[n] = max(places[n], places[n - 1] + gap * (1 + placed[n - 1][1].count("\n")))
    over = max(0.0, places[-1] - 1.0) if places else 0.0
    for (_, name, colour), place in zip(placed, places, strict=True):
        ax.text(1.02, place - over, name, color=colour, fontsize=7, va="center", transform=ax.transAxes, parse_math=False)


def blank(ax: Axes) -> None:
    """A panel for a picture: no ticks, no frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def rendered(figure: Figure, format: str, dpi: int = DPI) -> bytes:
    """The figure as a file of that format, a suffix without its dot."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=dpi)
    return buffer.getvalue()


def save(figure: Figure, out: Path) -> None:
    """Writes the figure whole, in the format of `out`'s suffix. Raises `Misuse` for another, `Failure` where it cannot be written."""
    check_place(out, "--out", FORMATS)
    write_whole(out, rendered(figure, out.suffix[1:].lower()))
