"""From a method's name and a user's words to everything that a run will do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from selfdistill.data.images import Images, Pixels, Source
from selfdistill.data.order import visible_labels
from selfdistill.data.sources import open_source
from selfdistill.errors import Misuse, did_you_mean
from selfdistill.methods import METHODS, method_of
from selfdistill.own import use
from selfdistill.parts.contrast import InfoNCE, Swapped
from selfdistill.presets import PRESETS, preset_for
from selfdistill.recipe import Recipe, validated
from selfdistill.spec import diff, leaves, under
from selfdistill.train.loggers import check as check_loggers
from selfdistill.train.machine import has_bf16
from selfdistill.train.run import load

REPAID = 10_000
"""steps of a GPU that repay a minute or two of compilation; a CPU's seldom do: 97 s for 1.15 times the rate (docs/performance.md)"""

EARLY = ("data", "preset", "on_bad_image", "log")
"""fields that no preset changes, and that are asked before the data is open"""


class Changed(NamedTuple):
    """A field or slot that a preset set: its path, old and new value, and why."""

    key: str
    old: str
    new: str
    why: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new} ({self.why})"


def recipe_of(name: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by a method's name, a YAML file, a run folder, or a .py file that defines one, whose code is run; with `settings`,
    "key=value". Raises `Misuse` for anything else."""
    found = _recipe_of(name)
    _check_method(found, settings)
    return found.edit(settings)


def _check_method(recipe: Recipe, settings: Sequence[str]) -> None:
    """Raises `Misuse` for a setting that would only rename the method: its parts would be those of the recipe."""
    for word in settings:
        if word.startswith("method=") and word != f"method={recipe.method}":
            raise Misuse(f"{word}: the method here is {recipe.method}; name another in its place: {word.removeprefix('method=')}")


def _recipe_of(name: str | Path) -> Recipe:
    path, name = Path(name), str(name)
    if name in METHODS:
        return METHODS[name]
    if path.is_dir():
        return load(path).recipe
    if path.suffix == ".py":
        return _defined_in(path)
    if path.is_file():
        return Recipe.from_yaml(path, _start)
    known = f"{', '.join(METHODS)} (or name a recipe's YAML or .py file or a run folder)"
    raise Misuse(f"{name}: no such method; there are {known}.{did_you_mean(name, METHODS)}")


def _start(method: str, preset: str) -> Recipe:
    """What a YAML of a user's own starts from: its method, with the preset that it names."""
    return method_of(method) if preset == "auto" else with_preset(method_of(method), preset)[0]


def _defined_in(path: Path) -> Recipe:
    """The recipe that a Python file of the user's own defines, one and no more."""
    found = {n: v for n, v in vars(use(path)).items() if isinstance(v, Recipe) and not any(v is known for known in METHODS.values())}
    if len(found) != 1:
        raise Misuse(f"{path}: defines {', '.join(found) or 'no recipe'}: it must define one, MINE = sd.METHODS['byol'].edit([...])")
    return next(iter(found.values()))


def resolve(base: Recipe, changes: Sequence[str], source: Source | None = None) -> tuple[Recipe, Source, list[Changed]]:
    """(recipe, data, what the preset changed): everything that a run will do. Raises `Misuse` where recipe and data do not fit."""
    check_loggers(early(base, changes))  # before a large folder of images is opened
    recipe, source, changed = on_data(base, changes, source)
    if len(source.train) < 2:
        raise Misuse(f"data={recipe.data} has {len(source.train)} image to train on: two at least, and hundreds to learn from")
    if recipe.batch_size > len(source.train):
        raise Misuse(
            f"batch_size={recipe.batch_size} is larger than the data: {recipe.data} has {len(source.train)} training images. "
            f"Set batch_size={max(2, len(source.train) // 4)} or less"
        )
    _queues_fit(recipe, len(source.train))
    if recipe.checkpoint.best:
        source.labelled()  # raises: no labels, no kNN, no best
    if recipe.labels is not None:
        visible_labels(source.train, recipe)  # raises: no labels, or too few, before anything is written
        assert recipe.projector is not None  # a classifier, says Recipe
        classes = len(source.train.classes)
        if recipe.projector.out != classes and any(word.startswith("projector.out=") for word in changes):
            raise Misuse(f"projector.out={recipe.projector.out}: the classifier has an output for each of {classes} classes: leave it out")
        recipe = recipe.edit([f"projector.out={classes}"])
    if recipe.compile == "auto":
        steps = recipe.epochs * (len(source.train) // recipe.batch_size)
        recipe = recipe.edit([f"compile={'on' if torch.cuda.is_available() and steps >= REPAID else 'off'}"])
    return recipe, source, changed


def shown(base: Recipe, changes: Sequence[str]) -> tuple[Recipe, list[Changed]]:
    """(recipe, what the preset changed) as far as `changes` say: with a `data=`, all that a run on it will do; with a `preset=`, its
    values; without either, the paper's."""
    if any(word.startswith("data=") for word in changes):
        recipe, _, changed = resolve(base, changes)
        return recipe, changed
    _check_method(base, changes)
    preset = early(base, changes).preset
    before, changed = (base, []) if preset in ("auto", base.preset) else with_preset(base, preset)
    return before.edit(changes), changed


def early(base: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with those changes alone that no preset makes, `EARLY`. Raises `Misuse` where the changes are refused in the same words
    with the paper's values and with every preset's: a slip is answered before a large folder is opened. What fits one preset alone is
    not refused yet: it may be the data's."""

    def refusal(preset: str) -> str:
        try:
            with_preset(base, preset)[0].edit(changes)
        except Misuse as e:
            return str(e)
        return ""

    said = refusal("none")
    if said and all(refusal(preset) == said for preset in PRESETS):
        raise Misuse(said)
    return base.edit([word for word in changes if word.partition("=")[0].partition(".")[0] in EARLY])


def on_data(base: Recipe, changes: Sequence[str], source: Source | None = None) -> tuple[Recipe, Source, list[Changed]]:
    """(recipe, data, what the preset changed) of what looks at images without training: the method's paper, then the data's preset,
    then the user's `changes`.

    `source`: the images of a user who has them in hand; else `data` is opened. Raises `Misuse` where the encoder cannot look at them.
    """
    _check_method(base, changes)
    asked = early(base, changes)
    source = source or open_source(asked.data, asked.on_bad_image)
    preset = preset_of(source.train) if asked.preset == "auto" else asked.preset
    # A recipe that was resolved before, a run's own, has its preset's values already, and perhaps edits on top of them.
    papers = base if preset == base.preset else with_preset(base, "none")[0]
    before, changed = (base, []) if preset == base.preset else with_preset(papers, preset)
    recipe = before.edit([*changes, f"preset={preset}"])
    users = {path for path, _, _ in diff(before, recipe)}
    was = dict(leaves(papers))
    moved = {path for path, now in leaves(before) if path not in was or was[path] != now} & dict(leaves(recipe)).keys() - users
    changed = [f for f in changed if any(under(f.key, path) for path in moved)]
    if recipe.encoder.channels != source.train.channels:
        way = "" if source.train.channels == 3 else f": encoder.channels={source.train.channels} views.mean=[0.5] views.std=[0.25]"
        raise Misuse(f"encoder.channels={recipe.encoder.channels}: the images of data={recipe.data} have {source.train.channels}{way}")
    if recipe.precision == "auto":
        recipe = recipe.edit([f"precision={'bf16' if has_bf16() else 'fp32'}"])
    return recipe, source, changed


def preset_of(images: Images) -> str:
    """What preset=auto is for these images."""
    return preset_for(len(images), images.channels, min(images.pixels.shape[-2:]) if isinstance(images, Pixels) else None)


def _changes(preset: str, method: str) -> dict[str, tuple[str, str]]:
    """A field's value and the reason; where the preset has one for all methods too, the method's own."""
    changes = PRESETS[preset].changes + PRESETS[preset].methods.get(method, ())
    return {setting.partition("=")[0]: (setting.partition("=")[2], why) for setting, why in changes}


def with_preset(recipe: Recipe, name: str) -> tuple[Recipe, list[Changed]]:
    """The recipe with a preset's changes in place of those of the one that it has, and each field that they changed; what the user changed
    before stays. Raises `Misuse` for a preset that there is not."""
    if name != recipe.preset:
        recipe = _without_preset(recipe)
    if name == "none":
        return recipe, []
    if name not in PRESETS:
        raise Misuse(f"preset={name}: allowed: {', '.join(PRESETS)}, none, auto.{did_you_mean(name, PRESETS)}")
    changes = _changes(name, recipe.method)
    paths, users = [path for path, _ in leaves(recipe)], _users(recipe)

    def fits(key: str) -> bool:  # a slot that the user leaves empty, or fills with another kind, lacks fields that a preset changes
        there = key.partition(".")[0] in changes or any(under(key, path) for path in paths)
        return there and not any(under(key, path) for path in users)

    changes = {key: new for key, new in changes.items() if fits(key)}
    changed = recipe.edit(f"{key}={value}" for key, (value, _) in changes.items())
    differing = [path for path, _, _ in diff(recipe, changed)]
    found = [Changed(key, _short(recipe, key), *new) for key, new in changes.items() if any(under(key, path) for path in differing)]
    return changed, found


def _without_preset(recipe: Recipe) -> Recipe:
    """With the method's own values where its preset had others, but for what the user changed."""
    if recipe.method not in METHODS or recipe.preset not in PRESETS:
        return recipe
    tree, papers, users = recipe.model_dump(), METHODS[recipe.method].model_dump(), _users(recipe)
    for key in _changes(recipe.preset, recipe.method):
        *slots, field = key.split(".")
        mine, theirs = _at(tree, slots), _at(papers, slots)
        alike = mine and theirs and mine.get("kind") == theirs.get("kind")  # else the user filled the slot otherwise
        if alike and not any(under(key, path) for path in users):
            mine[field] = theirs[field]
    return validated({**tree, "preset": "auto"})


def _users(recipe: Recipe) -> list[str]:
    """The fields that are no longer as the method has them, with the preset that the recipe has already."""
    if recipe.method not in METHODS:
        return []
    paper = METHODS[recipe.method]
    before = with_preset(paper, recipe.preset)[0] if recipe.preset in PRESETS else paper
    found = [path for path, _, _ in diff(before, recipe)]
    network = ["encoder.name", "encoder.options"]  # options are the named network's
    return found + network if any(under(key, path) for key in network for path in found) else found


def _short(recipe: Recipe, key: str) -> str:
    """The value at a path; of a slot its kind."""
    value = _at(recipe.model_dump(mode="json"), key.split("."))
    return str(value.get("kind", "set" if value else "none")) if isinstance(value, dict) else "none" if value is None else str(value)


def _at(tree: Any, path: Sequence[str]) -> Any:
    """None where there is nothing."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _queues_fit(recipe: Recipe, images: int) -> None:
    """Raises `Misuse` for a queue that holds an image's own earlier views, and for codes of too few samples."""
    for name, term in recipe.terms.items():
        loss = term.loss
        if isinstance(loss, InfoNCE | Swapped) and loss.queue > images:
            raise Misuse(
                f"terms.{name}.loss.queue={loss.queue} is longer than the data: {recipe.data} has {images} training images, and a queue is "
                f"of others, not of an image's own earlier views. Set it to {images // 2} or less"
            )
        if isinstance(loss, Swapped) and loss.prototypes > (samples := recipe.batch_size // recipe.accumulate + loss.queue):
            raise Misuse(
                f"terms.{name}.loss.prototypes={loss.prototypes}: a micro-batch with its queue is {samples} samples, which cannot be "
                f"shared out equally among more prototypes (SwAV Sec. 3.1). Set it to {samples // 2} or less, or give a queue"
            )
