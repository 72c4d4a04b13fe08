"""The Python side of the command line: `import selfdistill as sd`."""

from __future__ import annotations

import os
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from selfdistill.ablate import em
from selfdistill.ablate.edits import settings_of
from selfdistill.ablate.edits import without as edits
from selfdistill.data.images import Pixels, Source, spread
from selfdistill.data.loader import in_memory
from selfdistill.errors import Misuse, did_you_mean
from selfdistill.export import deliver
from selfdistill.export.embeddings import embed as embed_to
from selfdistill.export.neighbours import duplicates, neighbours
from selfdistill.methods import METHODS
from selfdistill.parts.loss import LOSSES as losses
from selfdistill.recipe import Recipe, diff
from selfdistill.train import loop
from selfdistill.train.loop import Interrupted
from selfdistill.train.resolve import resolve
from selfdistill.train.run import Run, load, new_folder
from selfdistill.train.trained import predictor_gap

__all__ = [
    "METHODS",
    "Interrupted",
    "Misuse",
    "Recipe",
    "Run",
    "alternate",
    "diff",
    "duplicates",
    "embed_to",
    "export_run",
    "load",
    "losses",
    "neighbours",
    "predictor_gap",
    "pretrain",
    "recipe_of",
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
    **settings: Any,
) -> Run:
    """Pretrains a method on images and returns the run.

    method: a name, or a recipe. changes: "key=value" as on the command line; settings: the same as keywords. data: a name, a
    folder, uint8 images [N, C, H, W], or a `Source` (with held-out labels for the probes). encoder: a name, or any module that
    maps [B, C, H, W] to [B, F]. without: ingredients to take out. out: the run folder. resume: go on from its checkpoint.
    Raises `Misuse` for what cannot be done, before anything is written.
    """
    console = console or Console(quiet=int(os.environ.get("LOCAL_RANK", "0")) > 0)  # of several processes one speaks
    if isinstance(data, Tensor):
        data = Source("tensor", Pixels(data))
    source = data if isinstance(data, Source) else None
    module = encoder if isinstance(encoder, nn.Module) else None
    asked = [] if data is None else [f"data={source.name if source else data}"]
    if encoder is not None:
        asked.append(f"encoder=python:{type(module).__name__}" if module else f"encoder={encoder}")
    asked += [*changes, *(f"{key}={_word(value)}" for key, value in settings.items())]
    if resume:
        run = _resumable(out, asked, without, module, source)
        return loop.pretrain(run.recipe, run.source, run.path, True, module, console)
    base = recipe_of(method) if isinstance(method, str) else method
    asked += edits(base.edit(asked), without)
    path = new_folder(Path(out), "") if out else None  # before a large folder of images is opened
    recipe, source, lines = resolve(base, asked, source)
    for note in source.notes:
        console.print(note, soft_wrap=True)
    if lines:
        console.print(f"preset {recipe.preset} changes {recipe.method} (preset=none keeps the paper's values):")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True, highlight=False)
    return loop.pretrain(recipe, source, path, False, module, console)


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


def _resumable(out: str | Path | None, asked: list[str], without: Sequence[str], module: nn.Module | None, source: Source | None) -> Run:
    if out is None:
        raise Misuse("--resume continues a run folder: name it with --out")
    run = Run(Path(out), module, source)
    changed = diff(run.recipe, run.recipe.edit([*asked, *settings_of(without)]))
    if changed:
        path, was, now = changed[0]
        raise Misuse(f"--resume with {path}={now}: the run was made with {path}={was} and goes on as it was; leave the setting out")
    return run


def _word(value: Any) -> str:
    return "none" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)
