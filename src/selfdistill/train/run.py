"""A run folder: what is in it, and a trained backbone from it."""

from __future__ import annotations

import math
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from selfdistill import own
from selfdistill.data.images import Files, Images, Source
from selfdistill.data.loader import plain_batches
from selfdistill.data.reading import printable
from selfdistill.data.sources import Data, given, open_source
from selfdistill.disk import flushed, object_of, rows_of, whole_folder
from selfdistill.errors import Misuse
from selfdistill.evaluate.features import features
from selfdistill.evaluate.knn import TEMPERATURE, knn_accuracy, usual_k
from selfdistill.evaluate.linear import linear_accuracy
from selfdistill.parts.backbone import Backbone, device_of
from selfdistill.parts.seeded import drawn_from
from selfdistill.recipe import FORMAT, Recipe
from selfdistill.settings import yaml_from, yaml_of
from selfdistill.train.machine import versions
from selfdistill.train.weights import fill, tensors

EVALUATION, DIAGNOSIS = "evaluation.json", "diagnosis.json"
"""of a run folder: what protocols found, and what `diagnose` did"""


class Measured(BaseModel):
    """What a reader needs of a protocol's entry there."""

    chosen: dict[str, Any]
    results: dict[str, float | None]


class Run:
    """A run folder on disk: recipe.yaml, metrics.jsonl, summary.json, checkpoints/last.ckpt, backbone.safetensors."""

    def __init__(self, path: Path, encoder: nn.Module | None = None, source: Source | None = None):
        """`encoder` and `source`: the module and the images of a run that was given its own."""
        if path.is_file():
            raise Misuse(f"{path}: is a file, not a run folder")
        if not (path / "recipe.yaml").is_file():
            raise Misuse(f"{path}: not a run folder: it has no recipe.yaml. selfdistill pretrain METHOD --out {path} makes one")
        self.path = path
        self.recipe = Recipe.from_yaml(path / "recipe.yaml")
        self.own_encoder, self._source = encoder, source

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, method={self.recipe.method!r}, data={self.recipe.data!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from selfdistill.train.notebook import html

        return html(self)

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a kill cut in two is left out, as --resume leaves it out."""
        return rows_of(self.path / "metrics.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        """The last value of each metric. Raises `Misuse` while the run has not ended."""
        if not self.path.is_dir():
            raise Misuse(f"{self.path}: seen from {Path.cwd()}, the run's folder is not there")
        if not self.ended:
            raise Misuse(f"{self.path}: the run has not ended: {self.how_to_go_on}")
        return object_of(self.path / "summary.json")

    @property
    def how_to_go_on(self) -> str:
        """The command that resumes the run; of one that a Python program gave images or a module, the call that passes them again."""
        r = self.recipe
        again = [f"{what}={what}" for what, name in (("data", r.data), ("encoder", r.encoder.name)) if name.startswith(own.PYTHON)]
        if again:
            return f"sd.pretrain({r.method!r}, {', '.join(again)}, out={str(self.path)!r}, resume=True)"
        return shlex.join(["selfdistill", "pretrain", r.method, *own.flags(), "--out", str(self.path), "--resume"])

    @property
    def ended(self) -> bool:
        return (self.path / "summary.json").exists()

    @property
    def last(self) -> dict[str, Any]:
        """The last value of each metric, also of a run that has not ended."""
        found: dict[str, Any] = {}
        for row in self.metrics:
            found |= {name: value for name, value in row.items() if value is not None}
        return found | object_of(self.path / "summary.json")

    @property
    def versions(self) -> dict[str, str]:
        """What the run was made with."""
        return yaml_of((self.path / "recipe.yaml").read_text()).get("versions") or {}

    @property
    def evaluation(self) -> dict[str, dict[str, Any]]:
        """What each protocol that was asked found (`protocols.measured`). Raises `Misuse` for a file that is damaged."""
        return object_of(self.path / EVALUATION, dict[str, Measured])

    @cached_property
    def source(self) -> Source:
        """Raises `Misuse` where the images are not, seen from the folder in which this program runs."""
        try:
            return self._source or open_source(self.recipe.data, self.recipe.on_bad_image)
        except Misuse as e:
            raise Misuse(f"the images of {self.path}, seen from {Path.cwd()}: {e}") from e

    @cached_property
    def backbone(self) -> Backbone:
        """The trained encoder in eval mode: images [B, C, H, W], normalised as in recipe.views, to features [B, F]."""
        file = self.path / "backbone.safetensors"
        if not file.exists():
            raise Misuse(f"{self.path}: no backbone.safetensors: the run has not ended; --resume continues it")
        built = untrained(self.recipe, self.own_encoder)
        fill(built.net, tensors(file), file)
        return built.eval()

    def embed(self, images: Data | Sequence[str | Path]) -> Tensor:
        """Features [N, F] of uint8 images [N, C, H, W], of image files, or of a data set, by name or folder too: its training images, then
        those held out. Warns of images that cannot be read, whose features are NaN, and of those that a folder leaves out. Raises
        `Misuse`."""
        if isinstance(images, np.ndarray) and images.dtype.kind in "UO":
            images = images.tolist()
        if isinstance(images, (list, tuple)) and all(isinstance(p, (str, Path)) for p in images):
            images = Source("images", Files([Path(p) for p in images]))
        images = given(images)
        if isinstance(images, str):
            images = open_source(images, self.recipe.on_bad_image)
        if not len(images.train):
            raise Misuse("embed: there are no images")
        if images.left_out:
            warnings.warn(images.left_out, stacklevel=2)
        images = images.of_channels(self.recipe.encoder.channels)
        parts = [part for part in (images.train, images.test) if part is not None]
        return torch.cat([features_of(self.backbone, part, self.recipe, unreadable=math.nan) for part in parts])

    def knn(self, k: int | None = None, temperature: float = TEMPERATURE, trained: bool = True) -> float:
        """kNN accuracy on the held-out images, in [0, 1]; the training images are the bank. k: 20, or all where the bank has fewer, if
        none. trained: or the encoder as it was at random. Raises `Misuse` without labels."""
        found = self.frozen if trained else self._frozen(untrained(self.recipe, self.own_encoder))
        return knn_accuracy(*found, usual_k(len(found[0])) if k is None else k, temperature)

    def linear(self, **settings: Any) -> float:
        """Accuracy of a linear probe on the held-out images, in [0, 1]; `settings` as of `evaluate.linear.linear_accuracy`.
        Raises `Misuse` without labels."""
        return linear_accuracy(*self.frozen, **settings)

    @cached_property
    def frozen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(bank [N, F], labels [N], held-out [Q, F], targets [Q]), for kNN and the linear probe."""
        return self._frozen(self.backbone)

    def _frozen(self, backbone: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        bank, labels, test, targets = self.source.labelled()
        return features_of(backbone, bank, self.recipe), labels, features_of(backbone, test, self.recipe), targets


def load(path: str | Path, encoder: nn.Module | None = None, data: Data | None = None) -> Run:
    """A run from its folder. encoder and data: the module and the images of a run that was given its own. Raises `Misuse`, for images of
    a run that can open its own too."""
    if data is None:
        return Run(Path(path).expanduser(), encoder)
    images = given(data)
    run = Run(Path(path).expanduser(), encoder, images if isinstance(images, Source) else open_source(images))
    if images != run.recipe.data and not run.recipe.data.startswith(own.PYTHON):
        raise Misuse(f"{path}: a run of data={run.recipe.data}, which it opens itself; measure(..., to=images) takes it to others")
    takes = run.recipe.encoder.channels
    for part in (run.source.train, run.source.test, run.source.bank):
        if part is not None and part.channels != takes:
            raise Misuse(f"images of {part.channels} channels for an encoder of {takes}: not those that the run was made on")
    return run


def run_of(what: str | Path | Run) -> Run:
    """Itself, or from its folder."""
    return what if isinstance(what, Run) else load(what)


def untrained(recipe: Recipe, own_encoder: nn.Module | None = None) -> Backbone:
    """The encoder as the recipe's seed initialises it; a module of the user's own as it is."""
    with drawn_from(recipe.seed):
        return recipe.encoder.build(recipe.views.size, own_encoder)


def features_of(network: nn.Module, images: Images, recipe: Recipe, bf16: bool = False, unreadable: float | None = None) -> Tensor:
    """[N, F] fp32 on the CPU: what a network says of images as they are, read as the recipe reads them. Warns of unreadable ones, whose
    features are all `unreadable`, or those of mean grey."""
    bad: dict[int, str] = {}

    def report(i: int, reason: str) -> None:
        bad[i] = f"{images.path(i) or i}: {reason}"

    with _lent(network) as device:
        found = features(network, plain_batches(images, recipe.views, device, recipe.workers, report=report), bf16)
    if bad:
        become = "count as grey squares" if unreadable is None else f"have features {unreadable}"
        first = next(iter(bad.values()))
        warnings.warn(f"{len(bad)} of {len(images)} images cannot be read and {become}, the first: {first}", stacklevel=2)
    return found if unreadable is None else found.index_fill(0, torch.tensor(list(bad), dtype=torch.long), unreadable)


@contextmanager
def _lent(network: nn.Module) -> Iterator[torch.device]:
    """A network on the CPU goes to the GPU, where there is one, and comes back."""
    home = device_of(network)
    device = torch.device("cuda") if home.type == "cpu" and torch.cuda.is_available() else home
    network.to(device)
    try:
        yield device
    finally:
        network.to(home)


def new_folder(out: Path | None, stem: str) -> Path:
    """Where a run will go, not made yet: `out`, or runs/STEM-N, the next free. Raises `Misuse` if it exists."""
    if out is None:
        taken = {p.name for p in Path("runs").glob(f"{stem}-*")}
        out = Path("runs") / next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}") not in taken)
    if printable(out) != str(out):  # loggers and .safetensors write it as UTF-8
        raise Misuse(f"--out {printable(out)}: is no name in UTF-8: name another folder")
    if os.path.lexists(out):
        raise Misuse(f"--out {out}: exists already: name another folder, or continue that run with --resume")
    return out


def record_of(recipe: Recipe, made_with: Mapping[str, str]) -> str:
    """What recipe.yaml says. made_with: `versions`."""
    return recipe.to_yaml() + yaml_from({"format": FORMAT, "versions": dict(made_with)})


def make_folder(out: Path | None, stem: str, recipe: Recipe) -> Path:
    """The run folder, `new_folder`, with its recipe.yaml. Raises `Misuse` and leaves nothing where it cannot be written."""
    place = new_folder(out, stem)
    try:
        with whole_folder(place) as folder:
            (folder / "checkpoints").mkdir()
            flushed(folder / "recipe.yaml", record_of(recipe, versions()))
    except (OSError, Misuse) as e:
        if out is None and os.path.lexists(place):  # another process has taken that number meanwhile
            return make_folder(out, stem, recipe)
        if isinstance(e, Misuse):
            raise
        raise Misuse(f"--out {place}: cannot be written ({e.strerror or e}): name another folder") from e  # no room for what is in it
    return place
