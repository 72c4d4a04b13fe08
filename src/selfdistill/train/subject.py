"""A network to look at or to look with: a run's, an untrained one, timm's, a file's, or none but the pixels themselves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import safetensors
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.data.images import Images, Pixels, Source
from selfdistill.data.loader import in_memory
from selfdistill.data.sources import open_source
from selfdistill.errors import Misuse, did_you_mean, in_one_line
from selfdistill.methods import method_of
from selfdistill.parts.backbone import Backbone
from selfdistill.recipe import Recipe
from selfdistill.train.initial import initialised
from selfdistill.train.resolve import early, on_data
from selfdistill.train.run import Run, features_of, load, run_of, untrained
from selfdistill.train.trained import siamese_of

RAW, RANDOM, TIMM = "raw-pixels", "random-init", "timm:"
WEIGHTS, CHECKPOINT = (".safetensors", ".pth"), ".ckpt"
OTHERS = f"{RAW}, {RANDOM}, {TIMM}NAME or a file of weights ({', '.join(WEIGHTS)})"
"""what is no run, and takes settings of a recipe"""


@dataclass(frozen=True, eq=False)
class Subject:
    """backbone: images [B, C, S, S], normalised as in recipe.views, to features [B, F]; its images; the run, if it is one's."""

    name: str
    backbone: Backbone | RawPixels
    recipe: Recipe
    source: Source
    run: Run | None = None
    other: str | None = None
    """the data set in place of the recipe's own"""

    @property
    def folder(self) -> Path | None:
        return self.run.path if self.run else None

    @cached_property
    def images(self) -> tuple[Images, Tensor, Images, Tensor]:
        """(bank, its labels, held-out images, their labels). Raises `Misuse` without labels."""
        return self.source.labelled()

    @cached_property
    def frozen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same with features, [N, F] and [Q, F] fp32 on the CPU. Raises `Misuse` where all held-out images are of one class, which any
        features tell apart."""
        bank, labels, test, targets = self.images
        if len(targets.unique()) < 2:
            raise Misuse(f"data={self.source.name}: its held-out images are of one class: two at least")
        features, queries = self.features(bank), self.features(test)
        self.check_finite(features, queries)
        return features, labels, queries, targets

    @cached_property
    def pixels(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same with uint8 images [N, C, H, W] in memory: files as central squares of the views' size."""
        bank, labels, test, targets = self.images
        loaded = (in_memory(images, self.recipe.views, self.recipe.workers).pixels for images in (bank, test))
        return next(loaded), labels, next(loaded), targets

    def features(self, images: Images) -> Tensor:
        return features_of(self.backbone, images, self.recipe)

    def check_finite(self, *features: Tensor) -> None:
        """Raises `Misuse` for features that say nothing."""
        if not all(of.isfinite().all() for of in features):
            raise Misuse(f"{self.name}: the features are not finite: a run that diverged has nothing to say of an image")

    def on(self, data: str | Source) -> Subject:
        """The same network on another data set (transfer). Raises `Misuse` where its images do not fit."""
        return replace(self, source=_fitting(data, self.recipe), other=_name(data))


def is_run(what: str | Path | Run) -> bool:
    name = str(what)
    other = name in (RAW, RANDOM) or name.startswith(TIMM) or Path(name).suffix in WEIGHTS or _is_checkpoint(what)
    return isinstance(what, Run) or not other


def _is_checkpoint(what: str | Path | Run) -> bool:
    return not isinstance(what, Run) and Path(what).suffix == CHECKPOINT and not Path(what).is_dir()


def subject_of(what: str | Path | Run, settings: Sequence[str] = (), data: str | Source | None = None) -> Subject:
    """A run or its folder, or one of its checkpoints; or one of OTHERS, which take `settings`, "key=value" of a recipe, `data=` among them.

    random-init takes `method=` too, whose encoder it has (SimSiam's if not), with the data's preset as pretrain chooses it. A file that
    `selfdistill export` wrote says which encoder its weights are of; of another one `settings` do. data: images in place of a run's own,
    which need not be there any more, and those of the others. Raises `Misuse`.
    """
    if is_run(what):
        return _of_run(what, settings, data)
    if _is_checkpoint(what):
        return _of_checkpoint(Path(str(what)), settings, data)
    name, images = str(what), [] if data is None else [f"data={_name(data)}"]
    if not images and not any(setting.startswith("data=") for setting in settings):
        raise Misuse(f"{name}: on which images? {name} data=digits")
    own = [] if name in (RAW, RANDOM) else _of_timm(name) if name.startswith(TIMM) else _noted(Path(name))
    words = [*own, *(s for s in settings if not s.startswith("method=")), *images]
    base = _method(settings)
    asked = base.edit(words) if own else early(base, words)
    source = _opened(asked.data if data is None else data, asked)
    if own:  # they say what network it is
        source = source.of_channels(asked.encoder.channels)
    elif name == RAW:
        size = [f"views.size={min(source.train.pixels.shape[2:])}"] if isinstance(source.train, Pixels) else []
        words = [f"encoder.channels={source.train.channels}", "views.mean=[0]", "views.std=[1]", *size, *words]
    recipe, source, _ = on_data(base, words, source)
    if name not in (RAW, RANDOM):
        recipe = recipe.model_copy(update={"init_from": name})
    return Subject(name, _placed(_built(name, recipe)).eval(), recipe, source)


def subject_on(what: str | Path | Run, settings: Sequence[str], to: str | Source | None) -> Subject:
    """`subject_of`, taken to other images where `to` names some (transfer): a run's own need not be there any more."""
    if to is None or is_run(what) or _is_checkpoint(what):
        return subject_of(what, settings, to)
    return subject_of(what, settings).on(to)


def _of_run(what: str | Path | Run, settings: Sequence[str], data: str | Source | None) -> Subject:
    if not isinstance(what, Run) and not Path(what).is_dir():
        raise Misuse(
            f"{what}: neither a run folder, nor one of its checkpoints (.ckpt), nor {OTHERS}.{did_you_mean(str(what), (RAW, RANDOM))}"
        )
    if settings:
        raise Misuse(f"{settings[0]}: {what} is a run, with settings of its own: leave it out (evaluate --to DATA looks at other images)")
    run = run_of(what)
    source = run.source if data is None else _fitting(data, run.recipe)
    backbone = _placed(run.backbone)
    return Subject(str(run.path), backbone, run.recipe, source, run, None if data is None else _name(data))


def _of_checkpoint(file: Path, settings: Sequence[str], data: str | Source | None) -> Subject:
    """The encoder that a run keeps, as it was at one of its checkpoints (checkpoint.every, checkpoint.best)."""
    folder = file.absolute().parent.parent
    if not (folder / "recipe.yaml").is_file():
        raise Misuse(f"{file}: a checkpoint is read in its run folder, as RUN/checkpoints/last.ckpt")
    run = load(folder)
    if settings:
        raise Misuse(f"{settings[0]}: {file} is of a run, whose settings stand in its recipe.yaml")
    source = run.source if data is None else _fitting(data, run.recipe)
    backbone = _placed(siamese_of(run, file).backbone).eval()
    recipe = run.recipe.model_copy(update={"init_from": str(file)})  # where its weights are from
    return Subject(str(file), backbone, recipe, source, other=None if data is None else _name(data))


def _built(name: str, recipe: Recipe) -> Backbone | RawPixels:
    if name == RAW:
        return RawPixels(recipe.encoder.channels * recipe.views.size**2)
    if recipe.init_from:
        return initialised(recipe)[0]
    return untrained(recipe)


def _placed(backbone: Backbone | RawPixels) -> Backbone | RawPixels:
    """On the GPU, where there is one, a copy: the caller's run keeps its own where it is."""
    return copy.deepcopy(backbone).to("cuda") if torch.cuda.is_available() else backbone


def _method(settings: Sequence[str]) -> Recipe:
    return method_of(next((s.removeprefix("method=") for s in settings if s.startswith("method=")), "simsiam"))


def _of_timm(name: str) -> list[str]:
    """The settings under which timm's weights were trained."""
    model = name.removeprefix(TIMM)
    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if cfg is None or not cfg.has_weights:
        hint = did_you_mean(model, timm.list_models(pretrained=True), TIMM)
        raise Misuse(f"{name}: timm {timm.__version__} has no pretrained weights of that name.{hint}")
    size = [f"views.size={cfg.input_size[-1]}", f"views.mean={list(cfg.mean)}", f"views.std={list(cfg.std)}"]
    return ["preset=none", f"encoder={name}", *size]


def _noted(file: Path) -> list[str]:
    """The settings that a file of weights notes, where `selfdistill export` wrote it."""
    if not file.is_file():
        raise Misuse(f"{file}: no such file. It may be a run folder, {OTHERS}")
    if file.suffix != ".safetensors":
        return []
    try:
        with safetensors.safe_open(file, "pt") as opened:
            notes = opened.metadata() or {}
    except Exception as e:  # SafetensorError, and what numbers in a damaged header provoke
        raise Misuse(f"{file}: refused: no .safetensors, or damaged ({in_one_line(e, 200)})") from e
    known = {"encoder": "encoder", "views.size": "size", "views.mean": "mean", "views.std": "std"}
    return ["preset=none", *(f"{key}={notes[of]}" for key, of in known.items())] if all(of in notes for of in known.values()) else []


class RawPixels(nn.Module):
    """The baseline without a network. dim: values of an image, C S S."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def maps(self, x: Tensor) -> Tensor:
        """[B, 16 C, S / 4, S / 4]: patches of 4 x 4 pixels. Raises `Misuse` for a side that they do not fill."""
        if x.shape[-1] % 4 or x.shape[-2] % 4:
            raise Misuse(f"images of {x.shape[-2]} x {x.shape[-1]} pixels: raw pixels are looked at in patches of 4 x 4")
        return F.pixel_unshuffle(x, 4)


def _fitting(data: str | Source, recipe: Recipe) -> Source:
    return _opened(data, recipe).of_channels(recipe.encoder.channels)


def _opened(data: str | Source, recipe: Recipe) -> Source:
    return open_source(data, recipe.on_bad_image) if isinstance(data, str) else data


def _name(data: str | Source) -> str:
    return data if isinstance(data, str) else data.name
