"""A run's backbone in a format of others: written, loaded back by their library, compared on real images, and only then kept."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.data.images import spread
from selfdistill.data.loader import plain_batches
from selfdistill.disk import whole_folder
from selfdistill.errors import Failure, Misuse, did_you_mean, require
from selfdistill.export.card import card
from selfdistill.export.formats import FORMATS, Format, Kept
from selfdistill.parts.backbone import Backbone
from selfdistill.train.subject import TIMM, Subject
from selfdistill.train.trained import siamese_of

IMAGES = 32
"""of the run's data, on which the format's library and the run's backbone are compared"""
TOLERANCE = 1e-5
"""of a feature, in fp32, over the largest feature where that is above 1: the order of sums differs between libraries"""


@dataclass(frozen=True)
class Export:
    """path: the folder. of: "student", "teacher", or where there is no run "encoder". difference: the largest between features that the
    format's library and our own backbone give of the same images; largest: the largest feature; sizes: pixels of the images at which they
    agree."""

    path: Path
    of: str
    difference: float
    largest: float
    sizes: tuple[int, ...]


def export(subject: Subject, format: str, of: str | None = None, out: Path | None = None) -> Export:
    """Writes a subject's backbone as a folder of `format`, a key of FORMATS.

    of: of a run, "student" or "teacher"; the one that the recipe keeps, if none. out: the new folder; if none, RUN/export/FORMAT-OF, and
    export/NAME-FORMAT of what is no run. The two are compared on the subject's images.
    Raises `Misuse` for a format that cannot hold the network, `Failure` where the format's library says something else than the
    backbone; nothing is left then.
    """
    if format not in FORMATS:
        raise Misuse(f"--format {format}: allowed: {', '.join(FORMATS)}.{did_you_mean(format, FORMATS)}")
    made = FORMATS[format]
    if not isinstance(subject.backbone, Backbone):
        raise Misuse(f"{subject.name}: has no network that could be exported")
    who, backbone = backbone_of(subject, of)
    if out is None:
        name = subject.name.removeprefix(TIMM) if subject.name.startswith(TIMM) else Path(subject.name).stem
        out = subject.folder / "export" / f"{format}-{who}" if subject.folder else Path("export") / f"{name}-{format}"
    source, recipe = subject.source, subject.recipe
    images = next(plain_batches(spread(source.looked_at, IMAGES), recipe.views, torch.device("cpu"), recipe.workers))
    kept = Kept(backbone.cpu(), recipe, who, images)
    with torch.no_grad():
        subject.check_finite(kept.backbone(images))
    made.check(kept)
    require(f"--format {format}", format, *made.needs)
    with whole_folder(out) as folder:
        made.write(kept, folder)
        done = _compared(kept, made, format, folder, out)
        (folder / "README.md").write_text(card(subject, kept, made, _measured(done, len(images))))
    return done


def backbone_of(subject: Subject, of: str | None = None) -> tuple[str, Backbone]:
    """("student" or "teacher", its encoder in eval mode): the one that was kept, or by name from the checkpoint; of what is no run, its
    only one, as "encoder". Raises `Misuse`."""
    run = subject.run
    if run is None:
        if of is not None:
            raise Misuse(f"--of {of}: {subject.name} is no run, and has one encoder alone; leave it out")
        return "encoder", subject.backbone  # type: ignore[return-value]
    names = ("student", "teacher") if run.recipe.teacher.own_weights else ("student",)
    kept = run.recipe.kept
    if of in (None, kept):
        return kept, subject.backbone  # type: ignore[return-value]
    if of not in names:
        why = f"teacher={run.recipe.teacher.kind} has no weights of its own" if of == "teacher" else f"allowed: {', '.join(names)}"
        raise Misuse(f"--of {of}: {why}; leave it out for the {kept}")
    return of, siamese_of(run).networks[of].backbone


def _compared(kept: Kept, made: Format, format: str, folder: Path, out: Path) -> Export:
    """Raises `Failure` where the features differ at the run's own size; tries another one besides."""
    difference, largest = _difference(kept, made, folder, kept.images)
    if difference > TOLERANCE * max(1.0, largest):
        raise Failure(
            f"--format {format}: features differ by {difference:.2g} (the largest is {largest:.2g}) between the format's library and the "
            f"run's backbone, more than {TOLERANCE:g} of them: nothing is written. --format safetensors holds any network"
        )
    size = kept.images.shape[-1]
    sizes: tuple[int, ...] = (size,)
    with suppress(Exception):  # each library refuses a size in its own way, and so do networks
        again, at_most = _difference(kept, made, folder, F.interpolate(kept.images[:3], scale_factor=2.0))
        if again <= TOLERANCE * max(1.0, at_most):
            sizes = (size, 2 * size)
    return Export(out, kept.of, difference, largest, sizes)


def _difference(kept: Kept, made: Format, folder: Path, images: Tensor) -> tuple[float, float]:
    """(largest difference, largest feature) on images."""
    with torch.no_grad():
        ours, theirs = kept.backbone(images), made.features(kept, folder, images)
    same = ours.shape == theirs.shape and bool(theirs.isfinite().all())
    return float((ours - theirs).abs().max()) if same else math.inf, float(ours.abs().max())


def _measured(done: Export, images: int) -> str:
    sizes = " and ".join(f"{s} x {s}" for s in done.sizes)
    return (
        f"Checked when it was written: {images} images of the data, loaded as above, gave the features of the backbone as it is here; the "
        f"largest difference was {done.difference:.1g}, the largest feature {done.largest:.3g} (fp32, images of {sizes} pixels)."
    )
