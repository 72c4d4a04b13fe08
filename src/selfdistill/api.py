"""The Python side of the command line: `import selfdistill as sd`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from torch import Tensor, nn

from selfdistill.ablate.edits import check, lacking, settings_of
from selfdistill.ablate.edits import without as edits
from selfdistill.ablate.em import alternate
from selfdistill.data.embeddings import FORMATS, embeddings_of, read_embeddings
from selfdistill.data.images import Source
from selfdistill.data.sources import Data, given
from selfdistill.errors import Failure, Misuse
from selfdistill.export import deliver, embeddings
from selfdistill.export import neighbours as near
from selfdistill.methods import METHODS
from selfdistill.own import PYTHON, ingredient, use
from selfdistill.parts.loss import LOSSES as losses
from selfdistill.presets import PRESETS
from selfdistill.protocols import PROTOCOLS, evaluate, is_protocol_setting, protocols_of
from selfdistill.recipe import Recipe
from selfdistill.spec import Spec, diff, under
from selfdistill.train import diagnosis, loop
from selfdistill.train.cautions import cautions
from selfdistill.train.diagnosis import Diagnosis
from selfdistill.train.faults import Interrupted
from selfdistill.train.journal import say
from selfdistill.train.resolve import Changed, preset_of, recipe_of, resolve, shown, with_preset
from selfdistill.train.run import Run, load, new_folder, run_of
from selfdistill.train.subject import OTHERS, RANDOM, TIMM, is_run, subject_of, subject_on
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
    "Spec",
    "alternate",
    "diagnosis_of",
    "diff",
    "duplicates",
    "embed_to",
    "export_run",
    "ingredient",
    "load",
    "losses",
    "measure",
    "neighbours",
    "picture",
    "predictor_gap",
    "pretrain",
    "recipe_of",
    "shown",
    "use",
    "write_report",
]


def pretrain(
    method: str | Path | Recipe,
    *changes: str,
    data: Data | None = None,
    encoder: str | nn.Module | None = None,
    without: str | Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    console: Console | None = None,
    profile: bool = False,
    **settings: Any,
) -> Run:
    """Pretrains a method on images and returns the run.

    method: a name, or a recipe. changes: "key=value" as on the command line; settings: the same as keywords. data: a name, a
    folder, uint8 images [N, C, H, W], or a `Source` (with held-out labels for the probes). encoder: a name, or any module that
    maps [B, C, H, W] to [B, F], which stays as it is: `Run.backbone` is the trained copy. without: ingredients to take out. out: the
    run folder. resume: go on from its checkpoint. profile: say where the time went.
    Raises `Misuse` for what cannot be done, before anything is written.
    """
    speaks = int(os.environ.get("LOCAL_RANK", "0")) == 0  # one of several processes
    console = console or Console(markup=False, emoji=False, quiet=not speaks)
    images = None if data is None else given(data)
    source = images if isinstance(images, Source) else None
    without = [without] if isinstance(without, str) else without
    module = encoder if isinstance(encoder, nn.Module) else None
    asked = [] if images is None else [f"data={images}" if source is None else f"data={PYTHON}{source.name}"]
    if encoder is not None:
        asked.append(f"encoder={PYTHON}{type(module).__name__}" if module is not None else f"encoder={encoder}")
    asked += [*changes, *(f"{key}={_word(value)}" for key, value in settings.items())]
    base = method if isinstance(method, Recipe) else recipe_of(method)
    if resume:
        run = _resumable(out, asked, without, module, source)
        if base.method != run.recipe.method:
            raise Misuse(f"method {base.method} with resume of {run.path}, a run of {run.recipe.method}")
        return loop.pretrain(run.recipe, run.source, run.path, True, module, console, profile)
    check(without)  # a slip is answered before a large folder of images is opened, as is an --out that cannot be
    path = new_folder(_path(out), "") if out else None
    recipe, source, changed = resolve(base, asked, source)
    gone = lacking(recipe, without)  # the recipe as its data's preset has it
    edits(base, gone)  # raises: nor has the paper's
    if there := settings_of(recipe, [name for name in without if name not in gone]):
        recipe, source, changed = resolve(base, [*asked, *there], source)
    for sentence in _to_be_said(base, asked, gone, recipe, source, changed):
        say(console, sentence)
    return loop.pretrain(recipe, source, path, False, module, console, profile)


def _to_be_said(
    base: Recipe, asked: Sequence[str], gone: Sequence[str], recipe: Recipe, source: Source, changed: Sequence[Changed]
) -> Iterator[str]:
    """What a user should know of a run before it starts. gone: the ingredients to take out that are out already."""
    yield from source.notes
    if changed:
        yield f"preset {recipe.preset} changes {recipe.method} (preset=none keeps the paper's values):"
        yield "\n".join(f"  {field}" for field in changed)
    asks = any(word.startswith("preset=") for word in asked)
    if base.preset in PRESETS and not asks and (other := preset_of(source.train)) != base.preset:
        yield f"preset={base.preset} is the recipe's own, and such images have preset={other}: preset=auto takes that"
    for name in gone:
        by = f"preset {recipe.preset} has" if name in lacking(with_preset(base, recipe.preset)[0], [name]) else "the settings have"
        yield f"--without {name}: {by} taken it out already"
    yield from cautions(recipe, len(source.train))


def measure(what: str | Path | Run, *words: str, to: Data | None = None, **settings: Any) -> dict[str, dict[str, Any]]:
    """What `selfdistill evaluate` measures: for each protocol named in `words`, its results, settings and choices; see `protocols`.

    what: a run or its folder, "raw-pixels", "random-init" or "timm:NAME" with data= and other settings of a recipe. words: protocols,
    knn if there is none, and their own settings, "knn.temperature=0.1". to: another data set for the same network. A run's results are
    written to its evaluation.json too. Raises `Misuse`.
    """
    names = [word for word in words if "=" not in word]
    asked = [*(word for word in words if "=" in word), *(f"{key}={_word(value)}" for key, value in settings.items())]
    protocols = protocols_of(names or ["knn"], filter(is_protocol_setting, asked))
    others = [setting for setting in asked if not is_protocol_setting(setting)]
    return evaluate(subject_on(what, others, None if to is None else given(to)), protocols)


def diagnosis_of(
    what: str | Path | Run | Tensor | np.ndarray,
    *settings: str,
    labels: str | Path | Tensor | np.ndarray | None = None,
    pretrained: bool = False,
    augmentations: int = 32,
) -> Diagnosis:
    """The verdict, since when it holds and why, and the metrics behind it.

    what: a run or its folder (diagnosis.json is written there), embeddings [N, D] or their file (.npy, .parquet), or what else `measure`
    takes; of that the settings, "key=value", data= among them. labels: of embeddings [N]. pretrained: timm:NAME's weights instead of
    random ones. augmentations: of each image, for a run's predictor.
    """
    name, asked = "an array" if isinstance(what, Tensor | np.ndarray) else str(what.path if isinstance(what, Run) else what), list(settings)
    if pretrained and not name.startswith(TIMM):
        raise Misuse(f"--pretrained: goes with timm:NAME alone; {name} is as it is")
    if settings and is_run(name):
        raise Misuse(f"{settings[0]}: goes with {OTHERS}; {name} is as it is")
    if isinstance(what, Tensor | np.ndarray):
        return diagnosis.of_embeddings(*embeddings_of(what, labels))
    if not isinstance(what, Run) and Path(what).suffix in FORMATS:
        return diagnosis.of_embeddings(*read_embeddings(Path(what), labels))
    if labels is not None:
        raise Misuse(f"labels: go with embeddings, {' or '.join(FORMATS)}; {name} has its images' own")
    if name.startswith(TIMM) and not pretrained and any(word.startswith("data=") for word in asked):  # else it is asked for one
        name, asked = RANDOM, [f"encoder={name}", *asked]
    if not is_run(name):
        of = subject_of(name, asked)
        return diagnosis.of_backbone(of.backbone, of.source.looked_at, of.recipe)
    if Path(name).is_file():
        raise Misuse(f"{name}: is a file, and embeddings are read from {' and '.join(FORMATS)}")
    return diagnosis.of_run(run_of(what), augmentations)


def embed_to(
    what: str | Path | Run,
    data: Data,
    out: str | Path,
    say: Callable[[str], None] = lambda sentence: None,
    settings: Sequence[str] = (),
) -> int:
    """Writes the features of every image of `data`; see `export.embeddings.embed`. what: a run or its folder, or what `measure` takes,
    with `settings`, "key=value"."""
    return embeddings.embed(subject_of(what, settings, given(data)), Path(out).expanduser(), say)


def neighbours(
    what: str | Path | Run,
    image: str | Path,
    data: Data,
    k: int = 10,
    sheet: str | Path | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    settings: Sequence[str] = (),
) -> list[near.Found]:
    """The images of `data` most like one; see `export.neighbours.neighbours`. what and settings as of `embed_to`."""
    return near.neighbours(subject_of(what, settings, given(data)), Path(image), k, _path(sheet), say)


def duplicates(
    what: str | Path | Run,
    data: Data,
    threshold: float,
    out: str | Path | None = None,
    sheet: str | Path | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    settings: Sequence[str] = (),
) -> near.Pairs:
    """Pairs of images of `data` that are nearly the same; see `export.neighbours.duplicates`. what and settings as of `embed_to`."""
    return near.duplicates(subject_of(what, settings, given(data)), threshold, _path(out), _path(sheet), say)


def export_run(
    what: str | Path | Run,
    format: str,
    of: str | None = None,
    out: str | Path | None = None,
    data: Data | None = None,
    settings: Sequence[str] = (),
) -> deliver.Export:
    """A backbone for other libraries; see `export.deliver.export`. what and settings as of `embed_to`; data: images to compare on, a
    run's own if not given."""
    return deliver.export(subject_of(what, settings, None if data is None else given(data)), format, of, _path(out))


def picture(what: str, *paths: str | Path | Run, size: int | None = None) -> Figure:
    """A figure of `report.pictures.PICTURES`, as a matplotlib Figure. paths: runs or their folders, and image files in place of held-out
    images. size: pixels of the images' shorter side, for what a ViT sees."""
    from selfdistill.report.pictures import Asked, Look, drawn  # matplotlib takes a second
    from selfdistill.report.style import rendered

    files = [p for p in paths if not isinstance(p, Run) and Path(p).is_file()]
    looks = [Look(run_of(p)) for p in paths if p not in files]
    if not looks:
        raise Misuse(f"picture {what}: name a run folder")
    figure: Any = drawn(what, Asked(looks, [Path(file) for file in files], size))
    figure._repr_png_ = lambda: rendered(figure, "png", 90)  # what a notebook shows; else only figures of pyplot's are drawn there
    return figure


def write_report(*runs: str | Path | Run, out: str | Path | None = None) -> Path:
    """One HTML file that works offline, of one run or of several side by side: what was run, verdict, curves, what it is worth beside the
    baselines, embeddings, attention, neighbours, a map, time. runs: folders, or `Run`s. out: report.html in the folder of the one run, or
    here where there are several, if not given. Returns where it is. Raises `Misuse`, `Failure`."""
    from selfdistill.report import page  # matplotlib takes a second

    return page.write([run_of(run) for run in runs], _path(out))


FREE = ("devices", "workers", "on_bad_image", "max_bad_steps", "checkpoint")
"""fields that a resumed run may have otherwise than the run it continues: what is computed is the same, but that other devices add in
another order, draw other paths to drop and, on CPUs, have BatchNorms of their own (docs/distributed.md)"""


def _resumable(out: str | Path | None, asked: list[str], without: Sequence[str], module: nn.Module | None, source: Source | None) -> Run:
    if out is None:
        raise Misuse("--resume continues a run folder: name it with --out")
    run = Run(Path(out).expanduser(), module, source)
    gone = lacking(run.recipe, without)
    asked = [word for word in asked if word not in ("precision=auto", "compile=auto", "preset=auto")]  # it has what they became
    recipe = run.recipe.edit([*asked, *settings_of(run.recipe, [name for name in without if name not in gone])])
    for path, was, now in diff(run.recipe, recipe):
        if not any(under(free, path) for free in FREE):
            raise Misuse(
                f"--resume with {path}={now}: the run was made with {path}={was} and goes on as it was; leave the setting out "
                f"({', '.join(FREE)} may change)"
            )
    run.recipe = recipe
    if recipe.checkpoint.best:
        run.source.labelled()  # raises: no labels, no kNN, no best
    return run


def _word(value: Any) -> str:
    if isinstance(value, Spec):
        return value.model_dump_json()
    if isinstance(value, (dict, list, tuple)):  # JSON, which YAML reads: Python's None, tuples and NumPy's numbers it does not
        return json.dumps(value, default=_plain)
    return "none" if value is None else str(value)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Spec) else value.item() if isinstance(value, np.generic) else str(value)


def _path(of: str | Path | None) -> Path | None:
    return None if of is None else Path(of).expanduser()
