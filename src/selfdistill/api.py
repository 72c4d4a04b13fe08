"""The Python side of the command line: `import selfdistill as sd`."""

from __future__ import annotations

import os
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from selfdistill.ablate import em
from selfdistill.ablate.edits import settings_of
from selfdistill.ablate.edits import without as edits
from selfdistill.data.embeddings import FORMATS, read_embeddings
from selfdistill.data.images import Pixels, Source, spread
from selfdistill.data.loader import in_memory
from selfdistill.data.sources import check_data
from selfdistill.errors import Failure, Misuse, did_you_mean
from selfdistill.export import deliver
from selfdistill.export.embeddings import embed as embed_to
from selfdistill.export.neighbours import duplicates, neighbours
from selfdistill.methods import METHODS
from selfdistill.parts.loss import LOSSES as losses
from selfdistill.protocols import PROTOCOLS, evaluate, is_protocol_setting, protocols_of
from selfdistill.protocols.subject import subject_of
from selfdistill.recipe import Recipe, diff, under
from selfdistill.train import diagnosis, loop
from selfdistill.train.diagnosis import Diagnosis
from selfdistill.train.faults import Interrupted
from selfdistill.train.resolve import resolve
from selfdistill.train.run import Run, load, new_folder
from selfdistill.train.trained import predictor_gap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "METHODS",
    "PROTOCOLS",
    "Diagnosis",
    "Failure",
    "Interrupted",
    "Misuse",
    "Recipe",
    "Run",
    "alternate",
    "diagnosis_of",
    "diff",
    "duplicates",
    "embed_to",
    "export_run",
    "load",
    "losses",
    "measure",
    "neighbours",
    "picture",
    "predictor_gap",
    "pretrain",
    "recipe_of",
    "write_report",
]


def recipe_of(name: str) -> Recipe:
    """A recipe by a method's name, a YAML file, a run folder, or a .py file that defines one, whose code is run. Raises `Misuse` for
    anything else."""
    if name in METHODS:
        return METHODS[name]
    path = Path(name)
    if path.is_dir():
        return load(path).recipe
    if path.suffix == ".py":
        return _defined_in(path)
    if path.is_file():
        return Recipe.from_yaml(path)
    known = f"{', '.join(METHODS)} (or name a recipe's YAML or .py file or a run folder)"
    raise Misuse(f"{name}: no such method; there are {known}.{did_you_mean(name, METHODS)}")


def _defined_in(path: Path) -> Recipe:
    """The recipe that a Python file of the user's own defines, one and no more."""
    try:
        scope = runpy.run_path(str(path))
    except Exception as e:  # whatever the user's code raises
        raise Misuse(f"{path}: {type(e).__name__}: {e}") from e
    found = {n: v for n, v in scope.items() if isinstance(v, Recipe) and not any(v is known for known in METHODS.values())}
    if len(found) != 1:
        raise Misuse(f"{path}: defines {', '.join(found) or 'no recipe'}: it must define one, MINE = sd.METHODS['byol'].edit([...])")
    return next(iter(found.values()))


def pretrain(
    method: str | Recipe,
    *changes: str,
    data: str | Path | Tensor | Source | None = None,
    encoder: str | nn.Module | None = None,
    without: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    console: Console | None = None,
    profile: bool = False,
    **settings: Any,
) -> Run:
    """Pretrains a method on images and returns the run.

    method: a name, or a recipe. changes: "key=value" as on the command line; settings: the same as keywords. data: a name, a
    folder, uint8 images [N, C, H, W], or a `Source` (with held-out labels for the probes). encoder: a name, or any module that
    maps [B, C, H, W] to [B, F]. without: ingredients to take out. out: the run folder. resume: go on from its checkpoint. profile: say
    where the time went.
    Raises `Misuse` for what cannot be done, before anything is written.
    """
    console = console or Console(quiet=int(os.environ.get("LOCAL_RANK", "0")) > 0)  # of several processes one speaks
    if isinstance(data, Tensor):
        data = Source("tensor", Pixels(data))
    source = data if isinstance(data, Source) else None
    if data is not None and source is None:
        check_data(data)
    module = encoder if isinstance(encoder, nn.Module) else None
    asked = [] if data is None else [f"data={source.name if source else data}"]
    if encoder is not None:
        asked.append(f"encoder=python:{type(module).__name__}" if module else f"encoder={encoder}")
    asked += [*changes, *(f"{key}={_word(value)}" for key, value in settings.items())]
    if resume:
        run = _resumable(out, asked, without, module, source)
        return loop.pretrain(run.recipe, run.source, run.path, True, module, console, profile)
    base = recipe_of(method) if isinstance(method, str) else method
    asked += edits(base.edit(asked), without)
    path = new_folder(Path(out), "") if out else None  # before a large folder of images is opened
    recipe, source, changed = resolve(base, asked, source)
    for note in source.notes:
        console.print(note, soft_wrap=True)
    if changed:
        console.print(f"preset {recipe.preset} changes {recipe.method} (preset=none keeps the paper's values):")
        for field in changed:
            console.print(f"  {field}", soft_wrap=True, highlight=False)
    return loop.pretrain(recipe, source, path, False, module, console, profile)


def measure(what: str | Path | Run, *words: str, to: str | Path | None = None, **settings: Any) -> dict[str, dict[str, Any]]:
    """What `selfdistill evaluate` measures: for each protocol named in `words`, its results, settings and choices; see `protocols`.

    what: a run or its folder, "raw-pixels", "random-init" or "timm:NAME" with data= and other settings of a recipe. words: protocols,
    and their own settings, "knn.temperature=0.1". to: another data set for the same network. A run's results are written to its
    evaluation.json too. Raises `Misuse`.
    """
    names = [word for word in words if "=" not in word]
    asked = [*(word for word in words if "=" in word), *(f"{key}={_word(value)}" for key, value in settings.items())]
    protocols = protocols_of(names, filter(is_protocol_setting, asked))
    subject = subject_of(what, [setting for setting in asked if not is_protocol_setting(setting)])
    return evaluate(subject.on(str(to)) if to else subject, protocols)


def diagnosis_of(
    what: str | Path | Tensor, *settings: str, labels: Path | Tensor | None = None, pretrained: bool = False, augmentations: int = 32
) -> Diagnosis:
    """The verdict, since when it holds and why, and the metrics behind it.

    what: a run's folder (diagnosis.json is written there), embeddings [N, D] or their file (.npy, .parquet), or timm:NAME. settings:
    "key=value" of the recipe that timm:NAME is built and its images are read by, data= among them. labels: of embeddings [N].
    pretrained: timm's weights instead of random ones. augmentations: of each image, for a run's predictor.
    """
    if isinstance(what, Tensor):
        return diagnosis.of_embeddings(what, labels if isinstance(labels, Tensor) else None)
    name, path = str(what), Path(what)
    if name.startswith("timm:"):
        recipe, source, _ = resolve(METHODS["simsiam"], ["batch_size=2", f"encoder={name}", *settings])  # the views are the preset's
        if pretrained:
            recipe = recipe.edit([f"encoder.options={ {**recipe.encoder.options, 'pretrained': True} }"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            backbone = recipe.encoder.build(recipe.views.size)
        return diagnosis.of_backbone(backbone, source.test or source.train, recipe)
    if settings or pretrained:
        raise Misuse(f"{(*settings, '--pretrained')[0]}: goes with timm:NAME alone; {name} is as it is")
    if path.suffix in FORMATS or labels is not None:
        return diagnosis.of_embeddings(*read_embeddings(path, labels if isinstance(labels, Path) else None))
    return diagnosis.of_run(load(path), augmentations)


def picture(what: str, *paths: str | Path, size: int | None = None) -> Figure:
    """A figure of `report.pictures.PICTURES`, as a matplotlib Figure. paths: run folders, and image files in place of held-out
    images. size: pixels of the images' shorter side, for what a ViT sees."""
    from selfdistill.report.pictures import PICTURES, Asked, Look  # matplotlib takes a second

    if what not in PICTURES:
        raise Misuse(f"picture {what}: allowed: {', '.join(PICTURES)}.{did_you_mean(what, PICTURES)}")
    files = [p for p in map(Path, paths) if p.is_file()]
    looks = [Look(load(p)) for p in map(Path, paths) if not p.is_file()]
    if not looks:
        raise Misuse(f"picture {what}: name a run folder")
    return PICTURES[what](Asked(looks, files, size))


def write_report(*runs: str | Path | Run, out: str | Path | None = None) -> Path:
    """One HTML file that works offline, of one run or of several side by side: what was run, verdict, curves, what it is worth beside the
    baselines, embeddings, attention, neighbours, a map, time. runs: folders, or `Run`s. out: report.html in the folder of the one run, or
    here where there are several, if not given. Returns where it is. Raises `Misuse`, `Failure`."""
    from selfdistill.report import page  # matplotlib takes a second

    return page.write([run if isinstance(run, Run) else load(run) for run in runs], None if out is None else Path(out))


def alternate(
    *changes: str, rounds: int = 10, steps: int = 20, augmentations: int = 8, images: int = 1000, clusters: int | None = None
) -> Iterator[tuple[em.Round, em.Round]]:
    """The EM view: (k-means, SimSiam alternation) after each of `rounds` rounds on the same images; see `ablate.em`.

    changes: "key=value" of SimSiam's recipe, `data=` among them. steps: of SGD in an M-step. augmentations: draws of an E-step.
    clusters: of k-means, on raw pixels; as many as the data has classes, or 10.
    """
    recipe, source, _ = resolve(METHODS["simsiam"], changes)
    recipe = recipe.edit([*em.ALTERNATION, *changes])
    pixels = in_memory(spread(source.train, images), recipe.views, recipe.workers)
    centres = (len(pixels.classes) or 10) if clusters is None else clusters
    return zip(
        em.kmeans(pixels.pixels.flatten(1).float() / 255, centres, rounds, recipe.seed),
        em.alternation(recipe, pixels.pixels, rounds, steps, augmentations),
        strict=True,
    )


def export_run(run: Run, format: str, of: str | None = None, out: str | Path | None = None, data: str | None = None) -> deliver.Export:
    """A run's backbone for other libraries; see `export.deliver.export`."""
    return deliver.export(run, format, of, None if out is None else Path(out), data)


FREE = ("devices", "workers", "on_bad_image", "max_bad_steps", "checkpoint")
"""fields that a resumed run may have otherwise than the run it continues: what is computed is the same, but for the order of sums"""


def _resumable(out: str | Path | None, asked: list[str], without: Sequence[str], module: nn.Module | None, source: Source | None) -> Run:
    if out is None:
        raise Misuse("--resume continues a run folder: name it with --out")
    run = Run(Path(out), module, source)
    recipe = run.recipe.edit([*asked, *settings_of(without)])
    for path, was, now in diff(run.recipe, recipe):
        if not any(under(free, path) for free in FREE):
            raise Misuse(
                f"--resume with {path}={now}: the run was made with {path}={was} and goes on as it was; leave the setting out "
                f"({', '.join(FREE)} may change)"
            )
    run.recipe = recipe
    return run


def _word(value: Any) -> str:
    return "none" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)
