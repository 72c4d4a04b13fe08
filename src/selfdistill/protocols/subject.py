"""Whom a protocol looks at: a run, an untrained encoder, a model of timm, or the pixels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.data.images import Images, Pixels, Source
from selfdistill.data.loader import in_memory
from selfdistill.data.sources import open_source
from selfdistill.errors import Misuse, did_you_mean
from selfdistill.methods import METHODS
from selfdistill.recipe import Recipe
from selfdistill.train.resolve import resolve
from selfdistill.train.run import Run, features_of, labelled, untrained

RAW, RANDOM, TIMM = "raw-pixels", "random-init", "timm:"


@dataclass(frozen=True, eq=False)
class Subject:
    """backbone: images [B, C, S, S], normalised as in recipe.views, to features [B, F]; its images; the run folder, if it has one."""

    name: str
    backbone: nn.Module
    recipe: Recipe
    source: Source
    folder: Path | None = None
    other: str | None = None
    """the data set in place of the recipe's own"""

    @cached_property
    def images(self) -> tuple[Images, Tensor, Images, Tensor]:
        """(bank, its labels, held-out images, their labels). Raises `Misuse` without labels."""
        return labelled(self.source)

    @cached_property
    def frozen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same with features, [N, F] and [Q, F] fp32 on the CPU."""
        bank, labels, test, targets = self.images
        return self.features(bank), labels, self.features(test), targets

    @cached_property
    def pixels(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same with uint8 images [N, C, H, W] in memory: files as central squares of the views' size."""
        bank, labels, test, targets = self.images
        loaded = (in_memory(images, self.recipe.views, self.recipe.workers).pixels for images in (bank, test))
        return next(loaded), labels, next(loaded), targets

    def features(self, images: Images) -> Tensor:
        return features_of(self.backbone, images, self.recipe)

    def on(self, data: str) -> Subject:
        """The same network on another data set (transfer). Raises `Misuse` where its images do not fit."""
        source = fitted(open_source(data, self.recipe.on_bad_image), self.recipe.encoder.channels)
        return replace(self, source=source, other=data)


def subject_of(what: str | Path | Run, settings: Sequence[str] = ()) -> Subject:
    """A run or its folder; `raw-pixels`, `random-init` or `timm:NAME`, which take `settings`, "key=value" of a recipe, `data=` among
    them. random-init takes `method=` too, whose encoder it has (SimSiam's if not), with the data's preset as pretrain chooses it.
    Raises `Misuse`."""
    if isinstance(what, Run):
        return Subject(str(what.path), what.backbone, what.recipe, what.source, what.path)
    name = str(what)
    if name not in (RAW, RANDOM) and not name.startswith(TIMM):
        if not Path(name).is_dir():
            raise Misuse(f"{name}: neither a run folder nor {RAW}, {RANDOM} or timm:NAME.{did_you_mean(name, (RAW, RANDOM))}")
        if settings:
            raise Misuse(f"{settings[0]}: {name} is a run, whose settings stand in its recipe.yaml; --to DATA takes it to other images")
        run = subject_of(Run(Path(name)))
        return replace(run, backbone=run.backbone.to("cuda" if torch.cuda.is_available() else "cpu"))
    if not any(setting.startswith("data=") for setting in settings):
        raise Misuse(f"{name}: on which images? {name} data=digits")
    # Nothing is trained: no batch can be too large for the data.
    return _untrained(name, ["batch_size=2", *(s for s in settings if not s.startswith("method="))], _method(settings))


def _method(settings: Sequence[str]) -> Recipe:
    method = next((s.removeprefix("method=") for s in settings if s.startswith("method=")), "simsiam")
    if method not in METHODS:
        raise Misuse(f"method={method}: there are {', '.join(METHODS)}.{did_you_mean(method, METHODS)}")
    return METHODS[method]


def _untrained(name: str, settings: list[str], base: Recipe) -> Subject:
    asked = base.edit(settings)
    source = open_source(asked.data, asked.on_bad_image)
    own: list[str] = []
    if name.startswith(TIMM):
        model = name.removeprefix(TIMM)
        cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
        if cfg is None or not cfg.has_weights:
            hint = did_you_mean(model, timm.list_models(pretrained=True), TIMM)
            raise Misuse(f"{name}: timm {timm.__version__} has no pretrained weights of that name.{hint}")
        source = fitted(source, 3)
        own = ["preset=none", f"encoder={name}", "encoder.options={pretrained: true}", f"views.size={cfg.input_size[-1]}"]
        own += [f"views.mean={list(cfg.mean)}", f"views.std={list(cfg.std)}"]
    elif name == RAW:
        size = [f"views.size={min(source.train.pixels.shape[2:])}"] if isinstance(source.train, Pixels) else []
        own = [f"encoder.channels={source.train.channels}", "views.mean=[0]", "views.std=[1]", *size]
    recipe, source, _ = resolve(base, [*own, *settings], source)
    backbone = RawPixels() if name == RAW else untrained(recipe)
    return Subject(name, backbone.eval(), recipe, source)


class RawPixels(nn.Module):
    """The baseline without a network."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def maps(self, x: Tensor) -> Tensor:
        """[B, 16 C, S / 4, S / 4]: patches of 4 x 4 pixels."""
        return F.pixel_unshuffle(x, 4)


def fitted(source: Source, channels: int) -> Source:
    """The images with as many channels as a network takes: grey ones in memory as RGB. Raises `Misuse` for others that differ."""
    if source.train.channels == channels:
        return source
    if channels != 3 or source.train.channels != 1:
        raise Misuse(f"data={source.name}: images of {source.train.channels} channels for a network of {channels}")

    def rgb(images: Images | None) -> Images | None:
        return Pixels(images.pixels.expand(-1, 3, -1, -1), images.labels, images.classes) if isinstance(images, Pixels) else images

    train = rgb(source.train)
    assert train is not None
    return replace(source, train=train, test=rgb(source.test), bank=rgb(source.bank))
