"""What a report says of a run, section by section: words, tables and figures, each made from the run folder and its images."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from matplotlib.figure import Figure

from selfdistill.diagnose.describe import READING, describe, ordered
from selfdistill.diagnose.verdict import before, below_start, probes, since
from selfdistill.disk import object_of
from selfdistill.errors import Failure, Misuse
from selfdistill.methods import METHODS
from selfdistill.presets import PRESETS
from selfdistill.recipe import Recipe
from selfdistill.report import attention, draw, pictures
from selfdistill.report.pictures import Asked, Look
from selfdistill.report.scatter import Scatter, scatter_of
from selfdistill.spec import diff, leaves, under
from selfdistill.train.diagnosis import given_up
from selfdistill.train.profile import Profiled
from selfdistill.train.resolve import with_preset

NEAR = 4_000
"""training images among which a report seeks neighbours"""


@dataclass(frozen=True)
class Words:
    """A paragraph. badge: a verdict, shown before it. code: a command line, shown after it."""

    text: str
    badge: str = ""
    code: str = ""
    kind: ClassVar[str] = "words"


@dataclass(frozen=True)
class Rows:
    """A table; the first row is its head, the first cell of each the name of the row. folded: opens with a click."""

    rows: Sequence[Sequence[str]]
    caption: str
    folded: bool = False
    kind: ClassVar[str] = "rows"


@dataclass(frozen=True)
class Drawn:
    """A figure, as matplotlib's or an SVG's text. alt: what it shows, for who does not see it. photos: better as pixels than as SVG."""

    figure: Figure | str
    alt: str
    photos: bool = False
    kind: ClassVar[str] = "drawn"


Block = Words | Rows | Drawn | Scatter
Section = Callable[[Look], Iterator[Block]]


def what_was_run(look: Look) -> Iterator[Block]:
    run, r = look.run, look.run.recipe
    facts = {
        "method": r.method,
        "data": r.data,
        "encoder": r.encoder.name,
        "length": f"{r.epochs} epochs, batches of {r.batch_size}, lr {r.lr.base:g} x {r.lr_factor:g}, {r.optimizer.kind}",
        "seed": str(r.seed),
        "preset, precision, compile": f"{r.preset}, {r.precision}, {r.compile}",
        "made with": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "folder": str(run.path),
    }
    yield Rows([("", ""), *facts.items()], "The run")
    yield Drawn(draw.svg(draw.picture(r, r.method)), f"{r.method} as a picture: student, teacher, and where the gradient stops")
    if r.method not in METHODS:
        yield Words(f"{r.method} is a method of the user's own: there is no paper's recipe to compare it with.")
        return
    yield Rows([("field", "paper", "here", "why"), *_from_the_paper(r)], f"What differs from the paper's recipe of {r.method}", folded=True)


def _from_the_paper(r: Recipe) -> Iterator[tuple[str, str, str, str]]:
    paper = METHODS[r.method]
    preset = with_preset(paper, r.preset) if r.preset in PRESETS else (paper, [])
    values = {path: now for path, _, now in diff(paper, preset[0])}
    for path, was, now in diff(paper, r):
        if was in ("auto", {}):  # what auto came to on this machine is said above; {} has got fields, which follow
            continue
        because = next((f"preset {r.preset}: {field.why}" for field in preset[1] if under(field.key, path)), "")
        yield path, _value(was), _value(now), because if values.get(path) == now else ""


def verdict(look: Look) -> Iterator[Block]:
    rows, r = look.run.metrics, look.run.recipe
    if not look.run.ended:
        yield Words(f"The run has not ended: it is at epoch {rows[-1]['epoch'] if rows else 0:g} of {r.epochs}.")
    if (found := given_up(look.run)) is not None:
        yield Words(found.because, found.state)
        return
    began = since(rows)
    if began is None:
        raise Misuse("no probe yet, so no verdict")
    last = probes(rows)[-1]
    yield Words(last["because"].removeprefix(f"{last['verdict']}: ") + before(rows), last["verdict"])
    yield Words(f"Since epoch {began['epoch']:g}, step {began['step']}, of {rows[-1]['epoch']:g} epochs.")


def training(look: Look) -> Iterator[Block]:
    asked = Asked([look])
    yield Drawn(pictures.training(asked), "Loss, std of the outputs and kNN accuracy over epochs")
    if any(row.get("target_kl") is not None for row in look.run.metrics):
        yield Words(
            "Targets that are distributions. Left, how sure each is: ln K says nothing of its image, 0 names one output. Middle, how they "
            "share the outputs out: near 0 few outputs take all images, near ln K all are used alike."
        )
        yield Drawn(pictures.teacher(asked), "Entropy of the targets, of their mean, and KL from student to teacher over epochs")


def worth(look: Look) -> Iterator[Block]:
    run = look.run
    s, first = run.last, next(iter(run.metrics), {})
    if not first:
        raise Misuse("nothing is logged yet")
    if s.get("knn_top1") is None:
        raise Misuse(f"data={run.recipe.data} has no labels that could tell")
    if run.ended:
        baselines = (s.get(name) for name in ("knn_top1", "knn_random_init", "knn_raw_pixels"))
        yield Rows(
            [("", "this run", "random init", "raw pixels"), ("kNN top-1", *map(_number, baselines))],
            "Frozen features of held-out images (k = 20 or the whole bank), beside what no training gives",
        )
    else:
        row = (probes(run.metrics) or [first])[-1]
        seen = [("", "before", f"at epoch {row['epoch']:g}"), ("kNN top-1", *(_number(of["knn_top1"]) for of in (first, row)))]
        yield Rows(seen if row["step"] else [one[:2] for one in seen], "The run has not ended: probes, on a share of the images")
    if below := below_start(s):
        yield Words(below)
    of = {"kNN top-1": "knn", "ridge top-1": "ridge", "test error": "error"}
    who = [name for name in ("student", "teacher") if any(s.get(f"{key}_{name}") is not None for key in of.values())]
    if who:
        online = [(name, _number(first.get(f"{key}_student")), *(_number(s.get(f"{key}_{n}")) for n in who)) for name, key in of.items()]
        rows = [row for row in online if any(row[1:])]
        yield Rows([("", "student before", *who), *rows], "The last online probe, on a share of the images")
    found = [
        (name, measure, _number(value), "" if n else ", ".join(f"{key} {_value(chosen)}" for key, chosen in of["chosen"].items()))
        for name, of in run.evaluation.items()
        for n, (measure, value) in enumerate(sorted(of["results"].items(), key=lambda result: result[0] != "top1"))
    ]
    if found:
        yield Rows([("protocol", "measure", "result", "chosen"), *found], "evaluation.json")
    missing = [name for name in ("linear", "supervised") if name not in run.evaluation]
    if missing and run.ended:
        command = f"selfdistill evaluate {shlex.quote(str(run.path))} --protocol {','.join(missing)}"
        yield Words(f"Not measured: {' and '.join(missing)}, which the next report shows after", code=command)


def embeddings(look: Look) -> Iterator[Block]:
    asked = Asked([look])
    of = [ordered(describe(z)) for z in (look.features, look.projections[0])]
    rows = [(name, *(_number(one.get(name)) for one in of), READING[name]) for name in READING if name in of[0]]
    yield Rows([("", "features", "projections", "how to read it"), *rows], f"{len(look.images)} {look.part} images")
    yield Drawn(pictures.spectrum(asked), "Eigenvalues of the covariance of features and projections")
    yield Drawn(pictures.hypersphere(asked), "Two views of each image on the circle: alignment and uniformity", photos=True)


def seen_by_a_vit(look: Look) -> Iterator[Block]:
    try:
        attention.patch_side(look.run.backbone)
    except Misuse:
        return  # a convnet
    asked = Asked([look])
    yield Words("Each head's attention from the class token to the patches; the number is its largest over what a uniform one would be.")
    yield Drawn(pictures.attention_maps(asked), "Attention of the class token, head by head", photos=True)
    yield Drawn(pictures.patches(asked), "Patch tokens as colours, by their first three principal directions", photos=True)


def neighbours(look: Look) -> Iterator[Block]:
    part = look.part.capitalize()
    yield Words(
        f"{part} images at the left, and the training images most like them, by the cosine of their features. A cross: of another class."
    )
    yield Drawn(pictures.neighbours(Asked([look], near=NEAR)), f"{part} images and their nearest training images", photos=True)


def images_map(look: Look) -> Iterator[Block]:
    yield Words(
        "Features in the plane, by t-SNE: near is alike, far means little. Point, or focus it and use the arrow keys, to see an image."
    )
    yield scatter_of(look)


def time_and_cost(look: Look) -> Iterator[Block]:
    run, r = look.run, look.run.recipe
    rows = [row for row in run.metrics if row.get("data_share") is not None]
    if not rows:
        raise Misuse("nothing is logged yet")
    facts = {
        "training": f"{rows[-1]['wall_seconds']:.0f} s for {rows[-1]['epoch']:g} of {r.epochs} epochs",
        "images": f"{rows[-1]['step'] * r.batch_size:,} seen, {median(row['images_per_second'] for row in rows):.0f} a second (median)",
        "waiting for data and views": f"{median(row['data_share'] for row in rows):.1%} of the time",
    }
    yield Rows([("", ""), *facts.items()], "Time")
    if written := object_of(run.path / "profile.json", Profiled):
        profile = Profiled(**written)
        yield Rows([("part", "share", "ms a step"), *profile.rows], "profile.json")
        yield Words(
            f"Forward and backward: {profile.flops_per_step / 1e9:.3g} GFLOP a step, at {profile.flops_per_second / 1e9:.3g} "
            f"GFLOP/s; a matrix product reaches {profile.matrix_product_flops_per_second / 1e9:.3g} here."
        )
    backbone = run.backbone
    count = sum(p.numel() for p in backbone.parameters())
    yield Words(f"The backbone: {count / 1e6:.2f} million parameters, {backbone.dim} features, {count * 4 / 1e6:.1f} MB in fp32.")


SECTIONS: dict[str, Section] = {
    "Verdict": verdict,
    "What it is worth": worth,
    "What was run": what_was_run,
    "Training": training,
    "Embeddings": embeddings,
    "What the ViT sees": seen_by_a_vit,
    "Neighbours": neighbours,
    "Map": images_map,
    "Time and cost": time_and_cost,
}


def side_by_side(looks: Sequence[Look]) -> Iterator[Block]:
    """Several runs: what they came to, in which fields they differ, their curves and spectra together."""
    of = pictures.named(looks)
    measures = {
        "verdict": "verdict",
        "kNN top-1": "knn_top1",
        "random init": "knn_random_init",
        "raw pixels": "knn_raw_pixels",
        "linear top-1": "linear_top1",
        "output_std, last probe": "output_std",
        "effective rank, last probe": "effective_rank",
        "epochs": "epoch",
        "seconds": "wall_seconds",
    }
    last = [look.run.last for look in looks]
    rows = [(name, *(_number(s.get(key)) for s in last)) for name, key in measures.items()]
    yield Rows([("", *of), *(row for row in rows if any(row[1:]))], "What they came to")
    recipes = [look.run.recipe for look in looks]
    paths = dict.fromkeys(path for other in recipes[1:] for path, _, _ in diff(recipes[0], other))
    values = [dict(leaves(r)) for r in recipes]
    yield Rows(
        [("field", *of), *((path, *(_value(v.get(path)) for v in values)) for path in paths)], "In which fields they differ", folded=True
    )
    yield Drawn(pictures.training(Asked(looks)), "Loss, std of the outputs and kNN accuracy of all runs")
    yield Drawn(pictures.spectrum(Asked(looks)), "Spectra of all runs")


def told(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks, up to the first that cannot be made of what there is; then why."""
    try:
        yield from blocks
    except (Misuse, Failure, OSError) as e:
        yield Words(f"Not shown: {str(e).removesuffix('.')}.")


def _number(value: Any) -> str:
    return "" if value is None else f"{value:#.4g}" if isinstance(value, float) else str(value)


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
