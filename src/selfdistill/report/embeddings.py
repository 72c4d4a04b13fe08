"""What embeddings look like: their spectrum, on the circle and the sphere, on a map, and each image's neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from selfdistill.diagnose.metrics import alignment, effective_rank, spanned, spectrum, uniformity
from selfdistill.errors import Misuse
from selfdistill.report.style import COLOURS, DASHES, LIGHT, MARKERS, blank, label_ends, panels, titled

KAPPA = 20.0
"""concentration of the kernel on the circle: a width of 13 degrees"""


def spectrum_figure(of: Mapping[str, Tensor]) -> Figure:
    """Eigenvalues of the covariance of each of several z [N, D], as shares of the largest, on a logarithmic scale (Jing et al. 2022,
    Fig. 2): dimensions that have collapsed fall off a cliff."""
    figure, axes = panels(1, 1, (5.6, max(3.2, 0.45 * len(of))))
    ax, ends = axes[0, 0], []
    for n, (name, z) in enumerate(of.items()):
        limit = min(len(z) - 1, z.shape[1])  # a direction is lost to the mean
        if limit < 1:
            raise Misuse(f"{name}: one image has no covariance")
        values = spectrum(z)[:limit]
        share = (values / values[0])[: max(1, spanned(values))]  # what lies below is rounding
        rank = torch.arange(1, len(share) + 1)
        colour = COLOURS[n % len(COLOURS)]
        ax.plot(rank, share, color=colour, lw=1.4, ls=DASHES[n // len(COLOURS) % len(DASHES)])
        ends.append((f"{name}\neffective rank {effective_rank(z):.0f} of {limit}", colour, float(rank[-1]), float(share[-1])))
    ax.set_yscale("log")
    titled(ax, "Spectrum of the covariance", "rank", "eigenvalue / largest")
    label_ends(ax, ends)
    return figure


def hypersphere_figure(z: Tensor, labels: Tensor | None = None, classes: Sequence[str] = (), columns: int = 4) -> Figure:
    """Alignment and uniformity after Wang & Isola 2020, Fig. 3. z [2, N, D]: two views of each image. Left, the distances of positive
    pairs; then the density on the circle and of the angle, of all images and of the first classes. Of more dimensions than two, the
    circle is that of the first two principal directions, which the title says."""
    flat, kept = _principal(z, 2)
    groups = [("all images", torch.ones(z.shape[1], dtype=torch.bool))]
    if labels is not None:
        groups += [(f"class {classes[c] if classes else c}", labels == c) for c in labels[labels >= 0].unique()[:columns].tolist()]
    figure, axes = panels(2, 1 + len(groups), (2.1, 2.0), height_ratios=[2, 1])
    distances = (F.normalize(z[0], dim=-1) - F.normalize(z[1], dim=-1)).norm(dim=-1)
    ax = axes[0, 0]
    ax.hist(distances, bins=np.linspace(0, 2, 41), color=COLOURS[0])
    ax.axvline(float(distances.mean()), color="black", lw=1, ls="--")
    titled(ax, f"Alignment {alignment(z[0], z[1]):.2f}\nmean distance {float(distances.mean()):.2f}", "distance of two views", "images")
    axes[1, 0].axis("off")
    axes[1, 0].text(0, 0.9, f"Uniformity {uniformity(z[0]):.2f}\n{kept}", fontsize=7, va="top", transform=axes[1, 0].transAxes)
    theta = torch.linspace(-torch.pi, torch.pi, 361)
    tops = []
    for n, (name, rows) in enumerate(groups, 1):
        points = flat[:, rows].flatten(0, 1)  # [2 n, 2]
        angles = torch.atan2(points[:, 1], points[:, 0])
        density = (KAPPA * (torch.cos(theta[:, None] - angles) - 1)).exp().mean(1) / _bessel()
        _ring(axes[0, n], points)
        titled(axes[0, n], name)
        axes[1, n].fill_between(theta, density, color=COLOURS[0], alpha=0.35, lw=0)
        axes[1, n].plot(theta, density, color=COLOURS[0], lw=1)
        axes[1, n].set_xticks([-np.pi, 0, np.pi], ["-π", "0", "π"])
        axes[1, n].axhline(1 / (2 * np.pi), color=LIGHT, lw=0.8, zorder=0)
        titled(axes[1, n], "", "angle", "density" if n == 1 else "")
        tops.append(float(density.max()))
    for ax in axes[1, 1:]:
        ax.set_ylim(0, 1.05 * max(*tops, 0.2))
    return figure


def _bessel() -> float:
    """2 pi I0(kappa) exp(-kappa): what the kernel exp(kappa (cos - 1)) integrates to."""
    return float(2 * torch.pi * torch.special.i0e(torch.tensor(KAPPA)))


def _ring(ax: Any, points: Tensor, cells: int = 160) -> None:
    """Density in the plane by a Gaussian kernel (Wang & Isola Fig. 3, top), of points [n, 2] on the circle."""
    grid = torch.linspace(-1.35, 1.35, cells)
    width = 0.09
    kx, ky = ((-((grid[:, None] - points[:, d]) ** 2) / (2 * width**2)).exp() for d in (0, 1))  # [cells, n]
    ax.imshow(ky @ kx.T, origin="lower", extent=(-1.35, 1.35, -1.35, 1.35), cmap="Blues", interpolation="bilinear")
    circle = torch.linspace(0, 2 * torch.pi, 200)
    ax.plot(circle.cos(), circle.sin(), color="black", lw=0.5, alpha=0.6)
    ax.set_aspect("equal")
    blank(ax)


def sphere_figure(z: Tensor, labels: Tensor | None = None, classes: Sequence[str] = ()) -> Figure:
    """z [2, N, D] on the sphere of the first three principal directions, from two sides, coloured by class."""
    flat, kept = _principal(z, 3)
    points = flat[0]
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    u, v = np.mgrid[0 : 2 * np.pi : 25j, 0 : np.pi : 13j]
    for n, turn in enumerate((30, 210), 1):
        ax: Any = figure.add_subplot(1, 2, n, projection="3d", computed_zorder=False)
        ax.plot_wireframe(np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v), color=LIGHT, lw=0.3)
        eye = torch.tensor([np.cos(np.radians(turn)) * np.cos(0.35), np.sin(np.radians(turn)) * np.cos(0.35), np.sin(0.35)]).float()
        front = points @ eye > 0  # the far half would shine through
        for name, rows, colour, marker in by_class(labels, classes, len(points)):
            x = points[rows & front]
            ax.scatter(*x.T, s=9, color=colour, marker=marker, depthshade=False, linewidths=0)
            if len(x) > 4 and name:
                at = F.normalize(x.mean(0), dim=0) * 1.12
                ax.text(*at.tolist(), name, zorder=10, **_name(colour))
        ax.view_init(20, turn)
        ax.set_box_aspect((1, 1, 1), zoom=1.6)
        ax.set_axis_off()
    figure.suptitle(f"The sphere from both sides. {kept}", fontsize=8, x=0.01, ha="left")
    return figure


def plane_of(z: Tensor) -> np.ndarray[tuple[int, int], Any]:
    """[N, 2]: l2-normalised z [N, D] in the plane, by t-SNE (van der Maaten & Hinton 2008). Raises `Misuse` where there is none."""
    from sklearn.manifold import TSNE  # takes a second

    if not torch.isfinite(z).all():
        raise Misuse("the embeddings are not finite: there is no map of a run that diverged")
    if len(z) < 5:
        raise Misuse(f"{len(z)} images are too few for a map: 5 at least")
    perplexity = min(30, max(2, len(z) // 4))
    return TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(F.normalize(z, dim=-1).numpy())


def map_figure(z: Tensor, labels: Tensor | None = None, classes: Sequence[str] = ()) -> Figure:
    """z [N, D] in the plane, coloured and named by class."""
    xy = plane_of(z)
    figure, axes = panels(1, 1, (5.2, 4.6))
    ax = axes[0, 0]
    for name, rows, colour, marker in by_class(labels, classes, len(z)):
        of = xy[rows.numpy()]
        ax.scatter(*of.T, s=12, color=colour, marker=marker, linewidths=0, alpha=0.8)
        if name:
            ax.annotate(name, np.median(of, 0), **_name(colour))
    blank(ax)
    titled(ax, f"t-SNE of {len(z)} images' l2-normalised features")
    return figure


def _name(colour: str) -> dict[str, Any]:
    """How a class's name stands among its points: in a box of their colour."""
    box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": colour, "alpha": 0.85, "lw": 1}
    return {"fontsize": 8, "weight": "bold", "ha": "center", "va": "center", "bbox": box, "parse_math": False}


def neighbours_figure(queries: Tensor, neighbours: Tensor, similarity: Tensor, right: Tensor | None = None) -> Figure:
    """Sheets of images, queries [Q, C, H, W] uint8, neighbours [Q, k, C, H, W]; similarity [Q, k] stands below each, and where labels
    are known, right [Q, k] frames another class with a cross."""
    Q, k = similarity.shape
    figure, axes = panels(Q, k + 1, (0.8, 0.95))
    for q in range(Q):
        for n, ax in enumerate(axes[q]):
            picture = queries[q] if n == 0 else neighbours[q, n - 1]
            ax.imshow(shown(picture), cmap="gray", vmin=0, vmax=255)
            blank(ax)
            if n == 0:
                ax.set_title("query" if q == 0 else "", fontsize=7)
                continue
            wrong = right is not None and not right[q, n - 1]
            said = f"{float(similarity[q, n - 1]):.2f}{' ✗' if wrong else ''}"
            ax.set_title(said, fontsize=7, color=COLOURS[1] if wrong else "black", pad=2)
            if wrong:
                ax.spines[:].set_visible(True)
                ax.spines[:].set_color(COLOURS[1])
                ax.spines[:].set_linewidth(1.8)
    return figure


def shown(image: Tensor) -> Any:
    """uint8 [C, H, W] as matplotlib wants it: [H, W] grey, or the first three channels [H, W, 3]."""
    return image[0].numpy() if len(image) < 3 else image[:3].permute(1, 2, 0).numpy()


def _principal(z: Tensor, d: int) -> tuple[Tensor, str]:
    """(z [2, N, D] on the unit sphere of its first d principal directions, [2, N, d]; what that keeps, in words)."""
    z = F.normalize(z.float(), dim=-1)
    if not torch.isfinite(z).all():
        raise Misuse("the embeddings are not finite: there is no picture of a run that diverged")
    if z.shape[-1] < d:
        raise Misuse(f"embeddings of {z.shape[-1]} dimensions: this picture takes {d}")
    if z.shape[-1] == d:
        return z, f"{d} dimensions, as they are"
    flat = z.flatten(0, 1)
    values, directions = torch.linalg.eigh(torch.cov(flat.T))
    found = (flat - flat.mean(0)) @ directions[:, -d:].flip(1)
    share = float(values[-d:].sum() / values.sum())
    said = f"{d} principal directions of {z.shape[-1]},\n{share:.0%} of the variance, normalised"
    return F.normalize(found, dim=-1).unflatten(0, z.shape[:2]), said


def by_class(labels: Tensor | None, classes: Sequence[str], n: int) -> list[tuple[str, Tensor, str, str]]:
    """(name, rows, colour, marker) of each class; before them those without a label, without a name, in grey among classes."""
    unknown = torch.ones(n, dtype=torch.bool) if labels is None else labels < 0
    found = [] if labels is None else labels[~unknown].unique().tolist()
    groups = [("", unknown, LIGHT if found else COLOURS[0], MARKERS[0])] if unknown.any() else []
    for i, c in enumerate(found):
        groups.append((classes[c] if classes else str(c), labels == c, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]))
    return groups
